//! A message's wire bytes as JSON text, by its plan, without a tree between. Unknown fields are dropped and counted; what
//! JSON cannot say (bytes that are not UTF-8 in a string, times out of range, NaN in a `Value`) is a fault with its path.
//!
//! A message is walked twice: once for the places of its fields (behind lengths, so nested messages cost nothing), once to
//! write them by number. Occurrences of one field that lie apart thus meet: repeated fields become one array, singular
//! messages are merged, of singular scalars and of a oneof's members the last counts. Memory beside the output: 12 bytes
//! per field of the messages that are open at one time.

pub(crate) mod escape;
mod maps;
mod members;
mod numbers;
mod runs;
mod scalars;
mod time;
mod well_known;

#[cfg(test)]
mod tests;

use crate::fault::{Fault, FaultKind};
use crate::plan::{FieldRef, MessageId, PlanSet};

use runs::Run;

/// Nested objects and arrays of messages, at most; protobuf's own readers allow 100.
const MAX_DEPTH: usize = 100;

/// How JSON is written.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// Write fields without presence also when they are zero or empty (REST), or leave them out (canonical ProtoJSON).
    pub unset_fields: bool,
    /// Names as in the proto file instead of `json_name`.
    pub proto_names: bool,
    pub enum_numbers: bool,
    /// The longest text, in bytes.
    pub max_output: usize,
}

impl WriteOptions {
    pub fn rest(max_output: usize) -> Self {
        Self {
            unset_fields: true,
            proto_names: false,
            enum_numbers: false,
            max_output,
        }
    }

    pub fn canonical(max_output: usize) -> Self {
        Self {
            unset_fields: false,
            ..Self::rest(max_output)
        }
    }
}

/// JSON, and what was left out of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    pub json: Vec<u8>,
    /// Fields that the schema does not know, or has with another wire type.
    pub dropped_fields: u64,
}

/// The JSON of a whole message.
pub fn write_message(
    plans: &PlanSet,
    message: MessageId,
    wire: &[u8],
    options: WriteOptions,
) -> Result<Written, Box<Fault>> {
    let mut writer = Writer::new(plans, wire, options)?;
    writer.message(message, 0, wire.len())?;
    writer.done()
}

/// The JSON of one field of a message (`response_body`); `null` if it is unset and either has presence or
/// [`WriteOptions::unset_fields`] is off.
pub fn write_field(
    plans: &PlanSet,
    field: FieldRef,
    wire: &[u8],
    options: WriteOptions,
) -> Result<Written, Box<Fault>> {
    let mut writer = Writer::new(plans, wire, options)?;
    let plan = plans.message(field.message);
    writer.scan(plan, 0, wire.len())?;
    writer.order(plan, 0);
    writer.field_alone(plan, field.index)?;
    writer.done()
}

struct Writer<'a> {
    plans: &'a PlanSet,
    wire: &'a [u8],
    options: WriteOptions,
    out: Vec<u8>,
    /// Of all messages that are open, the innermost last.
    runs: Vec<Run>,
    depth: usize,
    dropped: u64,
}

impl<'a> Writer<'a> {
    fn new(plans: &'a PlanSet, wire: &'a [u8], options: WriteOptions) -> Result<Self, Box<Fault>> {
        if wire.len() >= u32::MAX as usize {
            return Err(Fault::too_large(u32::MAX as usize));
        }
        let guess = (wire.len() * 2).min(options.max_output) + 64;
        let out = Vec::with_capacity(guess);
        Ok(Self {
            plans,
            wire,
            options,
            out,
            runs: Vec::new(),
            depth: 0,
            dropped: 0,
        })
    }

    fn done(self) -> Result<Written, Box<Fault>> {
        self.check_len()?;
        Ok(Written {
            json: self.out,
            dropped_fields: self.dropped,
        })
    }

    /// The output grows by one scalar between two checks, at most.
    #[inline]
    fn check_len(&self) -> Result<(), Box<Fault>> {
        if self.out.len() > self.options.max_output {
            return Err(Fault::too_large(self.options.max_output));
        }
        Ok(())
    }

    /// The message whose content is the range given.
    fn message(&mut self, id: MessageId, start: usize, end: usize) -> Result<(), Box<Fault>> {
        let base = self.runs.len();
        self.scan(self.plans.message(id), start, end)?;
        self.finish(id, base)
    }

    /// Writes the message whose runs begin at `base`, and takes them off.
    fn finish(&mut self, id: MessageId, base: usize) -> Result<(), Box<Fault>> {
        let plan = self.plans.message(id);
        self.order(plan, base);
        self.enter()?;
        if plan.well_known().is_special() {
            self.well_known(plan, base)?;
        } else {
            self.out.push(b'{');
            self.members(plan, base)?;
            self.out.push(b'}');
        }
        self.depth -= 1;
        self.runs.truncate(base);
        Ok(())
    }

    fn enter(&mut self) -> Result<(), Box<Fault>> {
        self.depth += 1;
        // a Value and the Struct or ListValue in it are one level of JSON
        if self.depth > MAX_DEPTH * 2 {
            return Err(Fault::new(format!(
                "is nested deeper than {MAX_DEPTH} messages"
            )));
        }
        self.check_len()
    }
}

/// The fault of bytes that are not a message of the type.
fn malformed() -> Box<Fault> {
    let mut fault = Fault::new("is not a valid protobuf message");
    fault.kind = FaultKind::Invalid;
    fault
}
