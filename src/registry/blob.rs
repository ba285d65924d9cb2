//! A blob as a stream of bytes that survives cuts, stalls and servers without ranges.
//!
//! The bytes come in order and each one once, whatever happens beneath: after a cut the stream asks
//! again from where it was, of any server that has the repository. `206` must name that very
//! position; `200` to a ranged request means that ranges are not supported, and the known part is
//! skipped. The stream checks the length; the digest is the consumer's, who sees every byte anyway.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes};
use http::header::CONTENT_RANGE;
use http::{Method, StatusCode};
use reqwest::Response;

use crate::client::{Inner, Need};
use crate::error::{Error, Problem};
use crate::exchange::{Span, connection_problem};
use crate::manifest::Descriptor;
use crate::retry;

/// Less than this within the stall time-out is as good as nothing: a server that sends a byte a
/// second holds a pull up just as well.
const PROGRESS_MIN: u64 = 16 << 10;
/// This much since the last reconnection earns a fresh set of attempts.
const PROGRESS_GOOD: u64 = 1 << 20;

/// A blob on its way.
pub struct BlobStream {
    inner: Arc<Inner>,
    descriptor: Descriptor,
    received: u64,
    /// Where it ends, which may be before the blob does.
    end: u64,
    body: Option<Body>,
    server: String,
    host: String,
    /// Reconnections since the last good progress.
    attempt: u32,
    /// Bytes since the last reconnection.
    progress: u64,
}

struct Body {
    response: Response,
    /// Bytes at the start that were received before.
    skip: u64,
    window_start: Instant,
    window_bytes: u64,
}

impl BlobStream {
    pub(crate) fn new(inner: Arc<Inner>, descriptor: &Descriptor, part: Range<u64>) -> Self {
        let host = inner.reference.registry().to_owned();
        Self {
            inner,
            descriptor: descriptor.clone(),
            received: part.start,
            end: part.end.min(descriptor.size),
            body: None,
            server: host.clone(),
            host,
            attempt: 0,
            progress: 0,
        }
    }

    /// How much of the blob has been delivered, with the offset it was opened at.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The server that delivers.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The registry server that was asked, which may have redirected to another one.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The next bytes, or nothing at the end, when exactly what was asked for has been delivered.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let mut body = match self.body.take() {
                Some(body) => body,
                None if self.received >= self.end => return Ok(None),
                None => self.open().await?,
            };
            match self.next(&mut body).await {
                Ok(Some(chunk)) => {
                    self.body = Some(body);
                    return Ok(Some(chunk));
                }
                Ok(None) => return Ok(None),
                Err(problem) if problem.is_transient() => self.back_off(problem).await?,
                Err(problem) => return Err(self.error(problem)),
            }
        }
    }

    async fn next(&mut self, body: &mut Body) -> Result<Option<Bytes>, Problem> {
        let size = self.end;
        let stall = self.inner.shared.options.stall_timeout;
        let connect = self.inner.shared.options.connect_timeout;
        loop {
            let left = stall.saturating_sub(body.window_start.elapsed());
            let Ok(chunk) = tokio::time::timeout(left, body.response.chunk()).await else {
                return Err(Problem::Timeout { what: "progress", after: stall });
            };
            let chunk = match chunk {
                // A body that breaks off is the common case of a bad network: say how far it came.
                Err(error) if error.is_body() || error.is_decode() || error.is_request() => {
                    return Err(Problem::Cut { received: self.received, expected: size });
                }
                Err(error) => return Err(connection_problem(error, connect)),
                Ok(chunk) => chunk,
            };
            let Some(mut chunk) = chunk else {
                return if self.received == size {
                    Ok(None)
                } else {
                    Err(Problem::Cut { received: self.received, expected: size })
                };
            };
            body.window_bytes += chunk.len() as u64;
            if body.window_bytes >= PROGRESS_MIN {
                body.window_start = Instant::now();
                body.window_bytes = 0;
            }
            if body.skip > 0 {
                let known = usize::try_from(body.skip).unwrap_or(usize::MAX).min(chunk.len());
                chunk.advance(known);
                body.skip -= known as u64;
            }
            if chunk.is_empty() {
                continue;
            }
            let length = chunk.len() as u64;
            if length > size - self.received {
                return Err(Problem::Length { expected: size, actual: self.received + length });
            }
            self.received += length;
            self.progress += length;
            return Ok(Some(chunk));
        }
    }

    /// Asks for the rest.
    async fn open(&mut self) -> Result<Body, Error> {
        let (size, from) = (self.descriptor.size, self.received);
        let part_end = Some(self.end).filter(|end| *end < size);
        let span = Span { from, end: part_end };
        let name = self.descriptor.digest.to_string();
        let reply = self.inner.ask(Need::Pull, &Method::GET, "blobs", &name, "*/*", span).await?;
        self.server = reply.server;
        self.host = reply.host;
        let response = reply.response;
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                match range.and_then(parse_content_range) {
                    Some((start, _, total)) if start == from && total.is_none_or(|total| total == size) => 0,
                    _ => {
                        let range = range.unwrap_or_default().chars().take(80).collect();
                        return Err(self.error(Problem::Range(range)));
                    }
                }
            }
            // All of it again for each part would be worse than one part after the other.
            _ if part_end.is_some() => return Err(self.error(Problem::Range("everything".to_owned()))),
            _ => from,
        };
        if let Some(length) = response.content_length()
            && length != self.end - from + skip
        {
            return Err(self.error(Problem::Length { expected: self.end - from + skip, actual: length }));
        }
        self.progress = 0;
        Ok(Body { response, skip, window_start: Instant::now(), window_bytes: 0 })
    }

    async fn back_off(&mut self, problem: Problem) -> Result<(), Error> {
        let options = &self.inner.shared.options;
        if self.progress >= PROGRESS_GOOD {
            self.attempt = 0;
        }
        self.attempt += 1;
        if self.attempt >= options.attempts {
            return Err(self.error(problem));
        }
        tracing::debug!(
            digest = %self.descriptor.digest,
            received = self.received,
            attempt = self.attempt,
            error = &problem as &dyn std::error::Error,
            "transfer will be resumed"
        );
        // The first time at once: most cuts are a server closing an old connection.
        if self.attempt > 1
            && let Some(wait) = retry::wait(self.attempt - 1, options.backoff, None)
        {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    fn error(&self, problem: Problem) -> Error {
        Error::exchange(&self.inner.reference, &self.host, problem)
    }
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream")
            .field("digest", &self.descriptor.digest)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

/// `bytes 5-9/10` or `bytes 5-9/*` (RFC 9110 §14.4).
fn parse_content_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let total = match total {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some((start, end, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 9, Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, 9, None)));
        for bad in ["", "bytes", "bytes */10", "bytes 9-5/10", "lines 1-2/3", "bytes -5-9/10", "bytes 1-2/x"]
        {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
