//! The plan of one enum: names by number for the way out, numbers by name for the way in.

use super::names::{NameTable, nearest};
use crate::fault::{Fault, shown};
use crate::json_write::escape;

/// One enum.
#[derive(Debug)]
pub struct EnumPlan {
    name: Box<str>,
    /// `google.protobuf.NullValue`, whose JSON is `null`.
    is_null: bool,
    /// Of proto2: a number without a name is no value of it.
    is_closed: bool,
    /// All names, aliases too, as declared.
    values: Box<[(Box<str>, i32)]>,
    /// Number and the name as it is written, escaped and quoted; by number, rising, the first name of each.
    by_number: Box<[(i32, Box<[u8]>)]>,
    by_name: NameTable,
}

impl EnumPlan {
    pub(super) fn new(name: &str, is_closed: bool, values: Vec<(Box<str>, i32)>) -> Self {
        let mut by_number: Vec<(i32, Box<[u8]>)> = Vec::with_capacity(values.len());
        for (name, number) in &values {
            let mut quoted = Vec::with_capacity(name.len() + 2);
            escape::string(&mut quoted, name);
            by_number.push((*number, quoted.into()));
        }
        // stable: of two names for one number the first declared stays
        by_number.sort_by_key(|(number, _)| *number);
        by_number.dedup_by_key(|(number, _)| *number);
        let by_name = NameTable::new((0..).zip(&values).map(|(at, (name, _))| (&**name, at)));
        Self {
            name: name.into(),
            is_null: name == "google.protobuf.NullValue" && values.len() == 1,
            is_closed,
            values: values.into(),
            by_number: by_number.into(),
            by_name,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_null(&self) -> bool {
        self.is_null
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Names and numbers as declared.
    pub fn values(&self) -> impl ExactSizeIterator<Item = (&str, i32)> {
        self.values.iter().map(|(name, number)| (&**name, *number))
    }

    /// The number of a name; the case counts.
    pub fn number(&self, name: &[u8]) -> Option<i32> {
        self.by_name.find(name).map(|at| self.values[at as usize].1)
    }

    /// The name of a number as JSON text.
    pub(crate) fn quoted(&self, number: i32) -> Option<&[u8]> {
        // most enums count from 0 without gaps
        let guess = usize::try_from(number)
            .ok()
            .and_then(|at| self.by_number.get(at));
        if let Some((found, quoted)) = guess
            && *found == number
        {
            return Some(quoted);
        }
        let at = self
            .by_number
            .binary_search_by_key(&number, |(number, _)| *number)
            .ok()?;
        Some(&self.by_number[at].1)
    }

    pub(crate) fn has_number(&self, number: i32) -> bool {
        self.quoted(number).is_some()
    }

    pub(crate) fn unknown(&self, name: &str) -> Box<Fault> {
        let hint = match nearest(name, self.values.iter().map(|(name, _)| &**name)) {
            Some(near) => format!("; did you mean {:?}?", shown(near)),
            None => String::new(),
        };
        Fault::new(format!(
            "is {:?}, which is no value of {}{hint}",
            shown(name),
            shown(&self.name)
        ))
    }
}
