//! A SPDY client.

use std::collections::HashMap;
use std::time::Duration;

use pinnace_streaming::spdy::frame::{self, Decoder, Frame};
use pinnace_streaming::spdy::header_block::{HeaderDecoder, HeaderEncoder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::http;

const TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Default, Clone)]
pub struct Received {
    pub data: Vec<u8>,
    pub replied: bool,
    pub finished: bool,
    pub reset: Option<u32>,
}

pub struct Spdy {
    from: Box<dyn AsyncRead + Send + Unpin>,
    to: Box<dyn AsyncWrite + Send + Unpin>,
    decoder: Decoder,
    headers: HeaderDecoder,
    encoder: HeaderEncoder,
    next: u32,
    pub streams: HashMap<u32, Received>,
    pub pings: Vec<u32>,
    pub went_away: bool,
    pub closed: bool,
    /// Streams in the order in which something was last heard of them.
    pub heard: Vec<u32>,
}

impl Spdy {
    pub fn over(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Spdy {
        let (from, to) = tokio::io::split(io);
        Spdy {
            from: Box::new(from),
            to: Box::new(to),
            decoder: Decoder::new(),
            headers: HeaderDecoder::new(),
            encoder: HeaderEncoder::new(),
            next: 1,
            streams: HashMap::new(),
            pings: Vec::new(),
            went_away: false,
            closed: false,
            heard: Vec::new(),
        }
    }

    pub async fn connect(url: &str, protocol: &str) -> Spdy {
        let headers =
            [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocol)];
        let (stream, response) = http::request(url, "POST", &headers, b"").await;
        assert_eq!(response.status, 101);
        assert_eq!(response.values("x-stream-protocol-version"), [protocol]);
        assert!(response.rest.is_empty());
        Spdy::over(stream)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.to.write_all(bytes).await.unwrap();
        self.to.flush().await.unwrap();
    }

    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let block = self.encoder.encode(headers);
        self.streams.insert(id, Received::default());
        self.send(&frame::syn_stream(id, false, &block)).await;
        id
    }

    pub async fn open_type(&mut self, kind: &str) -> u32 {
        self.open(&[("streamtype", kind)]).await
    }

    pub async fn data(&mut self, stream: u32, bytes: &[u8], finish: bool) {
        let header = frame::data_header(stream, bytes.len(), finish);
        self.send(&[&header, bytes].concat()).await;
    }

    /// Reads until a condition holds.
    pub async fn until(&mut self, what: &str, mut holds: impl FnMut(&Spdy) -> bool) {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        let mut buffer = vec![0; 256 * 1024];
        while !holds(self) {
            assert!(!self.closed, "closed before: {what}; {:?}", self.summary());
            let count = tokio::time::timeout_at(deadline, self.from.read(&mut buffer))
                .await
                .unwrap_or_else(|_| panic!("not in time: {what}; {:?}", self.summary()))
                .unwrap_or(0);
            self.closed = count == 0;
            let mut input = &buffer[..count];
            while let Some(frame) = self.decoder.decode(&mut input).unwrap() {
                let stream = match &frame {
                    Frame::Data { stream, .. }
                    | Frame::SynReply { stream, .. }
                    | Frame::Reset { stream, .. } => *stream,
                    _ => 0,
                };
                self.heard.push(stream);
                let known = self.streams.entry(stream).or_default();
                match frame {
                    Frame::Data { bytes, finish, .. } => {
                        assert!(!known.finished, "data after the end of stream {stream}");
                        known.data.extend_from_slice(bytes);
                        known.finished = finish;
                    }
                    Frame::SynReply { block, .. } => {
                        assert_eq!(self.headers.decode(&block).unwrap().iter().count(), 0);
                        known.replied = true;
                    }
                    Frame::Reset { status, .. } => known.reset = Some(status),
                    Frame::Ping { id } => self.pings.push(id),
                    Frame::GoAway { .. } => self.went_away = true,
                    other => panic!("{other:?} from a server"),
                }
            }
        }
    }

    fn summary(&self) -> Vec<String> {
        let mut all: Vec<_> = self.streams.iter().collect();
        all.sort_by_key(|(id, _)| **id);
        all.into_iter()
            .map(|(id, s)| {
                format!("{id}: {} bytes, {} {} {:?}", s.data.len(), s.replied, s.finished, s.reset)
            })
            .collect()
    }

    pub async fn until_closed(&mut self) {
        self.until("close", |client| client.closed).await;
    }

    pub fn text(&self, stream: u32) -> String {
        String::from_utf8_lossy(&self.streams[&stream].data).into_owned()
    }
}
