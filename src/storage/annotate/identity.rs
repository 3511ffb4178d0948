//! The identity of a data directory, line by line.

use super::{Damage, Part, Parts};
use crate::storage::identity::{FIRST_LINE, Identity};
use crate::wire::annotate::dump::Dump;

impl Parts<'_> {
    /// The whole file.
    pub(super) fn identity(&mut self) -> Part {
        let mut dump = Dump::new(self.bytes, 0);
        let lines = self.bytes.split_inclusive(|byte| *byte == b'\n');
        for (line, field) in lines.zip(["format", "cluster", "node"]) {
            dump.rows(field, line.len());
        }
        dump.rows("behind", dump.rest());
        let rows = dump.into_rows();
        Part {
            text: format!(
                "identity of a data directory, {} bytes\n{rows}",
                self.bytes.len()
            ),
            damage: identity_damage(self.bytes),
        }
    }
}

/// The fault of an identity.
fn identity_damage(bytes: &[u8]) -> Option<Damage> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Some(Damage::new(error.valid_up_to(), "this is no text")),
    };
    let mut at = 0;
    let mut named = |before: &str, after: &str| -> Result<String, Damage> {
        let rest = &text[at..];
        let is_cut = before.starts_with(rest);
        let Some(name) = rest.strip_prefix(before) else {
            return Err(Damage {
                at: if is_cut { text.len() } else { at },
                reason: format!("{before:?} was to follow here"),
                is_cut,
            });
        };
        let line_end = name.find('\n').map(|end| end + 1);
        let Some(name) = name[..line_end.unwrap_or(name.len())].strip_suffix(after) else {
            return Err(Damage {
                at: if line_end.is_none() { text.len() } else { at },
                reason: format!("the line was to end with {after:?}"),
                is_cut: line_end.is_none(),
            });
        };
        at += before.len() + name.len() + after.len();
        Ok(name.to_owned())
    };
    let read = named(FIRST_LINE, "\n").and_then(|version| {
        let cluster = named("cluster = \"", "\"\n")?;
        let node = named("node = \"", "\"\n")?;
        Ok((version, Identity { cluster, node }))
    });
    match read {
        Err(damage) => Some(damage),
        Ok((version, _)) if !version.is_empty() => {
            let why = "this version of the format is unknown to this program";
            Some(Damage::new(FIRST_LINE.len(), why))
        }
        Ok((_, identity)) if identity.text().len() < text.len() => {
            let why = "no further line was to follow";
            Some(Damage::new(identity.text().len(), why))
        }
        Ok(_) => None,
    }
}
