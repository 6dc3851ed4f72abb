//! Where the fields of a message lie. A run is one field's occurrences in a row; runs are sorted by field, and runs of oneof
//! members that lost against a later one are taken out.

use super::{Writer, malformed};
use crate::fault::Fault;
use crate::plan::{Cardinality, FieldPlan, MessagePlan};
use crate::wire;

/// Occurrences of one field in a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// Place in the plan's fields.
    pub(super) field: u32,
    /// The first tag.
    start: u32,
    /// Behind the last value.
    end: u32,
}

/// The field of runs that do not count.
const LOST: u32 = u32::MAX;

/// One occurrence: its wire type and where its value begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Occurrence {
    pub(super) wire_type: u8,
    pub(super) at: usize,
    number: u32,
}

impl Writer<'_> {
    /// Adds the runs of the fields in a range of the wire.
    pub(super) fn scan(
        &mut self,
        plan: &MessagePlan,
        start: usize,
        end: usize,
    ) -> Result<(), Box<Fault>> {
        let bytes = &self.wire[..end];
        let base = self.runs.len();
        let mut at = start;
        let mut hint = 0;
        while at < end {
            let tag_at = at;
            let (number, wire_type) = wire::tag(bytes, &mut at).ok_or_else(malformed)?;
            wire::skip(bytes, &mut at, number, wire_type).ok_or_else(malformed)?;
            let field = plan.find_number(number, hint);
            let field = field.filter(|field| fits(&plan.fields()[*field as usize], wire_type));
            let Some(field) = field else {
                self.dropped += 1;
                continue;
            };
            hint = field + 1;
            let (start, end) = (wire::at32(tag_at), wire::at32(at));
            match self.runs[base..].last_mut() {
                Some(last) if last.field == field && last.end == start => last.end = end,
                _ => self.runs.push(Run { field, start, end }),
            }
        }
        Ok(())
    }

    /// Brings the runs from `base` on into the order of the fields.
    pub(super) fn order(&mut self, plan: &MessagePlan, base: usize) {
        let runs = &mut self.runs[base..];
        if plan.oneof_count() > 0 && runs.len() > 1 {
            drop_losers(plan, runs);
        }
        if !runs.is_sorted_by_key(|run| run.field) {
            // places in the wire keep the order of one field's runs
            runs.sort_unstable_by_key(|run| (run.field, run.start));
        }
        let kept = runs.partition_point(|run| run.field != LOST);
        self.runs.truncate(base + kept);
    }

    /// The runs of one field that begin at `first`: where they end.
    pub(super) fn same_field(&self, first: usize) -> usize {
        let field = self.runs[first].field;
        let more = self.runs[first..]
            .iter()
            .take_while(|run| run.field == field)
            .count();
        first + more
    }

    /// Calls `each` for the occurrences of the runs, in order.
    pub(super) fn occurrences(
        &mut self,
        runs: std::ops::Range<usize>,
        mut each: impl FnMut(&mut Self, Occurrence) -> Result<(), Box<Fault>>,
    ) -> Result<(), Box<Fault>> {
        for run in runs {
            let Run { start, end, .. } = self.runs[run];
            let bytes = &self.wire[..end as usize];
            let mut at = start as usize;
            while at < end as usize {
                let (number, wire_type) = wire::tag(bytes, &mut at).ok_or_else(malformed)?;
                let occurrence = Occurrence {
                    wire_type,
                    at,
                    number,
                };
                wire::skip(bytes, &mut at, number, wire_type).ok_or_else(malformed)?;
                each(self, occurrence)?;
            }
        }
        Ok(())
    }

    /// The last occurrence, the one that counts for a singular scalar.
    pub(super) fn last(&mut self, runs: std::ops::Range<usize>) -> Result<Occurrence, Box<Fault>> {
        let last = runs.end.saturating_sub(1)..runs.end;
        let mut found = None;
        self.occurrences(last, |_, occurrence| {
            found = Some(occurrence);
            Ok(())
        })?;
        found.ok_or_else(malformed)
    }

    /// The range of a string's, a message's or a group's content.
    pub(super) fn content(&self, occurrence: Occurrence) -> Result<(usize, usize), Box<Fault>> {
        let mut at = occurrence.at;
        if occurrence.wire_type == wire::GROUP {
            let end = wire::group_end(self.wire, &mut at, occurrence.number);
            return end.map(|end| (occurrence.at, end)).ok_or_else(malformed);
        }
        wire::delimited(self.wire, &mut at).ok_or_else(malformed)
    }
}

/// Whether the field can be written with this wire type.
fn fits(field: &FieldPlan, wire_type: u8) -> bool {
    let packed = wire_type == wire::LEN
        && field.cardinality == Cardinality::Repeated
        && field.kind.is_packable();
    packed || field.kind.wire_type() == wire_type
}

/// Of each oneof only the runs behind the last run of another member count.
fn drop_losers(plan: &MessagePlan, runs: &mut [Run]) {
    let oneof = |run: &Run| plan.fields()[run.field as usize].oneof;
    let mut members: Vec<(u32, u32, usize)> = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        if let Some(oneof) = oneof(run) {
            members.push((oneof, run.start, at));
        }
    }
    if members.len() < 2 {
        return;
    }
    members.sort_unstable();
    let mut winner: Option<(u32, u32)> = None;
    let mut lost = false;
    for (oneof, _, at) in members.into_iter().rev() {
        let field = runs[at].field;
        match winner {
            Some((won, by)) if won == oneof => lost |= by != field,
            _ => {
                winner = Some((oneof, field));
                lost = false;
            }
        }
        if lost {
            runs[at].field = LOST;
        }
    }
}
