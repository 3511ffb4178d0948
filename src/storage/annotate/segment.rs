//! A segment of the log: its header, its groups, and what is behind them.

use super::layout::{self, GROUP, SEGMENT};
use super::{Damage, Next, Part, Parts, count, frame_rows, header_rows};
use crate::storage::recovery::LogEnd;
use crate::storage::segment::{
    ALIGNMENT, GROUP_MAGIC, GroupHead, HEAD_LEN, HEADER_ALIGNMENT, HeaderFault, SEGMENT_MAGIC,
    SegmentHeader, salted,
};
use crate::wire::annotate::dump::Dump;
use crate::wire::replication::Frames;

impl Parts<'_> {
    /// The header, with the zeros behind it.
    pub(super) fn segment_header(&mut self) -> Part {
        let decoded = SegmentHeader::decode(self.bytes);
        let len = SegmentHeader::len_of(self.bytes).unwrap_or(HEADER_ALIGNMENT);
        let shown = match decoded {
            // Nothing is known of the rest.
            Err(HeaderFault::Version(_)) => SEGMENT_MAGIC.len(),
            Ok(_)
            | Err(
                HeaderFault::Magic
                | HeaderFault::Short
                | HeaderFault::Checksum
                | HeaderFault::History,
            ) => len,
        };
        let rows = header_rows(self.up_to(shown), SEGMENT);
        let at = |field| layout::offset(SEGMENT, field);
        let damage = match &decoded {
            Ok(_) => None,
            Err(HeaderFault::Magic) => Some(Damage::new(0, "this is no header of a segment")),
            Err(HeaderFault::Version(version)) => Some(Damage::new(
                at("version"),
                format!("version {version} of the format is unknown to this program"),
            )),
            Err(HeaderFault::Short) => Some(Damage::cut(0, self.bytes.len(), len)),
            Err(HeaderFault::Checksum) if self.bytes.len() < layout::len(SEGMENT) => {
                Some(Damage::cut(0, self.bytes.len(), len))
            }
            Err(HeaderFault::Checksum) => Some(Damage::new(
                at("checksum"),
                "the header has another checksum, or another length",
            )),
            Err(HeaderFault::History) => Some(Damage::new(
                at("epochs"),
                "the epochs of the header do not follow each other",
            )),
        };
        let name = match decoded {
            Ok((header, len)) => {
                let (salt, next_index) = (header.salt, header.first_index);
                let end = LogEnd {
                    next_index,
                    digest: header.digest,
                    previous: header.previous,
                };
                self.next = Next::Group { salt, end };
                self.at = len;
                format!("header of {}, {len} bytes", header.id.name())
            }
            Err(_) => "no whole header of a segment".to_owned(),
        };
        Part {
            text: format!("{name}\n{rows}"),
            damage,
        }
    }

    /// The next group, or the end of the groups.
    pub(super) fn group(&mut self, salt: u64, end: LogEnd) -> Part {
        let rest = self.rest();
        if rest.iter().take(8).all(|byte| *byte == 0) {
            return self.end_of_groups(salt, end);
        }
        self.number += 1;
        let decoded = GroupHead::decode(rest, salt);
        let Some((head, checksum)) = decoded else {
            return self.no_group(salt, end);
        };
        let (start, body_at) = (self.at, self.at + HEAD_LEN);
        let body_len = usize::try_from(head.body_len).unwrap_or(usize::MAX);
        let name = match head.count {
            0 => "no records".to_owned(),
            1 => format!("record {}", head.first_index),
            _ => format!(
                "records {} to {}",
                head.first_index,
                next_index(&head).saturating_sub(1)
            ),
        };
        let needed = usize::try_from(head.group_len()).unwrap_or(usize::MAX);
        let shown = self.up_to(needed);
        let mut text = format!("group {}: {name}, {needed} bytes\n", self.number);
        let mut dump = Dump::new(shown, start);
        layout::rows(&mut dump, GROUP);
        text += &dump.into_rows();
        let at = |field| start + layout::offset(GROUP, field);
        let body = shown.get(HEAD_LEN..HEAD_LEN.saturating_add(body_len));
        let damage = if head.first_index != end.next_index {
            let found = format!("record {} was to follow here", end.next_index);
            Some(Damage::new(at("first_index"), found))
        } else if head.previous != end.previous {
            let found = format!(
                "the head before this group has checksum 0x{:08x}",
                end.previous
            );
            Some(Damage::new(at("previous"), found))
        } else if let Some(body) = body {
            let damage = damage_of_records(&head, body, body_at);
            text += &frame_rows("record", head.first_index, body, body_at);
            damage
        } else {
            let shown = shown.get(HEAD_LEN..).unwrap_or_default();
            text += &frame_rows("record", head.first_index, shown, body_at);
            Some(Damage::cut(start, self.bytes.len(), needed))
        };
        if damage.is_none() {
            let padding_at = body_at + body_len;
            let padding = &shown[(HEAD_LEN + body_len).min(shown.len())..];
            let mut dump = Dump::new(padding, padding_at);
            dump.field("padding", padding.len(), layout::zeros);
            text += &dump.into_rows();
            self.at = (start + needed).min(self.bytes.len());
            self.next = Next::Group {
                salt,
                end: LogEnd {
                    next_index: next_index(&head),
                    digest: head.digest,
                    previous: checksum,
                },
            };
        }
        let damage = damage.map(|damage| self.judged(damage, salt, end));
        Part { text, damage }
    }

    /// Bytes where a group or zeros were to follow.
    fn no_group(&mut self, salt: u64, end: LogEnd) -> Part {
        let shown = self.up_to(HEAD_LEN);
        let mut dump = Dump::new(shown, self.at);
        let damage = if !GROUP_MAGIC.starts_with(&shown[..shown.len().min(GROUP_MAGIC.len())]) {
            dump.rows("bytes", shown.len());
            Damage::new(self.at, "no group begins here, and no zeros end the log")
        } else if shown.len() < HEAD_LEN {
            layout::rows(&mut dump, GROUP);
            Damage::cut(self.at, self.bytes.len(), HEAD_LEN)
        } else {
            layout::rows(&mut dump, GROUP);
            let found = salted(salt, &shown[..HEAD_LEN - 4]);
            let why = format!("the head of the group, in this segment, has checksum 0x{found:08x}");
            Damage::new(self.at + layout::offset(GROUP, "checksum"), why)
        };
        Part {
            text: format!(
                "group {}: no whole group\n{}",
                self.number,
                dump.into_rows()
            ),
            damage: Some(self.judged(damage, salt, end)),
        }
    }

    /// The fault, with what the rest of the segment says about it.
    fn judged(&self, mut damage: Damage, salt: u64, end: LogEnd) -> Damage {
        let next = end.next_index;
        let mut later = self.later(salt).filter(|head| head.durable_to >= next);
        match later.next() {
            Some(head) => {
                let to = head.durable_to;
                damage.reason +=
                    &format!("; a later group says that records up to {to} were durable");
            }
            None if damage.is_cut => {}
            None => damage.reason += "; no later group says that it was durable",
        }
        damage
    }

    /// The heads of this segment behind the first 8 bytes of the next part.
    fn later(&self, salt: u64) -> impl Iterator<Item = GroupHead> {
        let alignment = usize::try_from(ALIGNMENT).unwrap_or(usize::MAX);
        let places = (self.at + alignment..self.bytes.len()).step_by(alignment);
        places
            .filter_map(move |at| {
                let bytes = &self.bytes[at..];
                let is_one = bytes.starts_with(&GROUP_MAGIC);
                is_one.then(|| GroupHead::decode(bytes, salt)).flatten()
            })
            .map(|(head, _)| head)
    }

    fn end_of_groups(&mut self, salt: u64, end: LogEnd) -> Part {
        self.next = Next::Nothing;
        let rest = self.rest();
        let zeros = rest.iter().take_while(|byte| **byte == 0).count();
        let mut dump = Dump::new(rest, self.at);
        if zeros > 0 {
            dump.summary("zeros", zeros, &count(zeros, "byte"));
        }
        if dump.has_more() {
            let left = count(dump.rest(), "byte");
            let len = dump.rest();
            dump.summary("old", len, &format!("{left} of an earlier use of the file"));
        }
        let damage = self.later(salt).next().map(|head| {
            let found = format!(
                "the log of this segment ends here, and a group of it with record {} is behind",
                head.first_index
            );
            Damage::new(self.at, found)
        });
        let groups = usize::try_from(self.number).unwrap_or(usize::MAX);
        Part {
            text: format!(
                "end of the segment: {}, records up to {}{}\n{}",
                count(groups, "group"),
                end.last_index(),
                if zeros == 0 {
                    "; the file ends without zeros"
                } else {
                    ""
                },
                dump.into_rows()
            ),
            damage: damage.map(|damage| self.judged(damage, salt, end)),
        }
    }
}

/// Index behind the records of a group. Damaged bytes may say anything.
fn next_index(head: &GroupHead) -> u64 {
    head.first_index.saturating_add(u64::from(head.count))
}

/// The fault of the records of a group whose head is right.
fn damage_of_records(head: &GroupHead, body: &[u8], at: usize) -> Option<Damage> {
    if !head.has_body(body) {
        let why = format!("the records have checksum 0x{:08x}", crc32c::crc32c(body));
        let checksum_at = at - HEAD_LEN + layout::offset(GROUP, "body_checksum");
        return Some(Damage::new(checksum_at, why));
    }
    let frames = Frames::of_log(head.count, body);
    frames.err().map(|error| Damage::new(at, error.to_string()))
}
