//! Maps as objects. Keys are sorted, so that equal answers are equal bytes; of two entries with one key the last counts.

use std::cmp::Ordering;
use std::ops::Range;

use super::{Writer, escape, malformed, numbers};
use crate::fault::Fault;
use crate::plan::{FieldPlan, Kind, MessageId};
use crate::wire;

/// One entry: its key, and the range of the wire that holds it.
#[derive(Clone, Copy)]
struct Entry {
    key: Key,
    start: usize,
    end: usize,
}

#[derive(Clone, Copy)]
enum Key {
    Signed(i64),
    Unsigned(u64),
    Bool(bool),
    Text(usize, usize),
}

impl Writer<'_> {
    /// An object of the entries; false if there is none.
    pub(super) fn map(&mut self, entry: MessageId, runs: Range<usize>) -> Result<bool, Box<Fault>> {
        let (key, value) = self.plans.entry(entry).ok_or_else(malformed)?;
        let entries = self.entries(key.kind, runs)?;
        self.out.push(b'{');
        for (at, entry) in entries.iter().enumerate() {
            let next = entries.get(at + 1);
            if next.is_some_and(|next| self.compare(entry.key, next.key).is_eq()) {
                continue;
            }
            if self.out.last() != Some(&b'{') {
                self.out.push(b',');
            }
            self.map_key(entry.key)?;
            self.out.push(b':');
            let written = self.map_value(value, entry).and_then(|()| self.check_len());
            written.map_err(|fault| fault.in_key(&self.shown_key(entry.key)))?;
        }
        self.out.push(b'}');
        Ok(!entries.is_empty())
    }

    /// All entries, by key, those of one key as they came.
    fn entries(&mut self, key: Kind, runs: Range<usize>) -> Result<Vec<Entry>, Box<Fault>> {
        let mut entries = Vec::new();
        self.occurrences(runs, |writer, occurrence| {
            let (start, end) = writer.content(occurrence)?;
            entries.push(Entry {
                key: writer.key_of(key, start, end)?,
                start,
                end,
            });
            Ok(())
        })?;
        let order = |a: &Entry, b: &Entry| self.compare(a.key, b.key).then(a.start.cmp(&b.start));
        if !entries.is_sorted_by(|a, b| order(a, b).is_le()) {
            entries.sort_unstable_by(order);
        }
        Ok(entries)
    }

    fn key_of(&self, kind: Kind, start: usize, end: usize) -> Result<Key, Box<Fault>> {
        let bytes = &self.wire[..end];
        let mut at = start;
        let mut found = None;
        while at < end {
            let (number, wire_type) = wire::tag(bytes, &mut at).ok_or_else(malformed)?;
            if number == 1 && wire_type == kind.wire_type() {
                found = Some(at);
            }
            wire::skip(bytes, &mut at, number, wire_type).ok_or_else(malformed)?;
        }
        let key = match found {
            Some(at) => read_key(bytes, kind, at),
            None => Some(no_key(kind)),
        };
        key.ok_or_else(malformed)
    }

    fn compare(&self, a: Key, b: Key) -> Ordering {
        match (a, b) {
            (Key::Signed(a), Key::Signed(b)) => a.cmp(&b),
            (Key::Unsigned(a), Key::Unsigned(b)) => a.cmp(&b),
            (Key::Bool(a), Key::Bool(b)) => a.cmp(&b),
            (Key::Text(a, a_end), Key::Text(b, b_end)) => {
                self.wire[a..a_end].cmp(&self.wire[b..b_end])
            }
            _ => Ordering::Equal,
        }
    }

    fn map_key(&mut self, key: Key) -> Result<(), Box<Fault>> {
        let out = &mut self.out;
        match key {
            Key::Signed(key) => numbers::quoted(out, |out| numbers::signed(out, key)),
            Key::Unsigned(key) => numbers::quoted(out, |out| numbers::unsigned(out, key)),
            Key::Bool(true) => out.extend_from_slice(b"\"true\""),
            Key::Bool(false) => out.extend_from_slice(b"\"false\""),
            Key::Text(start, end) => {
                let bytes = &self.wire[start..end];
                let text = std::str::from_utf8(bytes)
                    .map_err(|_| Fault::new("has a key that is not valid UTF-8"))?;
                escape::string(out, text);
            }
        }
        Ok(())
    }

    fn map_value(&mut self, value: &FieldPlan, entry: &Entry) -> Result<(), Box<Fault>> {
        let bytes = &self.wire[..entry.end];
        let mut at = entry.start;
        let base = self.runs.len();
        let mut found = None;
        while at < entry.end {
            let (number, wire_type) = wire::tag(bytes, &mut at).ok_or_else(malformed)?;
            let before = at;
            wire::skip(bytes, &mut at, number, wire_type).ok_or_else(malformed)?;
            if number == 2 && wire_type == value.kind.wire_type() {
                found = Some(before);
                if let Some(id) = value.message_id() {
                    let (start, end) =
                        wire::delimited(bytes, &mut { before }).ok_or_else(malformed)?;
                    self.scan(self.plans.message(id), start, end)?;
                }
            } else if number != 1 {
                self.dropped += 1;
            }
        }
        match (value.message_id(), found) {
            (Some(id), _) => self.finish(id, base),
            (None, Some(mut at)) => self.scalar(value.kind, &mut at).map(drop),
            (None, None) => {
                self.zero_of(value.kind);
                Ok(())
            }
        }
    }

    fn shown_key(&self, key: Key) -> String {
        match key {
            Key::Signed(key) => key.to_string(),
            Key::Unsigned(key) => key.to_string(),
            Key::Bool(key) => key.to_string(),
            Key::Text(start, end) => String::from_utf8_lossy(&self.wire[start..end]).into_owned(),
        }
    }
}

fn read_key(bytes: &[u8], kind: Kind, mut at: usize) -> Option<Key> {
    let at = &mut at;
    Some(match kind {
        Kind::String => {
            let (start, end) = wire::delimited(bytes, at)?;
            Key::Text(start, end)
        }
        Kind::Bool => Key::Bool(wire::varint(bytes, at)? != 0),
        Kind::Int32 => Key::Signed(i64::from(
            wire::low32(wire::varint(bytes, at)?).cast_signed(),
        )),
        Kind::Sint32 => Key::Signed(i64::from(wire::unzigzag32(wire::low32(wire::varint(
            bytes, at,
        )?)))),
        Kind::Int64 => Key::Signed(wire::varint(bytes, at)?.cast_signed()),
        Kind::Sint64 => Key::Signed(wire::unzigzag64(wire::varint(bytes, at)?)),
        Kind::Sfixed32 => Key::Signed(i64::from(wire::fixed32(bytes, at)?.cast_signed())),
        Kind::Sfixed64 => Key::Signed(wire::fixed64(bytes, at)?.cast_signed()),
        Kind::Uint32 => Key::Unsigned(u64::from(wire::low32(wire::varint(bytes, at)?))),
        Kind::Fixed32 => Key::Unsigned(u64::from(wire::fixed32(bytes, at)?)),
        Kind::Fixed64 => Key::Unsigned(wire::fixed64(bytes, at)?),
        Kind::Uint64 => Key::Unsigned(wire::varint(bytes, at)?),
        _ => return None,
    })
}

/// The key of an entry that has none.
fn no_key(kind: Kind) -> Key {
    match kind {
        Kind::String => Key::Text(0, 0),
        Kind::Bool => Key::Bool(false),
        Kind::Uint32 | Kind::Fixed32 | Kind::Fixed64 | Kind::Uint64 => Key::Unsigned(0),
        _ => Key::Signed(0),
    }
}
