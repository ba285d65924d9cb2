//! A client's HTTP request, byte by byte.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Host with port, and path, of a URL.
pub fn split(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").expect("an absolute URL");
    let (host, _) = rest.split_once('/').expect("a path");
    (host, &rest[host.len()..])
}

pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// What came behind the headers.
    pub rest: Vec<u8>,
}

impl Response {
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// Sends a request with `behind` directly behind it, and reads the answer's head.
pub async fn request(
    url: &str,
    method: &str,
    headers: &[(&str, &str)],
    behind: &[u8],
) -> (TcpStream, Response) {
    let (host, path) = split(url);
    let mut stream = TcpStream::connect(host).await.unwrap();
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += "\r\n";
    stream.write_all(&[text.as_bytes(), behind].concat()).await.unwrap();
    let head = async {
        let mut received = Vec::new();
        loop {
            if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = received.split_off(end + 4);
                return (received, rest);
            }
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0, "no answer: {}", String::from_utf8_lossy(&received));
            received.extend_from_slice(&buffer[..count]);
        }
    };
    let (head, rest) = tokio::time::timeout(Duration::from_secs(20), head).await.expect("an answer in time");
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    (stream, Response { status, headers, rest })
}
