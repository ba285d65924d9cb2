//! What a layer is compressed with, by its first bytes: media types lie.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

use crate::error::LayerProblem;

/// Largest window of a zstd frame, as a power of two: what `zstd` itself makes and takes without
/// being asked twice (128 MiB). A frame that wants more is a bomb.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What the longest magic number needs.
pub(crate) const MAGIC_BYTES: usize = 6;

/// Recognised formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Gzip,
    Zstd,
    Plain,
}

/// The uncompressed bytes of a stream.
pub(crate) struct Decoder<R: BufRead> {
    inner: Inner<R>,
}

enum Inner<R: BufRead> {
    Gzip(Box<MultiGzDecoder<R>>),
    Zstd(zstd::Decoder<'static, R>),
    Plain(R),
}

impl<R: BufRead> Decoder<R> {
    /// Looks at the beginning of a stream, of which [`MAGIC_BYTES`] must be at hand if there are as many, and chooses.
    pub(crate) fn new(mut source: R) -> Result<Self, LayerProblem> {
        let plain = |source| LayerProblem::Compression { format: "plain", source };
        let inner = match sniff(source.fill_buf().map_err(plain)?)? {
            // Gzip may come in members (RFC 1952 §2.2): eStargz and parallel compressors do that.
            Format::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(source))),
            Format::Zstd => {
                let zstd = |source| LayerProblem::Compression { format: "zstd", source };
                let mut decoder = zstd::Decoder::with_buffer(source).map_err(zstd)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(zstd)?;
                Inner::Zstd(decoder)
            }
            Format::Plain => Inner::Plain(source),
        };
        Ok(Self { inner })
    }

    /// Fills a buffer as far as the stream goes; less than full means the end.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, LayerProblem> {
        let mut filled = 0;
        while filled < buffer.len() {
            let rest = &mut buffer[filled..];
            let (format, read) = match &mut self.inner {
                Inner::Gzip(decoder) => ("gzip", decoder.read(rest)),
                Inner::Zstd(decoder) => ("zstd", decoder.read(rest)),
                Inner::Plain(source) => ("plain", source.read(rest)),
            };
            match read {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LayerProblem::Compression { format, source }),
            }
        }
        Ok(filled)
    }

    /// The stream beneath.
    pub(crate) fn into_source(self) -> R {
        match self.inner {
            Inner::Gzip(decoder) => decoder.into_inner(),
            Inner::Zstd(decoder) => decoder.finish(),
            Inner::Plain(source) => source,
        }
    }
}

fn sniff(start: &[u8]) -> Result<Format, LayerProblem> {
    Ok(match start {
        [0x1f, 0x8b, ..] => Format::Gzip,
        // A frame, or a skippable frame before one (RFC 8878 §3.1).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => return Err(LayerProblem::Unsupported("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => return Err(LayerProblem::Unsupported("xz")),
        [0x04, 0x22, 0x4d, 0x18, ..] => return Err(LayerProblem::Unsupported("lz4")),
        _ => Format::Plain,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    fn decoded(bytes: &[u8]) -> Result<Vec<u8>, LayerProblem> {
        // Small pieces, so that every boundary is met.
        let mut decoder = Decoder::new(io::BufReader::with_capacity(7, bytes))?;
        let mut all = Vec::new();
        let mut buffer = [0; 13];
        loop {
            let count = decoder.fill(&mut buffer)?;
            all.extend_from_slice(&buffer[..count]);
            if count < buffer.len() {
                return Ok(all);
            }
        }
    }

    #[test]
    fn formats_are_told_by_their_content() {
        let text = b"some text that is not very long".repeat(5);
        assert_eq!(decoded(&text).unwrap(), text);
        assert_eq!(decoded(&gzip(&text)).unwrap(), text);
        assert_eq!(decoded(&zstd(&text)).unwrap(), text);
        assert_eq!(decoded(b"").unwrap(), b"");
        assert!(matches!(decoded(b"BZh91AY"), Err(LayerProblem::Unsupported("bzip2"))));
        assert!(matches!(decoded(b"\xfd7zXZ\0\0"), Err(LayerProblem::Unsupported("xz"))));
    }

    #[test]
    fn members_and_frames_are_joined() {
        let twice = b"abcabc".repeat(2);
        assert_eq!(decoded(&[gzip(b"abcabc"), gzip(b""), gzip(b"abcabc")].concat()).unwrap(), twice);
        let skippable = [&[0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"xyz"].concat();
        let frames = [skippable.clone(), zstd(b"abcabc"), skippable, zstd(b"abcabc")].concat();
        assert_eq!(decoded(&frames).unwrap(), twice);
    }

    #[test]
    fn damage_is_noticed() {
        let text = b"some text that is not very long".repeat(50);
        for whole in [gzip(&text), zstd(&text)] {
            for cut in [whole.len() - 1, whole.len() / 2, 11] {
                let result = decoded(&whole[..cut]);
                assert!(matches!(result, Err(LayerProblem::Compression { .. })), "cut at {cut}");
            }
            let mut trailing = whole.clone();
            trailing.extend_from_slice(b"garbage");
            assert!(decoded(&trailing).is_err());
        }
        let mut flipped = gzip(&text);
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        assert!(decoded(&flipped).is_err(), "the checksum counts");
    }

    #[test]
    fn windows_are_limited() {
        // A frame header that asks for a window of 2^30 bytes (RFC 8878 §3.1.1.1.2).
        let bomb = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 0x01, 0x00, 0x00];
        let Err(LayerProblem::Compression { format: "zstd", source }) = decoded(&bomb) else {
            panic!("accepted")
        };
        assert!(source.to_string().contains("memory"), "{source}");
    }
}
