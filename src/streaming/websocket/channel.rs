//! Messages of the channel protocols: a channel's number, then bytes for it.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Padding is written, and taken with or without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The channel of v5 whose messages close another.
const CLOSE: u8 = 255;

/// How a message carries its channel and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// A byte with the number, then the bytes.
    Binary,
    /// As binary, and `[255, n]` closes channel n.
    BinaryWithClose,
    /// A digit, then base64.
    Base64,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelMessage<'a> {
    /// Bytes of a channel.
    Data {
        /// Its number.
        channel: u8,
        /// The bytes, maybe none.
        bytes: Cow<'a, [u8]>,
    },
    /// The client sends no more on a channel.
    Close {
        /// Its number.
        channel: u8,
    },
    /// A message without even a channel.
    Empty,
}

/// Why a message is none of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The channel of a base64 message is no digit.
    #[error("message for channel {first:#04x}, which is no digit")]
    NoDigit {
        /// The first byte.
        first: u8,
    },
    /// The rest of a base64 message is no base64.
    #[error("message that is no base64: {0}")]
    Base64(base64::DecodeError),
    /// A close message names no channel, or several.
    #[error("close message of {length} bytes")]
    Close {
        /// Its length.
        length: usize,
    },
}

/// Takes a client's message apart.
pub fn decode(encoding: Encoding, message: &[u8]) -> Result<ChannelMessage<'_>, ChannelError> {
    let Some((&first, rest)) = message.split_first() else { return Ok(ChannelMessage::Empty) };
    match encoding {
        Encoding::BinaryWithClose if first == CLOSE => match rest {
            [channel] => Ok(ChannelMessage::Close { channel: *channel }),
            _ => Err(ChannelError::Close { length: message.len() }),
        },
        Encoding::Binary | Encoding::BinaryWithClose => {
            Ok(ChannelMessage::Data { channel: first, bytes: rest.into() })
        }
        Encoding::Base64 if first.is_ascii_digit() => {
            let bytes = BASE64.decode(rest).map_err(ChannelError::Base64)?;
            Ok(ChannelMessage::Data { channel: first - b'0', bytes: bytes.into() })
        }
        Encoding::Base64 => Err(ChannelError::NoDigit { first }),
    }
}

/// The text of a base64 message; channels above 9 do not exist in that encoding.
pub(crate) fn base64_message(channel: u8, bytes: &[u8]) -> String {
    let mut text = String::with_capacity(1 + bytes.len().div_ceil(3) * 4);
    text.push(char::from(b'0'.saturating_add(channel)));
    BASE64.encode_string(bytes, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn messages_come_back(channel in 0u8..10, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let expected = Ok(ChannelMessage::Data { channel, bytes: bytes.clone().into() });
            let binary = [&[channel], &bytes[..]].concat();
            prop_assert_eq!(decode(Encoding::Binary, &binary), expected.clone());
            prop_assert_eq!(decode(Encoding::BinaryWithClose, &binary), expected.clone());
            let text = base64_message(channel, &bytes);
            prop_assert_eq!(decode(Encoding::Base64, text.as_bytes()), expected.clone());
            prop_assert_eq!(decode(Encoding::Base64, text.trim_end_matches('=').as_bytes()), expected);
        }

        #[test]
        fn any_message_is_taken_or_refused(message in prop::collection::vec(any::<u8>(), 0..100)) {
            for encoding in [Encoding::Binary, Encoding::BinaryWithClose, Encoding::Base64] {
                let _ = decode(encoding, &message);
            }
        }
    }

    #[test]
    fn close_is_of_v5_alone() {
        assert_eq!(decode(Encoding::BinaryWithClose, &[255, 0]), Ok(ChannelMessage::Close { channel: 0 }));
        assert_eq!(decode(Encoding::BinaryWithClose, &[255]), Err(ChannelError::Close { length: 1 }));
        assert_eq!(decode(Encoding::BinaryWithClose, &[255, 0, 1]), Err(ChannelError::Close { length: 3 }));
        let data = ChannelMessage::Data { channel: 255, bytes: [0].as_slice().into() };
        assert_eq!(decode(Encoding::Binary, &[255, 0]), Ok(data));
        assert_eq!(decode(Encoding::Base64, b"x"), Err(ChannelError::NoDigit { first: b'x' }));
        assert!(matches!(decode(Encoding::Base64, b"0*"), Err(ChannelError::Base64(_))));
        assert_eq!(decode(Encoding::Base64, b""), Ok(ChannelMessage::Empty));
    }
}
