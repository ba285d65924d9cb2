//! What a file is compressed with, by its first bytes.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};

/// As `zstd` itself takes it without being asked twice.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A stream as it was before compression.
pub struct Reader<'a>(Box<dyn Read + Send + 'a>);

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

/// Looks at the beginning of a stream and chooses. Says whether it is compressed.
pub fn decoder<'a>(mut source: impl BufRead + Send + 'a) -> Result<(Reader<'a>, bool)> {
    let start = source.fill_buf().map_err(Error::Read)?;
    let reader: Box<dyn Read + Send + 'a> = match start {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(source)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(source).map_err(Error::Read)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(Error::Read)?;
            Box::new(decoder)
        }
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => return Err(Error::Compression("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(Error::Compression("xz")),
        _ => return Ok((Reader(Box::new(source)), false)),
    };
    Ok((Reader(reader), true))
}
