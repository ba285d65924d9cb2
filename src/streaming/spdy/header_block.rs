//! Header blocks: names and values, compressed with one context for a whole direction of a connection.
//!
//! Our own blocks are stored rather than compressed: all that a server sends is the empty block of a `SYN_REPLY`, for
//! which a compressor would hold a quarter of a megabyte per connection.

use std::fmt;

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// Longest block that is taken, decompressed.
pub const MAX_BLOCK_LENGTH: usize = 64 * 1024;

/// Most headers that a block may have.
pub const MAX_HEADERS: usize = 128;

/// Names and values, in the block's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value under a name in lower case.
    pub fn value(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(other, _)| other == name)?;
        value.split('\0').next()
    }

    /// All names and values; several values of a name are joined by NUL.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

/// Why a header block is none. The connection's compression cannot go on after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// What was compressed cannot be decompressed.
    #[error("header block cannot be decompressed: {reason}")]
    Compression {
        /// What the decompressor says.
        reason: String,
    },
    /// Decompressed, it is too long.
    #[error("header block longer than {MAX_BLOCK_LENGTH} bytes")]
    TooLong,
    /// It names more headers than any client has.
    #[error("header block with {count} headers, at most {MAX_HEADERS} are taken")]
    TooMany {
        /// How many.
        count: u32,
    },
    /// It ends inside of a header, or goes on after the last.
    #[error("header block of another length than its headers")]
    Length,
    /// A name is empty, has upper case or comes twice.
    #[error("header name {name:?} is empty, not in lower case, or comes twice")]
    Name {
        /// The name.
        name: String,
    },
    /// A name or value is no text.
    #[error("header that is not UTF-8")]
    Text,
}

/// Takes the blocks of one direction of a connection apart.
pub struct HeaderDecoder {
    inflate: Decompress,
}

impl fmt::Debug for HeaderDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeaderDecoder").finish_non_exhaustive()
    }
}

impl Default for HeaderDecoder {
    fn default() -> HeaderDecoder {
        HeaderDecoder::new()
    }
}

impl HeaderDecoder {
    /// A decoder at the start of a connection.
    pub fn new() -> HeaderDecoder {
        HeaderDecoder { inflate: Decompress::new(true) }
    }

    /// The headers of the next block.
    pub fn decode(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.decompress(block)?)
    }

    fn decompress(&mut self, mut block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let failed = |reason: &dyn fmt::Display| HeaderError::Compression { reason: reason.to_string() };
        let mut plain = Vec::new();
        let mut piece = [0; 2048];
        loop {
            let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
            let outcome = self.inflate.decompress(block, &mut piece, FlushDecompress::Sync);
            let taken = usize::try_from(self.inflate.total_in() - read).unwrap_or(usize::MAX);
            let given = usize::try_from(self.inflate.total_out() - written).unwrap_or(usize::MAX);
            block = block.get(taken..).unwrap_or_default();
            plain.extend_from_slice(piece.get(..given).unwrap_or_default());
            if plain.len() > MAX_BLOCK_LENGTH {
                return Err(HeaderError::TooLong);
            }
            match outcome {
                Ok(Status::StreamEnd) => return Err(failed(&"the compressed stream ends")),
                Ok(_) if given == piece.len() => {}
                Ok(_) if block.is_empty() => return Ok(plain),
                Ok(_) if taken == 0 && given == 0 => return Err(failed(&"no progress")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&DICTIONARY).map_err(|error| failed(&error))?;
                }
                Err(error) => return Err(failed(&error)),
            }
        }
    }
}

/// The headers of a decompressed block.
pub fn parse(mut plain: &[u8]) -> Result<Headers, HeaderError> {
    let count = number(&mut plain)?;
    if usize::try_from(count).map_or(true, |count| count > MAX_HEADERS) {
        return Err(HeaderError::TooMany { count });
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let name = text(&mut plain)?;
        let value = text(&mut plain)?;
        if name.is_empty()
            || name.bytes().any(|byte| byte.is_ascii_uppercase())
            || headers.iter().any(|(other, _)| other == name)
        {
            return Err(HeaderError::Name { name: name.chars().take(64).collect() });
        }
        headers.0.push((name.to_owned(), value.to_owned()));
    }
    if plain.is_empty() { Ok(headers) } else { Err(HeaderError::Length) }
}

fn number(plain: &mut &[u8]) -> Result<u32, HeaderError> {
    let (bytes, rest) = plain.split_first_chunk::<4>().ok_or(HeaderError::Length)?;
    *plain = rest;
    Ok(u32::from_be_bytes(*bytes))
}

fn text<'a>(plain: &mut &'a [u8]) -> Result<&'a str, HeaderError> {
    let length = usize::try_from(number(plain)?).map_err(|_| HeaderError::Length)?;
    let (bytes, rest) = plain.split_at_checked(length).ok_or(HeaderError::Length)?;
    *plain = rest;
    std::str::from_utf8(bytes).map_err(|_| HeaderError::Text)
}

/// A block before its compression.
pub fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let mut block = length(headers.len()).to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend_from_slice(&length(text.len()));
        block.extend_from_slice(text.as_bytes());
    }
    block
}

/// Makes the blocks of one direction of a connection.
#[derive(Debug, Default)]
pub struct HeaderEncoder {
    started: bool,
}

impl HeaderEncoder {
    /// An encoder at the start of a connection.
    pub fn new() -> HeaderEncoder {
        HeaderEncoder::default()
    }

    /// The next block, stored.
    pub fn encode(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let plain = plain(headers);
        let mut block = Vec::with_capacity(plain.len() + 16);
        if !self.started {
            self.started = true;
            // zlib (RFC 1950): deflate with a window of 32 KiB, dictionary announced, and divisible by 31.
            block.extend_from_slice(&[0x78, 0x20]);
            block.extend_from_slice(&0xe3c6_a7c2u32.to_be_bytes());
        }
        for piece in plain.chunks(usize::from(u16::MAX)) {
            let length = u16::try_from(piece.len()).unwrap_or(u16::MAX);
            block.push(0);
            block.extend_from_slice(&length.to_le_bytes());
            block.extend_from_slice(&(!length).to_le_bytes());
            block.extend_from_slice(piece);
        }
        // An empty block, as after a flush: inflaters give out what they hold when they see it, without reading on.
        block.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        block
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    /// A compressor as clients have it.
    struct Client(Compress);

    impl Client {
        fn new() -> Client {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&DICTIONARY).unwrap();
            Client(compress)
        }

        fn compress(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut block = Vec::with_capacity(plain.len() + 1024);
            self.0.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
            assert!(block.len() < block.capacity());
            block
        }
    }

    prop_compose! {
        fn some_headers()(headers in prop::collection::btree_map("[a-z-]{1,20}", "[ -~\0]{0,60}", 0..20))
            -> Vec<(String, String)> { headers.into_iter().collect() }
    }

    fn borrowed(headers: &[(String, String)]) -> Vec<(&str, &str)> {
        headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    proptest! {
        #[test]
        fn headers_come_back_through_one_context(blocks in prop::collection::vec(some_headers(), 1..6)) {
            let (mut client, mut encoder) = (Client::new(), HeaderEncoder::new());
            let (mut compressed, mut stored) = (HeaderDecoder::new(), HeaderDecoder::new());
            for headers in blocks {
                let block = client.compress(&plain(&borrowed(&headers)));
                prop_assert_eq!(compressed.decode(&block), Ok(Headers(headers.clone())));
                let block = encoder.encode(&borrowed(&headers));
                prop_assert_eq!(stored.decode(&block), Ok(Headers(headers)));
            }
        }

        #[test]
        fn any_block_gives_headers_or_an_error(
            plain in prop::collection::vec(prop_oneof![4 => Just(0u8), 1 => 0u8..4, 1 => any::<u8>()], 0..200),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = parse(&plain);
            let _ = HeaderDecoder::new().decode(&Client::new().compress(&plain));
            let _ = HeaderDecoder::new().decode(&noise);
        }
    }

    #[test]
    fn a_block_that_grows_without_end_is_refused() {
        let block = Client::new().compress(&vec![0; 8 << 20]);
        assert!(block.len() < 16 * 1024);
        assert_eq!(HeaderDecoder::new().decode(&block), Err(HeaderError::TooLong));
    }

    #[test]
    fn blocks_that_are_not_what_they_say_are_refused() {
        let many: Vec<_> = (0..129).map(|n| (format!("n{n}"), String::new())).collect();
        assert_eq!(parse(&plain(&borrowed(&many))), Err(HeaderError::TooMany { count: 129 }));
        assert_eq!(parse(&u32::MAX.to_be_bytes()), Err(HeaderError::TooMany { count: u32::MAX }));
        assert_eq!(parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]), Err(HeaderError::Length));
        assert_eq!(parse(&[0, 0, 0, 0, 0]), Err(HeaderError::Length));
        assert!(matches!(parse(&plain(&[("Port", "1")])), Err(HeaderError::Name { .. })));
        assert!(matches!(parse(&plain(&[("port", "1"), ("port", "2")])), Err(HeaderError::Name { .. })));
        assert_eq!(parse(&plain(&[("port", "1\x002")])).unwrap().value("port"), Some("1"));
        let mut other = Compress::new(Compression::best(), true);
        other.set_dictionary(b"another dictionary").unwrap();
        let mut block = Vec::with_capacity(100);
        other.compress_vec(&plain(&[]), &mut block, FlushCompress::Sync).unwrap();
        assert!(matches!(HeaderDecoder::new().decode(&block), Err(HeaderError::Compression { .. })));
    }
}
