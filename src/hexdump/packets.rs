//! The payload of packets: TCP over IP, put together for each direction of each connection.

use std::borrow::Cow;
use std::collections::HashMap;

use byteorder::{BigEndian, ByteOrder};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Flow, Packet, TextError};

/// A packet's part of a flow.
struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    /// Sequence number of the payload's first byte, or without a payload of the next byte.
    sequence: u32,
    /// Whether it opens the connection.
    opens: bool,
    payload: &'a [u8],
    /// Bytes of payload that the packet had on the wire. The capture may have cut it.
    len: usize,
}

/// The segments of a flow, each with its place: bytes from the first that came.
struct Open<'a> {
    name: String,
    /// Place and number of the last segment, from which the next one's follow.
    place: i64,
    sequence: u32,
    segments: Vec<(i64, Segment<'a>)>,
}

/// The flows with a payload, in the order in which they began.
pub(super) fn flows<'b>(packets: &[Packet]) -> Result<Vec<Flow<'b>>, TextError> {
    let mut open: Vec<Open> = Vec::new();
    let mut last: HashMap<(SocketAddr, SocketAddr), usize> = HashMap::new();
    for (number, packet) in (1..).zip(packets) {
        let segment = segment(&packet.bytes).ok_or_else(|| {
            let what = format!(
                "packet {number} is not TCP over IPv4 or IPv6, or its headers are cut; capture with tcpdump -x \
                 'tcp port 8000'"
            );
            TextError::new(packet.line, 0, what)
        })?;
        let way = (segment.from, segment.to);
        let at = match last.get(&way) {
            // Its port may have been in use before.
            Some(&at) if !segment.opens => at,
            _ => {
                open.push(Open {
                    name: format!("{} > {}", segment.from, segment.to),
                    place: 0,
                    sequence: segment.sequence,
                    segments: Vec::new(),
                });
                last.insert(way, open.len() - 1);
                open.len() - 1
            }
        };
        let Some(flow) = open.get_mut(at) else {
            continue;
        };
        // Numbers wrap at 32 bits, and segments come out of order.
        let ahead = segment.sequence.wrapping_sub(flow.sequence).cast_signed();
        flow.place = flow.place.saturating_add(i64::from(ahead));
        flow.sequence = segment.sequence;
        if segment.len > 0 {
            flow.segments.push((flow.place, segment));
        }
    }
    let flows = open.into_iter().filter(|flow| !flow.segments.is_empty());
    Ok(flows.map(assembled).collect())
}

/// The bytes of a flow up to the first that is missing. Bytes that came twice count once.
fn assembled<'b>(mut flow: Open) -> Flow<'b> {
    flow.segments.sort_by_key(|(place, _)| *place);
    let start = flow.segments.first().map_or(0, |(place, _)| *place);
    let mut bytes: Vec<u8> = Vec::new();
    // The end of the bytes that the packets had on the wire, as far as one follows another.
    let mut end = 0;
    for (place, segment) in &flow.segments {
        let place = usize::try_from(place.saturating_sub(start)).unwrap_or(usize::MAX);
        let Some(known) = bytes.len().checked_sub(place) else {
            end = end.max(place);
            break;
        };
        bytes.extend_from_slice(segment.payload.get(known..).unwrap_or(&[]));
        end = end.max(place + segment.len);
    }
    let missing = end.saturating_sub(bytes.len());
    Flow {
        name: Some(flow.name),
        bytes: Cow::Owned(bytes),
        missing: u64::try_from(missing).unwrap_or(u64::MAX),
    }
}

/// Reads a packet; `None` if it is not TCP over IP.
fn segment(packet: &[u8]) -> Option<Segment<'_>> {
    // With one -x a packet starts at its IP header; with two, at that of the link: Ethernet, or one of the two that
    // Linux makes up where it captures from all interfaces.
    [0, 14, 16, 20]
        .into_iter()
        .filter(|&link| is_ip_behind(packet, link))
        .find_map(|link| internet(packet.get(link..)?))
}

/// Whether a link header of that length says that the packet is IP.
fn is_ip_behind(packet: &[u8], link: usize) -> bool {
    let protocol_at = match link {
        0 => return true,
        20 => 0,
        _ => link - 2,
    };
    packet
        .get(protocol_at..protocol_at + 2)
        .is_some_and(|protocol| matches!(protocol, [0x08, 0x00] | [0x86, 0xdd]))
}

fn internet(packet: &[u8]) -> Option<Segment<'_>> {
    const TCP: u8 = 6;
    match packet.first()? >> 4 {
        4 => {
            let header_len = usize::from(packet[0] & 0xF) * 4;
            let header = packet.get(..header_len).filter(|_| header_len >= 20)?;
            let len = usize::from(BigEndian::read_u16(&header[2..4]));
            let is_fragment = BigEndian::read_u16(&header[6..8]) & 0x3FFF != 0;
            if header[9] != TCP || is_fragment {
                return None;
            }
            let address = |at: usize| {
                let bytes: [u8; 4] = header[at..at + 4].try_into().ok()?;
                Some(IpAddr::V4(Ipv4Addr::from(bytes)))
            };
            let rest = &packet[header_len..];
            // 0: larger than 64 KiB, as a network card's driver may see it.
            let len = match len {
                0 => rest.len(),
                len => len.checked_sub(header_len)?,
            };
            transport(rest, len, address(12)?, address(16)?)
        }
        6 => {
            let header = packet.get(..40)?;
            let len = usize::from(BigEndian::read_u16(&header[4..6]));
            if header[6] != TCP {
                return None;
            }
            let address = |at: usize| {
                let bytes: [u8; 16] = header[at..at + 16].try_into().ok()?;
                Some(IpAddr::V6(Ipv6Addr::from(bytes)))
            };
            let rest = &packet[40..];
            let len = if len == 0 { rest.len() } else { len };
            transport(rest, len, address(8)?, address(24)?)
        }
        _ => None,
    }
}

/// Reads a TCP segment that had `len` bytes with its header; those behind it fill up the link's frame.
fn transport(packet: &[u8], len: usize, from: IpAddr, to: IpAddr) -> Option<Segment<'_>> {
    let packet = &packet[..packet.len().min(len)];
    let fixed = packet.get(..20)?;
    let header_len = usize::from(fixed[12] >> 4) * 4;
    let payload = packet.get(header_len..).filter(|_| header_len >= 20)?;
    let opens = fixed[13] & 0x02 != 0;
    // Opening the connection counts as one byte.
    let sequence = BigEndian::read_u32(&fixed[4..8]).wrapping_add(u32::from(opens));
    Some(Segment {
        from: SocketAddr::new(from, BigEndian::read_u16(&fixed[0..2])),
        to: SocketAddr::new(to, BigEndian::read_u16(&fixed[2..4])),
        sequence,
        opens,
        payload,
        len: len.checked_sub(header_len)?,
    })
}
