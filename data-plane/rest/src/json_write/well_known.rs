//! Messages for which ProtoJSON has a form of its own. Their fields are known by place: the plan checked the shape.

use super::{Writer, escape, malformed, numbers, time};
use crate::fault::Fault;
use crate::plan::{Kind, MessagePlan, WellKnown};
use crate::wire;

impl Writer<'_> {
    pub(super) fn well_known(&mut self, plan: &MessagePlan, base: usize) -> Result<(), Box<Fault>> {
        match plan.well_known() {
            WellKnown::No | WellKnown::Empty => self.out.extend_from_slice(b"{}"),
            WellKnown::Any => return self.any(base),
            WellKnown::Timestamp => {
                let (seconds, nanos) = self.seconds_nanos(base)?;
                return time::timestamp(&mut self.out, seconds, nanos);
            }
            WellKnown::Duration => {
                let (seconds, nanos) = self.seconds_nanos(base)?;
                return time::duration(&mut self.out, seconds, nanos);
            }
            WellKnown::FieldMask => return self.field_mask(base),
            WellKnown::Struct => match plan.fields()[0].message_id() {
                Some(entry) => return self.map(entry, base..self.runs.len()).map(drop),
                None => return Err(malformed()),
            },
            WellKnown::ListValue => {
                let kind = plan.fields()[0].kind;
                return self.array(kind, base..self.runs.len()).map(drop);
            }
            WellKnown::Value => return self.any_value(plan, base),
            WellKnown::Wrapper if base == self.runs.len() => self.zero_of(plan.fields()[0].kind),
            WellKnown::Wrapper => {
                let mut at = self.last(base..self.runs.len())?.at;
                self.scalar(plan.fields()[0].kind, &mut at)?;
            }
        }
        Ok(())
    }

    /// The runs of one field among those from `base` on.
    fn runs_of(&self, base: usize, field: u32) -> std::ops::Range<usize> {
        let runs = &self.runs[base..];
        let start = runs.partition_point(|run| run.field < field);
        let end = runs.partition_point(|run| run.field <= field);
        base + start..base + end
    }

    fn seconds_nanos(&mut self, base: usize) -> Result<(i64, i32), Box<Fault>> {
        let mut parts = [0; 2];
        for (field, part) in (0..).zip(&mut parts) {
            let runs = self.runs_of(base, field);
            if !runs.is_empty() {
                let mut at = self.last(runs)?.at;
                *part = wire::varint(self.wire, &mut at).ok_or_else(malformed)?;
            }
        }
        Ok((parts[0].cast_signed(), wire::low32(parts[1]).cast_signed()))
    }

    fn field_mask(&mut self, base: usize) -> Result<(), Box<Fault>> {
        self.out.push(b'"');
        let mut first = true;
        self.occurrences(base..self.runs.len(), |writer, occurrence| {
            let (start, end) = writer.content(occurrence)?;
            if !std::mem::take(&mut first) {
                writer.out.push(b',');
            }
            let path = writer.text(start, end)?;
            time::mask_path(&mut writer.out, path)
        })?;
        self.out.push(b'"');
        Ok(())
    }

    /// `google.protobuf.Value`: one of its members, or nothing, which is `null`.
    fn any_value(&mut self, plan: &MessagePlan, base: usize) -> Result<(), Box<Fault>> {
        let Some(run) = self.runs.get(base) else {
            self.out.extend_from_slice(b"null");
            return Ok(());
        };
        let kind = plan.fields()[run.field as usize].kind;
        let runs = base..self.runs.len();
        match plan.fields()[run.field as usize].message_id() {
            Some(id) => {
                let base = self.runs.len();
                let inner = self.plans.message(id);
                self.occurrences(runs, |writer, occurrence| {
                    let (start, end) = writer.content(occurrence)?;
                    writer.scan(inner, start, end)
                })?;
                self.finish(id, base)
            }
            None => {
                let mut at = self.last(runs)?.at;
                if kind == Kind::Double {
                    let bits = wire::fixed64(self.wire, &mut { at }).ok_or_else(malformed)?;
                    if !f64::from_bits(bits).is_finite() {
                        return Err(Fault::new("is a Value that is not a finite number"));
                    }
                }
                self.scalar(kind, &mut at).map(drop)
            }
        }
    }

    /// An Any with its content as JSON if its type is known, else as bytes.
    fn any(&mut self, base: usize) -> Result<(), Box<Fault>> {
        if base == self.runs.len() {
            self.out.extend_from_slice(b"{}");
            return Ok(());
        }
        let (url_start, url_end) = self.last_content(base, 0)?;
        let (start, end) = self.last_content(base, 1)?;
        let url = self.text(url_start, url_end)?;
        self.out.extend_from_slice(b"{\"@type\":");
        escape::string(&mut self.out, url);
        let known = url
            .rsplit_once('/')
            .and_then(|(_, name)| self.plans.find(name));
        match known {
            None => {
                self.out.extend_from_slice(b",\"@value\":");
                self.bytes(start, end)?;
            }
            Some(id) if self.plans.message(id).well_known().is_special() => {
                self.out.extend_from_slice(b",\"value\":");
                self.message(id, start, end)?;
            }
            Some(id) => {
                let plan = self.plans.message(id);
                let base = self.runs.len();
                self.enter()?;
                self.scan(plan, start, end)?;
                self.order(plan, base);
                self.members(plan, base)?;
                self.runs.truncate(base);
                self.depth -= 1;
            }
        }
        self.out.push(b'}');
        Ok(())
    }

    /// The last content of a field; empty if it does not occur.
    fn last_content(&mut self, base: usize, field: u32) -> Result<(usize, usize), Box<Fault>> {
        let runs = self.runs_of(base, field);
        if runs.is_empty() {
            return Ok((0, 0));
        }
        let last = self.last(runs)?;
        self.content(last)
    }

    /// The zero of a scalar kind.
    pub(super) fn zero_of(&mut self, kind: Kind) {
        match kind {
            Kind::Enum(id) => self.enumeration(id, 0),
            Kind::Bool => self.out.extend_from_slice(b"false"),
            Kind::String | Kind::Bytes => self.out.extend_from_slice(b"\"\""),
            Kind::Message(_) | Kind::Group(_) => self.out.extend_from_slice(b"null"),
            Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => {
                numbers::quoted(&mut self.out, |out| out.push(b'0'));
            }
            _ => self.out.push(b'0'),
        }
    }
}
