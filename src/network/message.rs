//! Netlink messages as bytes: a builder for requests and a bounded parser for replies.
//!
//! A request is a row of messages in one buffer, sent at once. Only one of them asks for an acknowledgement:
//! the kernel handles a row in order and reports every failure unasked, so success costs one reply however
//! long the row is.
//!
//! The parser never trusts a length: whatever the bytes are, it ends, does not panic and yields only slices
//! inside the buffer.

/// `NLM_F_*` flags (linux/netlink.h).
pub mod flag {
    /// Every request.
    pub const REQUEST: u16 = 0x1;
    /// One reply of several.
    pub const ACK: u16 = 0x4;
    /// The dump changed while it was read.
    pub const DUMP_INTERRUPTED: u16 = 0x10;
    /// Fail if it exists (new requests).
    pub const EXCLUSIVE: u16 = 0x200;
    /// Create if it does not exist (new requests).
    pub const CREATE: u16 = 0x400;
    /// Put after what is there (rules).
    pub const APPEND: u16 = 0x800;
    /// All objects (get requests).
    pub const DUMP: u16 = 0x300;
    /// An error reply without the copy of the request.
    pub const CAPPED: u16 = 0x100;
    /// An error reply with attributes behind it.
    pub const ACK_TLVS: u16 = 0x200;
}

/// Message type of an error or acknowledgement.
pub const NLMSG_ERROR: u16 = 2;
/// Message type of the end of a dump.
pub const NLMSG_DONE: u16 = 3;
/// Attribute of an error reply: the kernel's text.
pub const NLMSGERR_ATTR_MSG: u16 = 1;
/// Size of `struct nlmsghdr`.
pub const HEADER_LEN: usize = 16;

const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const FLAGS_AT: usize = 6;

/// What one message of a request is about, for the error text.
#[derive(Debug, Clone)]
pub struct Subject {
    /// What was asked, e.g. `create link`.
    pub operation: &'static str,
    /// The object's name.
    pub name: String,
}

/// A row of messages under construction.
#[derive(Debug)]
pub struct Request {
    bytes: Vec<u8>,
    subjects: Vec<Subject>,
    starts: Vec<usize>,
    first_sequence: u32,
    overlong: bool,
}

impl Request {
    /// An empty row whose messages are numbered from `first_sequence` on.
    pub fn new(first_sequence: u32) -> Self {
        Request {
            bytes: Vec::with_capacity(1024),
            subjects: Vec::new(),
            starts: Vec::new(),
            first_sequence,
            overlong: false,
        }
    }

    /// Appends one message: its type, flags, the fixed header of its family and its attributes.
    pub fn message(
        &mut self,
        subject: Subject,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        let sequence = self.first_sequence.wrapping_add(self.len());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(header);
        pad(&mut self.bytes);
        attributes(&mut Attributes { bytes: &mut self.bytes, overlong: &mut self.overlong });
        match u32::try_from(self.bytes.len() - start) {
            Ok(len) => self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes()),
            Err(_) => self.overlong = true,
        }
        self.starts.push(start);
        self.subjects.push(subject);
    }

    /// Asks for an acknowledgement of the message at `position` and returns its sequence number.
    pub fn acknowledge(&mut self, position: usize) -> Option<u32> {
        let at = self.starts.get(position)? + FLAGS_AT;
        let bytes = self.bytes.get_mut(at..at + 2)?;
        let flags = u16::from_ne_bytes([bytes[0], bytes[1]]) | flag::ACK;
        bytes.copy_from_slice(&flags.to_ne_bytes());
        Some(self.first_sequence.wrapping_add(u32::try_from(position).ok()?))
    }

    /// The number of messages.
    pub fn len(&self) -> u32 {
        u32::try_from(self.subjects.len()).unwrap_or(u32::MAX)
    }

    /// Whether there is no message yet.
    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty()
    }

    /// The bytes to send, or `None` if some attribute did not fit into its 16-bit length.
    pub fn bytes(&self) -> Option<&[u8]> {
        (!self.overlong).then_some(&self.bytes)
    }

    /// The sequence number of the last message.
    pub fn last_sequence(&self) -> u32 {
        self.first_sequence.wrapping_add(self.len()).wrapping_sub(1)
    }

    /// The subject of the message with this sequence number, if it is one of ours.
    pub fn subject(&self, sequence: u32) -> Option<&Subject> {
        let index = usize::try_from(sequence.wrapping_sub(self.first_sequence)).ok()?;
        self.subjects.get(index)
    }
}

/// Writes attributes behind a header.
#[derive(Debug)]
pub struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
    overlong: &'a mut bool,
}

impl Attributes<'_> {
    /// An attribute of raw bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.write(kind, |bytes| bytes.extend_from_slice(value));
    }

    /// A flag or small number.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.bytes(kind, &[value]);
    }

    /// A number in the machine's byte order, as rtnetlink wants it.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A number in network byte order, as nfnetlink wants it.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string with its terminating zero.
    pub fn text(&mut self, kind: u16, value: &str) {
        self.write(kind, |bytes| {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        });
    }

    /// An attribute whose value is a header followed by attributes of its own.
    pub fn nested_after(&mut self, kind: u16, header: &[u8], inner: impl FnOnce(&mut Attributes<'_>)) {
        let mut overlong = false;
        self.write(kind | NESTED, |bytes| {
            bytes.extend_from_slice(header);
            inner(&mut Attributes { bytes, overlong: &mut overlong });
        });
        *self.overlong |= overlong;
    }

    /// An attribute that holds attributes.
    pub fn nested(&mut self, kind: u16, inner: impl FnOnce(&mut Attributes<'_>)) {
        self.nested_after(kind, &[], inner);
    }

    fn write(&mut self, kind: u16, value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        value(self.bytes);
        match u16::try_from(self.bytes.len() - start) {
            Ok(len) => self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes()),
            Err(_) => *self.overlong = true,
        }
        pad(self.bytes);
    }
}

/// One message of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Type, e.g. [`NLMSG_ERROR`].
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// The number of the request that it answers.
    pub sequence: u32,
    /// The port of the socket that asked; in notifications, of the one that caused the change.
    pub port: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

/// The messages in one received datagram. Ends at the first header that does not fit.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        if length < HEADER_LEN || length > rest.len() {
            return None;
        }
        let message = Message {
            kind: u16_at(rest, 4)?,
            flags: u16_at(rest, 6)?,
            sequence: u32_at(rest, 8)?,
            port: u32_at(rest, 12)?,
            payload: rest.get(HEADER_LEN..length)?,
        };
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(message)
    })
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Type without the nesting and byte order bits.
    pub kind: u16,
    /// Value without padding.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The value as a string up to its first zero, if it is UTF-8.
    pub fn text(&self) -> Option<&'a str> {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        std::str::from_utf8(&self.value[..end]).ok()
    }

    /// The value as a number in the machine's byte order.
    pub fn u32(&self) -> Option<u32> {
        u32_at(self.value, 0)
    }
}

/// The attributes in `bytes`. Ends at the first one that does not fit.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & TYPE_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(aligned(length)..).unwrap_or_default();
        Some(Attribute { kind, value })
    })
}

/// A 16-bit number of the machine's byte order at an offset.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// A 32-bit number of the machine's byte order at an offset.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// A 64-bit number of the machine's byte order at an offset.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(aligned(bytes.len()), 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subject(name: &str) -> Subject {
        Subject { operation: "test", name: name.to_owned() }
    }

    #[test]
    fn what_is_built_is_what_is_parsed() {
        let mut request = Request::new(u32::MAX);
        request.message(subject("a"), 16, flag::CREATE, &[1, 2, 3], |attributes| {
            attributes.text(3, "eth0");
            attributes.nested(18, |inner| {
                inner.text(1, "veth");
                inner.nested_after(2, &[9; 8], |deep| deep.u32(28, 7));
            });
        });
        request.message(subject("b"), 20, 0, &[], |attributes| attributes.be32(1, 1));
        assert_eq!(request.acknowledge(1), Some(0));

        let parsed: Vec<_> = messages(request.bytes().unwrap()).collect();
        assert_eq!(parsed.len(), 2);
        assert_eq!((parsed[0].kind, parsed[0].flags), (16, flag::CREATE | flag::REQUEST));
        assert_eq!((parsed[1].sequence, parsed[1].flags), (0, flag::REQUEST | flag::ACK));
        assert_eq!(request.subject(0).unwrap().name, "b");
        assert!(request.subject(1).is_none());
        let outer: Vec<_> = attributes(&parsed[0].payload[4..]).collect();
        assert_eq!(outer[0].text(), Some("eth0"));
        let inner: Vec<_> = attributes(outer[1].value).collect();
        assert_eq!(inner[0].text(), Some("veth"));
        assert_eq!(attributes(&inner[1].value[8..]).next().unwrap().u32(), Some(7));
        assert_eq!(attributes(parsed[1].payload).next().unwrap().value, [0, 0, 0, 1]);
    }

    #[test]
    fn an_attribute_over_64_kib_is_refused() {
        let mut request = Request::new(1);
        request.message(subject("long"), 16, 0, &[], |attributes| {
            attributes.nested(1, |inner| inner.bytes(2, &vec![0; 70_000]));
        });
        assert!(request.bytes().is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut seen = 0usize;
            for message in messages(&bytes) {
                seen += HEADER_LEN + message.payload.len();
                for attribute in attributes(message.payload) {
                    let _ = (attribute.text(), attribute.u32(), attributes(attribute.value).count());
                }
            }
            prop_assert!(seen <= bytes.len());
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4);
        }

        #[test]
        fn lying_lengths_are_parsed_without_panic(
            length in any::<u32>(), inner in any::<u16>(), tail in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend_from_slice(&inner.to_ne_bytes());
            bytes.extend_from_slice(&tail);
            for message in messages(&bytes) {
                prop_assert!(message.payload.len() + HEADER_LEN <= bytes.len());
                prop_assert!(attributes(message.payload).all(|a| a.value.len() <= bytes.len()));
            }
        }
    }
}
