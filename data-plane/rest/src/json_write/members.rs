//! The members of an object: each field by its cardinality.

use std::ops::Range;

use super::{Writer, malformed};
use crate::fault::Fault;
use crate::plan::{Cardinality, FieldPlan, Kind, MessagePlan};
use crate::wire;

impl Writer<'_> {
    /// All fields of the runs from `base` on, without the braces.
    pub(super) fn members(&mut self, plan: &MessagePlan, base: usize) -> Result<(), Box<Fault>> {
        let end = self.runs.len();
        let mut at = base;
        if !self.options.unset_fields {
            while at < end {
                let next = self.same_field(at);
                let field = &plan.fields()[self.runs[at].field as usize];
                self.member(field, at..next)
                    .map_err(|fault| fault.in_field(&field.json_name))?;
                at = next;
            }
            return Ok(());
        }
        for (index, field) in (0..).zip(plan.fields()) {
            if at < end && self.runs[at].field == index {
                let next = self.same_field(at);
                self.member(field, at..next)
                    .map_err(|fault| fault.in_field(&field.json_name))?;
                at = next;
            } else if !field.presence {
                self.key(field);
                self.zero(field);
            }
        }
        self.check_len()
    }

    /// One field that occurs, with its name; nothing if it is empty and empty fields are left out.
    fn member(&mut self, field: &FieldPlan, runs: Range<usize>) -> Result<(), Box<Fault>> {
        let before = self.out.len();
        self.key(field);
        if !self.value(field, runs)? && !self.options.unset_fields && !field.presence {
            self.out.truncate(before);
        }
        self.check_len()
    }

    fn key(&mut self, field: &FieldPlan) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        let key = if self.options.proto_names {
            &field.proto_key
        } else {
            &field.json_key
        };
        self.out.extend_from_slice(key);
    }

    /// A field's value alone; `null` if it is unset.
    pub(super) fn field_alone(&mut self, plan: &MessagePlan, index: u32) -> Result<(), Box<Fault>> {
        let field = &plan.fields()[index as usize];
        let first = self.runs.partition_point(|run| run.field < index);
        if self.runs.get(first).is_some_and(|run| run.field == index) {
            let runs = first..self.same_field(first);
            self.value(field, runs)
                .map_err(|fault| fault.in_field(&field.json_name))?;
        } else if !field.presence && self.options.unset_fields {
            self.zero(field);
        } else {
            self.out.extend_from_slice(b"null");
        }
        Ok(())
    }

    /// Writes a field's value; false if it is the zero value or empty.
    fn value(&mut self, field: &FieldPlan, runs: Range<usize>) -> Result<bool, Box<Fault>> {
        match (field.cardinality, field.kind) {
            (Cardinality::Map, Kind::Message(entry)) => self.map(entry, runs),
            (Cardinality::Map, _) => Err(malformed()),
            (Cardinality::Repeated, _) => self.array(field.kind, runs),
            (Cardinality::Singular, Kind::Message(id) | Kind::Group(id)) => {
                let base = self.runs.len();
                let plan = self.plans.message(id);
                self.occurrences(runs, |writer, occurrence| {
                    let (start, end) = writer.content(occurrence)?;
                    writer.scan(plan, start, end)
                })?;
                self.finish(id, base)?;
                Ok(true)
            }
            (Cardinality::Singular, kind) => {
                let mut at = self.last(runs)?.at;
                self.scalar(kind, &mut at)
            }
        }
    }

    /// All elements, packed or not; false if there is none.
    pub(super) fn array(&mut self, kind: Kind, runs: Range<usize>) -> Result<bool, Box<Fault>> {
        self.out.push(b'[');
        let mut index = 0;
        self.occurrences(runs, |writer, occurrence| {
            if occurrence.wire_type == wire::LEN && kind.is_packable() {
                let (mut at, end) = writer.content(occurrence)?;
                while at < end {
                    writer.element(index, |writer| writer.scalar(kind, &mut at).map(drop))?;
                    index += 1;
                }
                return if at == end { Ok(()) } else { Err(malformed()) };
            }
            writer.element(index, |writer| match kind {
                Kind::Message(id) | Kind::Group(id) => {
                    let (start, end) = writer.content(occurrence)?;
                    writer.message(id, start, end)
                }
                kind => writer.scalar(kind, &mut { occurrence.at }).map(drop),
            })?;
            index += 1;
            Ok(())
        })?;
        self.out.push(b']');
        Ok(index > 0)
    }

    fn element(
        &mut self,
        index: u64,
        write: impl FnOnce(&mut Self) -> Result<(), Box<Fault>>,
    ) -> Result<(), Box<Fault>> {
        if index > 0 {
            self.out.push(b',');
        }
        write(self)
            .and_then(|()| self.check_len())
            .map_err(|fault| fault.in_element(index))
    }

    /// What a field without presence is when it does not occur.
    fn zero(&mut self, field: &FieldPlan) {
        match field.cardinality {
            Cardinality::Repeated => self.out.extend_from_slice(b"[]"),
            Cardinality::Map => self.out.extend_from_slice(b"{}"),
            Cardinality::Singular => self.zero_of(field.kind),
        }
    }
}
