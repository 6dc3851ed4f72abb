//! What the HPACK tables know of a field without reading its bytes. A decoder keeps marks with each
//! table entry and passes them on in [`crate::Fields`], so that the encoder of another connection
//! finds its own entry by an existing hash. Marks may be missing (zero) but never wrong: changing
//! the bytes of a field clears its marks.

use super::hash::{field_hash, name_hash};
use super::statics::name_id_of;
use crate::headers::FieldClass;

/// The marks of one field; zero means "not known".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Hash of name and value.
    pub(crate) hash: u32,
    pub(crate) name_hash: u32,
    /// Which well-known name it is, as [`super::statics::known`] understands it.
    pub(crate) name_id: u8,
    /// The entry of the static table that has this name and this value.
    pub(crate) static_index: u8,
    /// Its class by its bytes; not used by HPACK itself.
    pub(crate) class: FieldClass,
}

impl Marks {
    /// The marks that stay valid when the value changes.
    pub(crate) fn of_name(self) -> Self {
        Self {
            hash: 0,
            static_index: 0,
            class: FieldClass::Unclassified,
            ..self
        }
    }

    /// With the marks of the name, computed now if they are not known.
    #[inline]
    pub(crate) fn with_name(mut self, name: &[u8]) -> Self {
        if self.name_id == 0 {
            if self.name_hash == 0 {
                self.name_hash = name_hash(name);
            }
            self.name_id = name_id_of(self.name_hash, name);
        }
        self
    }

    /// With the hash of the field, computed now if it is not known. The name's must be.
    #[inline]
    pub(crate) fn with_value(mut self, value: &[u8]) -> Self {
        if self.hash == 0 {
            self.hash = field_hash(self.name_hash, value);
        }
        self
    }
}
