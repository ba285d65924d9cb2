//! A script that remembers what it was asked and lets a rule answer, and the parts of answers that misbehave.

use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};

use super::{Body, Script, full};

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET` or `HEAD`.
    pub method: String,
    /// Path and query.
    pub uri: String,
    /// Path alone.
    pub path: String,
    /// All headers.
    pub headers: HeaderMap,
}

impl Seen {
    /// One header, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// First byte asked for, and last where there is one.
    pub fn range(&self) -> (usize, Option<usize>) {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let Some((first, last)) = range else { return (0, None) };
        (first.parse().unwrap_or(0), last.parse().ok())
    }
}

type Rule = Box<dyn Fn(&Seen) -> Option<Response<Body>> + Send + Sync>;

/// Remembers every request, then lets a rule answer it.
#[derive(Default)]
pub struct Recorder {
    seen: Mutex<Vec<Seen>>,
    rule: Mutex<Option<Rule>>,
}

impl Recorder {
    /// Answers by a rule from now on; what the rule leaves is answered as always.
    pub fn rule(&self, rule: impl Fn(&Seen) -> Option<Response<Body>> + Send + Sync + 'static) {
        *lock(&self.rule) = Some(Box::new(rule));
    }

    /// Answers as always.
    pub fn obey(&self) {
        *lock(&self.rule) = None;
    }

    /// What has arrived, in order.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.seen).clone()
    }

    /// How often a method was used on what has this in its URI.
    pub fn count(&self, method: &str, part: &str) -> usize {
        lock(&self.seen).iter().filter(|seen| seen.method == method && seen.uri.contains(part)).count()
    }

    /// Forgets what has arrived.
    pub fn forget(&self) {
        lock(&self.seen).clear();
    }
}

impl Script for Recorder {
    fn reply(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        let seen = Seen {
            method: request.method().to_string(),
            uri: request.uri().to_string(),
            path: request.uri().path().to_owned(),
            headers: request.headers().clone(),
        };
        let reply = lock(&self.rule).as_ref().and_then(|rule| rule(&seen));
        lock(&self.seen).push(seen);
        reply
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").field("seen", &lock(&self.seen).len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The connection breaks.
    Cut,
    /// As it should.
    Clean,
    /// Never: nothing more comes.
    Hang,
}

struct Frames {
    frames: std::vec::IntoIter<Bytes>,
    pause: Duration,
    sleep: Pin<Box<tokio::time::Sleep>>,
    end: End,
}

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.sleep.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        match self.frames.next() {
            Some(bytes) => {
                let next = tokio::time::Instant::now() + self.pause;
                self.sleep.as_mut().reset(next);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            None => match self.end {
                End::Cut => Poll::Ready(Some(Err(io::Error::other("cut")))),
                End::Clean => Poll::Ready(None),
                End::Hang => Poll::Pending,
            },
        }
    }
}

/// A body that sends its frames with a pause before each, and then ends somehow.
pub fn frames(frames: Vec<Bytes>, pause: Duration, end: End) -> Body {
    let sleep = Box::pin(tokio::time::sleep(pause));
    Frames { frames: frames.into_iter(), pause, sleep, end }.boxed()
}

/// An empty reply.
pub fn status(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(full(Bytes::new()));
    *response.status_mut() = code;
    response
}

/// A reply with one more header, if the value can be one.
pub fn with_header(mut response: Response<Body>, name: &'static str, value: &str) -> Response<Body> {
    if let Ok(value) = HeaderValue::try_from(value) {
        response.headers_mut().append(name, value);
    }
    response
}

/// The part of a blob from `first` up to `end`, as the reply to a request for it.
pub fn part(body: Body, first: usize, end: usize, total: usize) -> Response<Body> {
    let mut response = Response::new(body);
    if first > 0 || end < total {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let last = end.saturating_sub(1);
    with_header(response, "content-range", &format!("bytes {first}-{last}/{total}"))
}
