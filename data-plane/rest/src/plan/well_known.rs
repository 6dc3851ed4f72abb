//! The messages for which ProtoJSON has a form of its own. A schema may carry any message under such a name, so a message is
//! taken for one only if its fields are the known ones.

use super::message::{Cardinality, FieldPlan, Kind};

/// How a message is written in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WellKnown {
    /// An object of its fields.
    No,
    Any,
    Timestamp,
    Duration,
    FieldMask,
    Struct,
    Value,
    ListValue,
    /// `google.protobuf.Int32Value` and its like: the value alone.
    Wrapper,
    /// An object without members; inside of an Any under `value`.
    Empty,
}

impl WellKnown {
    /// True for those that stand under `value` in an Any.
    pub(crate) fn is_special(self) -> bool {
        self != Self::No
    }
}

/// What a message with this name and these fields is.
pub(super) fn classify(name: &str, fields: &[FieldPlan]) -> WellKnown {
    let Some(short) = name.strip_prefix("google.protobuf.") else {
        return WellKnown::No;
    };
    let mut shape: Vec<_> = fields
        .iter()
        .map(|field| (field.number, field.kind, field.cardinality))
        .collect();
    shape.sort_by_key(|(number, ..)| *number);
    use Cardinality::{Map, Repeated, Singular};
    match (short, shape.as_slice()) {
        ("Any", [(1, Kind::String, Singular), (2, Kind::Bytes, Singular)]) => WellKnown::Any,
        ("Timestamp", [(1, Kind::Int64, Singular), (2, Kind::Int32, Singular)]) => {
            WellKnown::Timestamp
        }
        ("Duration", [(1, Kind::Int64, Singular), (2, Kind::Int32, Singular)]) => {
            WellKnown::Duration
        }
        ("FieldMask", [(1, Kind::String, Repeated)]) => WellKnown::FieldMask,
        ("Struct", [(1, Kind::Message(_), Map)]) => WellKnown::Struct,
        ("ListValue", [(1, Kind::Message(_), Repeated)]) => WellKnown::ListValue,
        (
            "Value",
            [
                (1, Kind::Enum(_), Singular),
                (2, Kind::Double, Singular),
                (3, Kind::String, Singular),
                (4, Kind::Bool, Singular),
                (5, Kind::Message(_), Singular),
                (6, Kind::Message(_), Singular),
            ],
        ) => WellKnown::Value,
        ("Empty", []) => WellKnown::Empty,
        (name, [(1, kind, Singular)]) if wraps(name, *kind) => WellKnown::Wrapper,
        _ => WellKnown::No,
    }
}

fn wraps(name: &str, kind: Kind) -> bool {
    matches!(
        (name, kind),
        ("DoubleValue", Kind::Double)
            | ("FloatValue", Kind::Float)
            | ("Int64Value", Kind::Int64)
            | ("UInt64Value", Kind::Uint64)
            | ("Int32Value", Kind::Int32)
            | ("UInt32Value", Kind::Uint32)
            | ("BoolValue", Kind::Bool)
            | ("StringValue", Kind::String)
            | ("BytesValue", Kind::Bytes)
    )
}
