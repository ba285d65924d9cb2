//! Container logs as the kubelet reads them: `TIME STREAM TAG TEXT`, RFC 3339 with nanoseconds, `P` for a piece of
//! a line that goes on, `F` for its end.

use std::fs;
use std::path::Path;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As written.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line goes on in the next entry of the stream.
    pub partial: bool,
    /// What the container wrote, without the newline.
    pub text: Vec<u8>,
}

/// Reads a log; anything that is not in the format is an error that names the line.
pub fn read(path: &Path) -> Result<Vec<Entry>, String> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let Some(lines) = bytes.strip_suffix(b"\n") else {
        return if bytes.is_empty() { Ok(Vec::new()) } else { Err("the last entry has no newline".into()) };
    };
    let entries = lines.split(|&byte| byte == b'\n').enumerate();
    entries
        .map(|(number, line)| {
            parse(line).ok_or_else(|| format!("entry {}: {:?}", number + 1, String::from_utf8_lossy(line)))
        })
        .collect()
}

/// Everything a container wrote to a stream, put together again.
pub fn stream(entries: &[Entry], stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries.iter().filter(|entry| entry.stream == stream) {
        bytes.extend_from_slice(&entry.text);
        if !entry.partial {
            bytes.push(b'\n');
        }
    }
    bytes
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?.to_string();
    let stream = std::str::from_utf8(fields.next()?).ok()?.to_string();
    let tag = fields.next()?;
    let text = fields.next()?.to_vec();
    let partial = match tag {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    (is_rfc3339_nano(&time) && ["stdout", "stderr"].contains(&&*stream)).then_some(Entry {
        time,
        stream,
        partial,
        text,
    })
}

/// `2006-01-02T15:04:05.999999999Z` or with an offset; the fraction may have 1 to 9 digits or be absent.
fn is_rfc3339_nano(time: &str) -> bool {
    let matches = |text: &str, pattern: &str| {
        text.len() == pattern.len()
            && text
                .bytes()
                .zip(pattern.bytes())
                .all(|(c, p)| if p == b'0' { c.is_ascii_digit() } else { c == p })
    };
    let Some((seconds, rest)) = time.split_at_checked(19) else { return false };
    let digits = rest.strip_prefix('.').map_or(0, |rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    let zone = if rest.starts_with('.') { &rest[1 + digits..] } else { rest };
    matches(seconds, "0000-00-00T00:00:00")
        && (!rest.starts_with('.') || (1..=9).contains(&digits))
        && (zone == "Z" || matches(zone, "+00:00") || matches(zone, "-00:00"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_kubelet_accepts() {
        let entry = parse(b"2026-01-02T03:04:05.000000006Z stdout P a b  c").unwrap();
        assert_eq!((entry.partial, entry.text), (true, b"a b  c".to_vec()));
        assert!(parse(b"2026-01-02T03:04:05.123+01:00 stderr F ").is_some());
        assert!(parse(b"2026-01-02T03:04:05Z stdout F x").is_some());
    }

    #[test]
    fn refuses_everything_else() {
        for line in [
            "2026-01-02 03:04:05Z stdout F x",
            "2026-01-02T03:04:05.Z stdout F x",
            "2026-01-02T03:04:05.0123456789Z stdout F x",
            "2026-01-02T03:04:05Z stdin F x",
            "2026-01-02T03:04:05Z stdout X x",
            "2026-01-02T03:04:05Z stdout F",
            "",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn puts_lines_together() {
        let entry = |partial, text: &str| Entry {
            time: String::new(),
            stream: "stdout".into(),
            partial,
            text: text.into(),
        };
        let entries = [entry(true, "a"), entry(false, "b"), entry(true, "c")];
        assert_eq!(stream(&entries, "stdout"), b"ab\nc");
    }
}
