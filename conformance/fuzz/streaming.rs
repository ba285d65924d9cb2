//! What the clients of the streaming server send.

use flate2::{Compress, Compression, FlushCompress};
use pinnace_streaming::remote_command::resize::{MAX_LENGTH, SizeDecoder};
use pinnace_streaming::spdy::frame::{self, Decoder, Frame, MAX_CONTROL_LENGTH};
use pinnace_streaming::spdy::header_block::{
    HeaderDecoder, HeaderEncoder, MAX_BLOCK_LENGTH, MAX_HEADERS, parse, plain,
};
use pinnace_streaming::websocket::channel::{ChannelMessage, Encoding, decode};

use crate::Target;

pub(crate) const SPDY_FRAMES: Target =
    Target { name: "spdy-frames", seeds: frame_seeds, check: check_frames };
pub(crate) const HEADER_BLOCKS: Target =
    Target { name: "header-blocks", seeds: block_seeds, check: check_blocks };
pub(crate) const CHANNEL_MESSAGES: Target =
    Target { name: "channel-messages", seeds: message_seeds, check: check_messages };
pub(crate) const RESIZES: Target = Target { name: "resizes", seeds: resize_seeds, check: check_resizes };

fn frame_seeds() -> Vec<Vec<u8>> {
    let block = HeaderEncoder::new().encode(&[("streamtype", "stdin")]);
    let mut session = frame::syn_stream(1, false, &block);
    session.extend(frame::syn_reply(1, &block));
    session.extend(frame::data_header(1, 5, true));
    session.extend(b"hello");
    session.extend(frame::ping(1));
    session.extend(frame::reset(1, 5));
    session.extend(frame::go_away(1, 0));
    let settings = vec![0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 9];
    let window_update = vec![0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 1, 0];
    vec![session, frame::syn_stream(3, true, &block), settings, window_update]
}

/// A frame, with what can be compared however the input was cut.
type Seen = (u8, u32, Vec<u8>, bool);

fn frames(input: &[u8], piece: usize) -> (Vec<Seen>, bool) {
    let (mut decoder, mut all) = (Decoder::new(), Vec::<Seen>::new());
    for mut piece in input.chunks(piece) {
        loop {
            let seen = match decoder.decode(&mut piece) {
                Ok(None) => break,
                Err(_) => return (all, false),
                Ok(Some(frame)) => match frame {
                    Frame::SynStream { stream, finish, block, .. } => (1, stream, block, finish),
                    Frame::SynReply { stream, finish, block } => (2, stream, block, finish),
                    Frame::Headers { stream, finish, block } => (3, stream, block, finish),
                    Frame::Reset { stream, status } => (4, stream, status.to_be_bytes().into(), true),
                    Frame::Ping { id } => (5, id, vec![], true),
                    Frame::GoAway { last_good_stream, status } => {
                        (6, last_good_stream, status.to_be_bytes().into(), true)
                    }
                    Frame::Data { stream, bytes, finish } => (0, stream, bytes.into(), finish),
                },
            };
            assert!(seen.0 == 0 || seen.2.len() <= MAX_CONTROL_LENGTH, "a frame longer than the bound");
            match all.last_mut() {
                Some((0, stream, bytes, finish @ false)) if seen.0 == 0 && *stream == seen.1 => {
                    bytes.extend(seen.2);
                    *finish = seen.3;
                }
                _ => all.push(seen),
            }
        }
        assert!(piece.is_empty(), "input that is neither taken nor refused");
    }
    (all, true)
}

fn check_frames(input: &[u8]) {
    let whole = frames(input, input.len().max(1));
    assert_eq!(whole, frames(input, 7), "frames depend on how they arrive");
}

fn block_seeds() -> Vec<Vec<u8>> {
    let headers = [("streamtype", "data"), ("port", "8080"), ("requestid", "17")];
    let mut compressed = Vec::with_capacity(1024);
    // Without the dictionary: enough of a deflate stream to be taken for one, or nearly.
    let mut compress = Compress::new(Compression::best(), true);
    let _ = compress.compress_vec(&plain(&headers), &mut compressed, FlushCompress::Sync);
    let mut encoder = HeaderEncoder::new();
    let mut two = encoder.encode(&headers);
    two.extend(encoder.encode(&headers[..1]));
    vec![plain(&headers), plain(&[]), HeaderEncoder::new().encode(&headers), two, compressed]
}

fn check_blocks(input: &[u8]) {
    if let Ok(headers) = parse(input) {
        let all: Vec<_> = headers.iter().collect();
        assert!(all.len() <= MAX_HEADERS, "more headers than the bound");
        assert_eq!(plain(&all), input, "headers other than those of the block");
    }
    // Two blocks of one context.
    let mut decoder = HeaderDecoder::new();
    let (first, second) = input.split_at(input.len() / 2);
    if let Ok(headers) = decoder.decode(first) {
        let length: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(length <= MAX_BLOCK_LENGTH, "a block longer than the bound");
        let _ = decoder.decode(second);
    }
    let _ = HeaderDecoder::new().decode(input);
}

fn message_seeds() -> Vec<Vec<u8>> {
    let seeds: [&[u8]; 7] = [b"\0hello", b"\x04{}", b"\xff\0", b"0aGVsbG8=", b"4e30", b"0", b""];
    seeds.map(<[u8]>::to_vec).into()
}

fn check_messages(input: &[u8]) {
    for encoding in [Encoding::Binary, Encoding::BinaryWithClose, Encoding::Base64] {
        match decode(encoding, input) {
            Ok(ChannelMessage::Data { channel, bytes }) => {
                assert_eq!(
                    u32::from(input[0]),
                    u32::from(channel) + if encoding == Encoding::Base64 { 48 } else { 0 }
                );
                assert!(bytes.len() < input.len(), "more bytes than the message has");
            }
            Ok(ChannelMessage::Close { channel }) => assert_eq!(input, [255, channel]),
            Ok(ChannelMessage::Empty) => assert!(input.is_empty()),
            Err(_) => assert_ne!(encoding, Encoding::Binary, "binary takes everything"),
        }
    }
}

fn resize_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        r#"{"Width":80,"Height":24}"#,
        r#"{"Width":80,"Height":24}{"Width":0,"Height":0}{"Width":65535,"Height":65535}"#,
        r#"{"width":1,"height":2,"other":[{},null,"\u0000"]}"#,
        "\n",
    ];
    seeds.map(|text| text.as_bytes().to_vec()).into()
}

fn check_resizes(input: &[u8]) {
    let sizes = |piece: usize| {
        let mut decoder = SizeDecoder::new();
        let mut last = None;
        for piece in input.chunks(piece) {
            match decoder.decode(piece) {
                Ok(size) => last = size.or(last),
                Err(_) => return None,
            }
        }
        Some(last)
    };
    let whole = sizes(input.len().max(1));
    if let Some(Some(size)) = whole {
        assert!(size.width != 0 && size.height != 0, "a size that is none");
    }
    // What is no size may be found out earlier or later: a number can end with a piece.
    if let (Some(whole), Some(cut)) = (whole, sizes(3))
        && input.len() <= MAX_LENGTH
    {
        assert_eq!(whole, cut, "sizes depend on how they arrive");
    }
}
