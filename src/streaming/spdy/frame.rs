//! Frames: bytes to [`Frame`]s as they arrive, and back.
//!
//! ```text
//! control  1 | version 3 (15 bits) | type (16) | flags (8) | length (24)
//! data     0 | stream (31)                     | flags (8) | length (24)
//! ```

use std::mem;

/// Length of every frame's header.
pub const HEADER_LENGTH: usize = 8;

/// Longest control frame that is taken; a longer one ends the connection before a byte of it is kept. Data frames
/// may have any length, because they are passed on in pieces.
pub const MAX_CONTROL_LENGTH: usize = 64 * 1024;

/// Status of `RST_STREAM`: the stream breaks the protocol.
pub const PROTOCOL_ERROR: u32 = 1;
/// Status of `RST_STREAM`: the stream is not wanted.
pub const REFUSED_STREAM: u32 = 3;
/// Status of `RST_STREAM`: the stream is no longer wanted.
pub const CANCEL: u32 = 5;

const VERSION: u16 = 3;
const CONTROL: u8 = 0x80;
const FLAG_FINISH: u8 = 0x01;
const FLAG_UNIDIRECTIONAL: u8 = 0x02;
const STREAM_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// One frame, or one piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The peer opens a stream.
    SynStream {
        /// Its number.
        stream: u32,
        /// The peer will send nothing on it.
        finish: bool,
        /// The peer wants nothing on it.
        unidirectional: bool,
        /// Its compressed headers.
        block: Vec<u8>,
    },
    /// The peer accepts a stream.
    SynReply {
        /// Its number.
        stream: u32,
        /// The peer will send nothing on it.
        finish: bool,
        /// Compressed headers.
        block: Vec<u8>,
    },
    /// More headers of a stream.
    Headers {
        /// Its number.
        stream: u32,
        /// The peer will send nothing more on it.
        finish: bool,
        /// Compressed headers.
        block: Vec<u8>,
    },
    /// A stream ends in both directions at once.
    Reset {
        /// Its number.
        stream: u32,
        /// Why.
        status: u32,
    },
    /// To be echoed.
    Ping {
        /// Odd from a client.
        id: u32,
    },
    /// The peer opens no more streams.
    GoAway {
        /// The last stream that it took notice of.
        last_good_stream: u32,
        /// Why.
        status: u32,
    },
    /// Bytes of a stream.
    Data {
        /// Its number.
        stream: u32,
        /// What has arrived of the frame, not all of it if it is long.
        bytes: &'a [u8],
        /// These are the stream's last bytes.
        finish: bool,
    },
}

/// Why bytes are no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A control frame of another SPDY.
    #[error("control frame of SPDY version {version}")]
    Version {
        /// Its version.
        version: u16,
    },
    /// A control frame longer than any sensible one.
    #[error("control frame of type {kind} with {length} bytes, at most {MAX_CONTROL_LENGTH} are taken")]
    TooLong {
        /// Its type.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// A control frame too short, or of another length than its type has.
    #[error("control frame of type {kind} with {length} bytes")]
    Length {
        /// Its type.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// Stream 0 does not exist.
    #[error("frame for stream 0")]
    StreamZero,
}

/// Takes a peer's bytes apart.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Start of a header or of a control frame.
    held: Vec<u8>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Header,
    Control {
        kind: u16,
        flags: u8,
        length: usize,
    },
    Skip {
        left: usize,
    },
    Data {
        stream: u32,
        finish: bool,
        left: usize,
    },
}

impl Decoder {
    /// A decoder at the start of a connection.
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// The next frame of `input`, which moves on; `None` when more input is needed. After an error the connection
    /// cannot go on.
    pub fn decode<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Frame<'a>>, FrameError> {
        loop {
            match self.state {
                State::Header => {
                    if !self.hold(HEADER_LENGTH, input) {
                        return Ok(None);
                    }
                    self.state = header(&self.held)?;
                    self.held.clear();
                }
                State::Control { kind, flags, length } => {
                    if !self.hold(length, input) {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    return control(kind, flags, mem::take(&mut self.held)).map(Some);
                }
                State::Skip { left } => {
                    let taken = left.min(input.len());
                    *input = &input[taken..];
                    if taken < left {
                        self.state = State::Skip { left: left - taken };
                        return Ok(None);
                    }
                    self.state = State::Header;
                }
                State::Data { stream, finish, left } => {
                    if input.is_empty() && left > 0 {
                        return Ok(None);
                    }
                    let (bytes, rest) = input.split_at(left.min(input.len()));
                    *input = rest;
                    let left = left - bytes.len();
                    self.state = if left == 0 { State::Header } else { State::Data { stream, finish, left } };
                    return Ok(Some(Frame::Data { stream, bytes, finish: finish && left == 0 }));
                }
            }
        }
    }

    /// Holds `length` bytes in all; `false` when the input is used up before.
    fn hold(&mut self, length: usize, input: &mut &[u8]) -> bool {
        let (bytes, rest) = input.split_at((length - self.held.len()).min(input.len()));
        self.held.extend_from_slice(bytes);
        *input = rest;
        self.held.len() == length
    }
}

/// What follows a header.
fn header(bytes: &[u8]) -> Result<State, FrameError> {
    let first = number(bytes);
    let (flags, length) = (bytes[4], usize_of(number(&bytes[4..]) & 0x00ff_ffff));
    if bytes[0] & CONTROL == 0 {
        if first == 0 {
            return Err(FrameError::StreamZero);
        }
        return Ok(State::Data { stream: first, finish: flags & FLAG_FINISH != 0, left: length });
    }
    let version = u16::from_be_bytes([bytes[0] & !CONTROL, bytes[1]]);
    let kind = u16::from_be_bytes([bytes[2], bytes[3]]);
    if version != VERSION {
        return Err(FrameError::Version { version });
    }
    let fits = match kind {
        SYN_STREAM => length >= 10,
        SYN_REPLY | HEADERS => length >= 4,
        RST_STREAM | GOAWAY => length == 8,
        PING => length == 4,
        _ => return Ok(State::Skip { left: length }),
    };
    if length > MAX_CONTROL_LENGTH {
        return Err(FrameError::TooLong { kind, length });
    }
    if !fits {
        return Err(FrameError::Length { kind, length });
    }
    Ok(State::Control { kind, flags, length })
}

/// A control frame whose length its header has proved right.
fn control(kind: u16, flags: u8, mut body: Vec<u8>) -> Result<Frame<'static>, FrameError> {
    let finish = flags & FLAG_FINISH != 0;
    let first = number(&body);
    let stream = first & STREAM_MASK;
    if stream == 0 && matches!(kind, SYN_STREAM | SYN_REPLY | HEADERS | RST_STREAM) {
        return Err(FrameError::StreamZero);
    }
    Ok(match kind {
        SYN_STREAM => {
            let block = body.split_off(10);
            Frame::SynStream { stream, finish, unidirectional: flags & FLAG_UNIDIRECTIONAL != 0, block }
        }
        SYN_REPLY => Frame::SynReply { stream, finish, block: body.split_off(4) },
        HEADERS => Frame::Headers { stream, finish, block: body.split_off(4) },
        RST_STREAM => Frame::Reset { stream, status: number(&body[4..]) },
        PING => Frame::Ping { id: first },
        _ => Frame::GoAway { last_good_stream: stream, status: number(&body[4..]) },
    })
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Of a number with 24 bits.
fn usize_of(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// The header of a data frame with `length` bytes, at most 2^24 - 1.
pub fn data_header(stream: u32, length: usize, finish: bool) -> [u8; HEADER_LENGTH] {
    let [a, b, c, d] = (stream & STREAM_MASK).to_be_bytes();
    let [e, f, g] = length_bytes(length);
    [a, b, c, d, if finish { FLAG_FINISH } else { 0 }, e, f, g]
}

/// Opens a stream.
pub fn syn_stream(stream: u32, finish: bool, block: &[u8]) -> Vec<u8> {
    let mut body = stream.to_be_bytes().to_vec();
    body.extend_from_slice(&[0; 6]);
    body.extend_from_slice(block);
    control_frame(SYN_STREAM, if finish { FLAG_FINISH } else { 0 }, &body)
}

/// Accepts a stream.
pub fn syn_reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control_frame(SYN_REPLY, 0, &[&stream.to_be_bytes(), block].concat())
}

/// Ends a stream in both directions.
pub fn reset(stream: u32, status: u32) -> Vec<u8> {
    control_frame(RST_STREAM, 0, &[stream.to_be_bytes(), status.to_be_bytes()].concat())
}

/// Asks for an echo, or is one.
pub fn ping(id: u32) -> Vec<u8> {
    control_frame(PING, 0, &id.to_be_bytes())
}

/// Ends the connection's opening of streams.
pub fn go_away(last_good_stream: u32, status: u32) -> Vec<u8> {
    control_frame(GOAWAY, 0, &[last_good_stream.to_be_bytes(), status.to_be_bytes()].concat())
}

fn control_frame(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let [a, b] = VERSION.to_be_bytes();
    let [c, d] = kind.to_be_bytes();
    let [e, f, g] = length_bytes(body.len());
    let mut frame = vec![a | CONTROL, b, c, d, flags, e, f, g];
    frame.extend_from_slice(body);
    frame
}

fn length_bytes(length: usize) -> [u8; 3] {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [a, b, c]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All frames of `wire`, given in pieces that end at `cuts`; the pieces of a data frame joined.
    fn frames(wire: &[u8], cuts: &[usize]) -> Result<Vec<(Vec<u8>, Frame<'static>)>, FrameError> {
        let mut decoder = Decoder::new();
        let mut all: Vec<(Vec<u8>, Frame<'static>)> = Vec::new();
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut % (wire.len() + 1)).collect();
        ends.push(wire.len());
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            let mut input = &wire[start..end];
            start = end;
            while let Some(frame) = decoder.decode(&mut input)? {
                let (bytes, frame) = match frame {
                    Frame::Data { stream, bytes, finish } => {
                        (bytes.to_vec(), Frame::Data { stream, bytes: &[], finish })
                    }
                    Frame::SynStream { stream, finish, unidirectional, block } => {
                        (vec![], Frame::SynStream { stream, finish, unidirectional, block })
                    }
                    Frame::SynReply { stream, finish, block } => {
                        (vec![], Frame::SynReply { stream, finish, block })
                    }
                    Frame::Headers { stream, finish, block } => {
                        (vec![], Frame::Headers { stream, finish, block })
                    }
                    Frame::Reset { stream, status } => (vec![], Frame::Reset { stream, status }),
                    Frame::Ping { id } => (vec![], Frame::Ping { id }),
                    Frame::GoAway { last_good_stream, status } => {
                        (vec![], Frame::GoAway { last_good_stream, status })
                    }
                };
                match (all.last_mut(), &frame) {
                    (
                        Some((before, Frame::Data { stream: earlier, finish: last @ false, .. })),
                        Frame::Data { stream, finish, .. },
                    ) if earlier == stream => {
                        before.extend(bytes);
                        *last = *finish;
                    }
                    _ => all.push((bytes, frame)),
                }
            }
        }
        Ok(all)
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            stream in 1u32..=STREAM_MASK,
            id in any::<u32>(),
            body in prop::collection::vec(any::<u8>(), 0..300),
            finish in any::<bool>(),
            cuts in prop::collection::vec(any::<usize>(), 0..20),
        ) {
            let mut wire = syn_stream(stream, finish, &body);
            wire.extend(syn_reply(stream, &body));
            wire.extend(reset(stream, CANCEL));
            wire.extend(control_frame(4, 0, &body)); // SETTINGS
            wire.extend(ping(id));
            wire.extend(data_header(stream, body.len(), finish));
            wire.extend(&body);
            wire.extend(control_frame(9, 0, &[0; 8])); // WINDOW_UPDATE
            wire.extend(go_away(stream, 0));
            let expected = vec![
                (vec![], Frame::SynStream { stream, finish, unidirectional: false, block: body.clone() }),
                (vec![], Frame::SynReply { stream, finish: false, block: body.clone() }),
                (vec![], Frame::Reset { stream, status: CANCEL }),
                (vec![], Frame::Ping { id }),
                (body, Frame::Data { stream, bytes: &[], finish }),
                (vec![], Frame::GoAway { last_good_stream: stream, status: 0 }),
            ];
            prop_assert_eq!(frames(&wire, &cuts), Ok(expected));
        }

        #[test]
        fn any_bytes_give_frames_or_an_error_however_they_are_cut(
            wire in prop::collection::vec(prop_oneof![Just(0u8), Just(0x80), Just(3), 0u8..10, any::<u8>()], 0..400),
            cuts in prop::collection::vec(any::<usize>(), 0..20),
        ) {
            prop_assert_eq!(frames(&wire, &cuts), frames(&wire, &[]));
        }
    }

    #[test]
    fn frames_that_cannot_be_are_refused_by_their_header_alone() {
        let refused = |bytes: &[u8]| Decoder::new().decode(&mut &bytes[..]).unwrap_err();
        assert_eq!(refused(&[0x80, 2, 0, 1, 0, 0, 0, 10]), FrameError::Version { version: 2 });
        assert_eq!(
            refused(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
            FrameError::TooLong { kind: 1, length: 0xff_ffff }
        );
        assert_eq!(refused(&[0x80, 3, 0, 1, 0, 0, 0, 9]), FrameError::Length { kind: 1, length: 9 });
        assert_eq!(refused(&[0x80, 3, 0, 6, 0, 0, 0, 5]), FrameError::Length { kind: 6, length: 5 });
        assert_eq!(refused(&[0, 0, 0, 0, 0, 0, 0, 5]), FrameError::StreamZero);
        assert_eq!(refused(&reset(0, 1)), FrameError::StreamZero);
    }

    #[test]
    fn unknown_control_frames_are_skipped_without_being_kept() {
        let mut decoder = Decoder::new();
        let start = [0x80, 3, 0, 99, 0, 0xff, 0xff, 0xff];
        assert_eq!(decoder.decode(&mut &start[..]), Ok(None));
        let zeros = vec![0; 0xff_ffff];
        assert_eq!(decoder.decode(&mut &zeros[..]), Ok(None));
        assert_eq!(decoder.held.capacity(), HEADER_LENGTH);
        assert_eq!(decoder.decode(&mut &ping(7)[..]), Ok(Some(Frame::Ping { id: 7 })));
    }
}
