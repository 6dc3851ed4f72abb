//! One value that is not a message.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Writer, escape, malformed, numbers};
use crate::fault::Fault;
use crate::plan::{EnumId, Kind};
use crate::wire::{self, low32};

impl<'a> Writer<'a> {
    /// Writes the value at `*at`, which moves behind it; false if it is the zero of its kind.
    pub(super) fn scalar(&mut self, kind: Kind, at: &mut usize) -> Result<bool, Box<Fault>> {
        let bits = match kind {
            Kind::String => return self.string(at),
            Kind::Bytes => return self.base64(at),
            Kind::Message(_) | Kind::Group(_) => return Err(malformed()),
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => wire::fixed64(self.wire, at),
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
                wire::fixed32(self.wire, at).map(u64::from)
            }
            _ => wire::varint(self.wire, at),
        };
        let bits = bits.ok_or_else(malformed)?;
        let out = &mut self.out;
        match kind {
            Kind::Double => numbers::double(out, f64::from_bits(bits)),
            Kind::Float => numbers::float(out, f32::from_bits(low32(bits))),
            Kind::Int32 | Kind::Sfixed32 => {
                numbers::signed(out, i64::from(low32(bits).cast_signed()));
            }
            Kind::Sint32 => numbers::signed(out, i64::from(wire::unzigzag32(low32(bits)))),
            Kind::Uint32 | Kind::Fixed32 => numbers::unsigned(out, u64::from(low32(bits))),
            Kind::Bool => out.extend_from_slice(if bits == 0 { b"false" } else { b"true" }),
            Kind::Enum(id) => self.enumeration(id, low32(bits).cast_signed()),
            Kind::Int64 | Kind::Sfixed64 => {
                numbers::quoted(out, |out| numbers::signed(out, bits.cast_signed()));
            }
            Kind::Sint64 => {
                numbers::quoted(out, |out| numbers::signed(out, wire::unzigzag64(bits)));
            }
            _ => numbers::quoted(out, |out| numbers::unsigned(out, bits)),
        }
        Ok(bits != 0)
    }

    pub(super) fn enumeration(&mut self, id: EnumId, number: i32) {
        let plan = self.plans.enumeration(id);
        match plan.quoted(number) {
            _ if plan.is_null() => self.out.extend_from_slice(b"null"),
            Some(name) if !self.options.enum_numbers => self.out.extend_from_slice(name),
            _ => numbers::signed(&mut self.out, i64::from(number)),
        }
    }

    fn string(&mut self, at: &mut usize) -> Result<bool, Box<Fault>> {
        let (start, end) = wire::delimited(self.wire, at).ok_or_else(malformed)?;
        let text = self.text(start, end)?;
        escape::string(&mut self.out, text);
        Ok(start < end)
    }

    /// A range of the wire as text, if it is no longer than what may still be written.
    pub(super) fn text(&self, start: usize, end: usize) -> Result<&'a str, Box<Fault>> {
        if self.out.len() + (end - start) > self.options.max_output {
            return Err(Fault::too_large(self.options.max_output));
        }
        std::str::from_utf8(&self.wire[start..end]).map_err(|_| Fault::new("is not valid UTF-8"))
    }

    fn base64(&mut self, at: &mut usize) -> Result<bool, Box<Fault>> {
        let (start, end) = wire::delimited(self.wire, at).ok_or_else(malformed)?;
        self.bytes(start, end)?;
        Ok(start < end)
    }

    pub(super) fn bytes(&mut self, start: usize, end: usize) -> Result<(), Box<Fault>> {
        let len = (end - start).div_ceil(3) * 4;
        if self.out.len() + len > self.options.max_output {
            return Err(Fault::too_large(self.options.max_output));
        }
        self.out.push(b'"');
        let from = self.out.len();
        self.out.resize(from + len, 0);
        let written = STANDARD.encode_slice(&self.wire[start..end], &mut self.out[from..]);
        self.out.truncate(from + written.map_err(|_| malformed())?);
        self.out.push(b'"');
        Ok(())
    }
}
