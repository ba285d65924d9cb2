//! Connections that the kernel remembers and that a change of host ports makes wrong (ctnetlink).
//!
//! Only the first packet of a connection is looked up in our maps. TCP and SCTP begin anew by themselves; a UDP
//! client that keeps its source port goes on with what is remembered: a pod that is gone, or the machine itself if
//! it sent before the pod came. Those entries are deleted, and no others.

use std::net::IpAddr;

use crate::address::IpFamily;
use crate::hostport::{Forward, Protocol};
use crate::message::{self, Message, Subject};
use crate::netlink::{NetlinkError, Socket};

const CT_NEW: u16 = 0x100;
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const IPS_SEEN_REPLY: u32 = 1 << 1;

/// Why an entry is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The forward is new: what was sent to the port before and never answered.
    Unanswered,
    /// The forward is gone: what leads to the pod.
    Forwarded,
    /// Whatever was sent to the port.
    Any,
}

/// A remembered connection.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// As the kernel wrote it, to name the entry by.
    original: Vec<u8>,
    id: Vec<u8>,
    destination: IpAddr,
    destination_port: u16,
    protocol: u8,
    /// Where answers come from: the destination after translation.
    answered_by: IpAddr,
    answered: bool,
}

/// Deletes what is wrong after a change of these forwards.
pub fn forget(socket: &mut Socket, forwards: &[Forward], why: Wrong) -> Result<(), NetlinkError> {
    for forward in forwards.iter().filter(|forward| forward.host.protocol == Protocol::Udp) {
        let entries = entries_to(socket, forward)?;
        for entry in entries.iter().filter(|entry| is_wrong(entry, forward, why)) {
            match delete(socket, forward.host.family, entry) {
                // It ended by itself.
                Err(error) if error.is_absent() => {}
                result => result?,
            }
        }
    }
    Ok(())
}

fn is_wrong(entry: &Entry, forward: &Forward, why: Wrong) -> bool {
    let host = &forward.host;
    let about = entry.protocol == host.protocol.number()
        && entry.destination_port == host.port
        && host.address.is_none_or(|address| entry.destination == address);
    about
        && match why {
            Wrong::Unanswered => !entry.answered && entry.answered_by == entry.destination,
            Wrong::Any => true,
            Wrong::Forwarded => entry.answered_by == forward.address && entry.destination != forward.address,
        }
}

/// The kernel picks by protocol and port (since Linux 5.8; before, it gives all).
fn entries_to(socket: &mut Socket, forward: &Forward) -> Result<Vec<Entry>, NetlinkError> {
    let subject = Subject { operation: "list connections to", name: forward.host.to_string() };
    let header = [forward.host.family.number(), 0, 0, 0];
    socket.dump(
        &subject,
        CT_GET,
        &header,
        |attributes| {
            attributes.nested(CTA_FILTER, |filter| {
                filter.u32(CTA_FILTER_ORIG_FLAGS, FILTER_PROTO_NUM | FILTER_PROTO_DST_PORT);
            });
            attributes.nested(CTA_TUPLE_ORIG, |tuple| {
                tuple.nested(CTA_TUPLE_PROTO, |proto| {
                    proto.u8(CTA_PROTO_NUM, forward.host.protocol.number());
                    proto.bytes(CTA_PROTO_DST_PORT, &forward.host.port.to_be_bytes());
                });
            });
        },
        parse,
    )
}

fn delete(socket: &mut Socket, family: IpFamily, entry: &Entry) -> Result<(), NetlinkError> {
    let mut request = socket.request();
    let subject = Subject { operation: "forget connection to", name: entry.destination.to_string() };
    request.message(subject, CT_DELETE, 0, &[family.number(), 0, 0, 0], |attributes| {
        attributes.nested_after(CTA_TUPLE_ORIG, &entry.original, |_| ());
        attributes.bytes(CTA_ID, &entry.id);
    });
    socket.execute(request)
}

fn parse(message: Message<'_>) -> Option<Entry> {
    if message.kind != CT_NEW {
        return None;
    }
    let attributes = || message::attributes(message.payload.get(4..).unwrap_or_default());
    let value = |kind| attributes().find(|attribute| attribute.kind == kind).map(|attribute| attribute.value);
    let original = value(CTA_TUPLE_ORIG)?;
    let protocol = find(original, CTA_TUPLE_PROTO)?;
    let status = value(CTA_STATUS)?;
    Some(Entry {
        original: original.to_vec(),
        id: value(CTA_ID)?.to_vec(),
        destination: address(original, CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        destination_port: u16::from_be_bytes(find(protocol, CTA_PROTO_DST_PORT)?.try_into().ok()?),
        protocol: *find(protocol, CTA_PROTO_NUM)?.first()?,
        answered_by: address(value(CTA_TUPLE_REPLY)?, CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        answered: u32::from_be_bytes(status.try_into().ok()?) & IPS_SEEN_REPLY != 0,
    })
}

fn address(tuple: &[u8], v4: u16, v6: u16) -> Option<IpAddr> {
    let addresses = find(tuple, CTA_TUPLE_IP)?;
    let v4 = find(addresses, v4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
    v4.or_else(|| find(addresses, v6).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from))
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    message::attributes(bytes).find(|attribute| attribute.kind == kind).map(|attribute| attribute.value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let message = Message { kind: CT_NEW, flags: 0, sequence: 1, port: 0, payload: &payload };
            let _ = parse(message);
        }
    }
}
