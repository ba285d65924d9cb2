//! Terminal sizes, as clients send them: one JSON object after another.

use serde::Deserialize;

use crate::runtime::TerminalSize;

/// Longest object that is taken.
pub const MAX_LENGTH: usize = 1024;

/// What arrived is no size. Nothing after it can be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// No JSON, or JSON of something else.
    #[error("terminal size that is none: {reason}")]
    Json {
        /// Why.
        reason: String,
    },
    /// An object that does not end.
    #[error("terminal size longer than {MAX_LENGTH} bytes")]
    TooLong,
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width", default)]
    width: u16,
    #[serde(rename = "Height", alias = "height", default)]
    height: u16,
}

/// Finds the sizes in a stream's bytes, however they are cut.
#[derive(Debug, Default)]
pub struct SizeDecoder {
    held: Vec<u8>,
}

impl SizeDecoder {
    /// A decoder at the start of a stream.
    pub fn new() -> SizeDecoder {
        SizeDecoder::default()
    }

    /// The last size that `bytes` complete. A size with a side of 0 is none.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Option<TerminalSize>, ResizeError> {
        let mut last = None;
        for piece in bytes.chunks(MAX_LENGTH) {
            self.held.extend_from_slice(piece);
            last = self.complete()?.or(last);
            if self.held.len() > MAX_LENGTH {
                return Err(ResizeError::TooLong);
            }
        }
        Ok(last)
    }

    fn complete(&mut self) -> Result<Option<TerminalSize>, ResizeError> {
        let mut last = None;
        let mut sizes = serde_json::Deserializer::from_slice(&self.held).into_iter::<Size>();
        let mut used = 0;
        for size in &mut sizes {
            match size {
                Ok(Size { width: 0, .. } | Size { height: 0, .. }) => {}
                Ok(Size { width, height }) => last = Some(TerminalSize { width, height }),
                Err(error) if error.is_eof() => break,
                Err(error) => return Err(ResizeError::Json { reason: error.to_string() }),
            }
            used += 1;
        }
        // After an unfinished object the offset is where that began.
        let end = if used == 0 && last.is_none() {
            sizes.byte_offset().min(self.held.len())
        } else {
            sizes.byte_offset()
        };
        self.held.drain(..end);
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn last(pieces: &[&[u8]]) -> Result<Option<TerminalSize>, ResizeError> {
        let mut decoder = SizeDecoder::new();
        let mut last = None;
        for piece in pieces {
            last = decoder.decode(piece)?.or(last);
        }
        Ok(last)
    }

    proptest! {
        #[test]
        fn last_size_is_found_however_it_is_cut(
            sizes in prop::collection::vec((any::<u16>(), any::<u16>()), 1..20),
            cut in any::<usize>(),
            other in any::<usize>(),
        ) {
            let text: String =
                sizes.iter().map(|(w, h)| format!("{{\"Width\":{w},\"Height\":{h}}}\n")).collect();
            let expected = sizes.iter().rev().find(|(w, h)| *w != 0 && *h != 0)
                .map(|(width, height)| TerminalSize { width: *width, height: *height });
            let (a, b) = (cut % (text.len() + 1), other % (text.len() + 1));
            let (a, b) = (a.min(b), a.max(b));
            let bytes = text.as_bytes();
            prop_assert_eq!(last(&[&bytes[..a], &bytes[a..b], &bytes[b..]]), Ok(expected));
            prop_assert_eq!(last(&bytes.chunks(1).collect::<Vec<_>>()), Ok(expected));
        }

        #[test]
        fn any_text_gives_a_size_or_an_error(text in "[{}\":,a-zA-Z0-9 ]{0,200}") {
            let _ = last(&[text.as_bytes()]);
        }
    }

    #[test]
    fn what_is_no_size_is_an_error() {
        assert_eq!(
            last(&[b"{\"Width\":80,\"Height\":24}{\"Width\":0,\"Height\":1}"]).unwrap().unwrap().width,
            80
        );
        assert!(matches!(last(&[b"[1,2]x"]), Err(ResizeError::Json { .. })));
        assert!(matches!(last(&[b"{\"Width\":65536,\"Height\":1}"]), Err(ResizeError::Json { .. })));
        assert!(matches!(last(&[b"{\"Width\":-1,\"Height\":1}"]), Err(ResizeError::Json { .. })));
        let endless = [b"{\"Width\":".as_slice(), &[b' '; 4 * MAX_LENGTH]].concat();
        assert_eq!(last(&[&endless]), Err(ResizeError::TooLong));
        let spaces = vec![b' '; 16 * MAX_LENGTH];
        assert_eq!(last(&[&spaces, b"{\"Width\":1,\"Height\":2}"]).unwrap().unwrap().height, 2);
    }
}
