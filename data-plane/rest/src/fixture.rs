//! The test schema, its plans, and random messages of it.

use std::sync::LazyLock;

use prost::bytes::Bytes;
use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage, Value,
};

use crate::plan::{MessageId, PlanSet};

pub(crate) static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/protos");
    let mut compiler = protox::Compiler::new([dir]).unwrap();
    compiler
        .include_imports(true)
        .open_file("kinds.proto")
        .unwrap();
    DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap()
});

pub(crate) static PLANS: LazyLock<PlanSet> =
    LazyLock::new(|| PlanSet::compile(&POOL, ["kinds.All", "kinds.Items"]).unwrap());

pub(crate) fn id(name: &str) -> MessageId {
    PLANS.find(name).unwrap()
}

pub(crate) fn all() -> MessageId {
    id("kinds.All")
}

/// Random messages, the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn message(&mut self, descriptor: &MessageDescriptor, depth: u32) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        if self.special(&mut message, depth) {
            return message;
        }
        let share = 1 + self.below(8);
        for field in descriptor.fields() {
            let required = field.cardinality() == Cardinality::Required;
            let deep = depth == 0 && matches!(field.kind(), Kind::Message(_)) && !field.is_map();
            if !required && (deep || self.below(share) != 0) {
                continue;
            }
            let value = self.field(&field, depth);
            message.set_field(&field, value);
        }
        message
    }

    /// Fills messages whose values JSON restricts.
    fn special(&mut self, message: &mut DynamicMessage, depth: u32) -> bool {
        let name = message.descriptor().full_name().to_owned();
        match name.as_str() {
            "google.protobuf.Timestamp" => {
                let seconds = self.below(315_537_897_600).cast_signed() - 62_135_596_800;
                message.set_field_by_name("seconds", Value::I64(seconds));
                message.set_field_by_name("nanos", Value::I32(self.nanos()));
            }
            "google.protobuf.Duration" => {
                let sign = if self.below(2) == 0 { 1 } else { -1 };
                let seconds = self.below(1 << 38).cast_signed() % 315_576_000_000;
                message.set_field_by_name("seconds", Value::I64(sign * seconds));
                let nanos = self.nanos() * i32::try_from(sign).unwrap();
                message.set_field_by_name("nanos", Value::I32(nanos));
            }
            "google.protobuf.FieldMask" => {
                let paths = ["a", "foo_bar", "user.display_name", "x9"];
                let count = self.below(4);
                let paths = paths.iter().take(usize::try_from(count).unwrap());
                let paths = paths
                    .map(|path| Value::String((*path).to_owned()))
                    .collect();
                message.set_field_by_name("paths", Value::List(paths));
            }
            "google.protobuf.Any" => {
                let inner = [
                    "google.protobuf.Duration",
                    "kinds.All",
                    "google.protobuf.Value",
                ];
                let inner = inner[usize::try_from(self.below(3)).unwrap()];
                let inner = POOL.get_message_by_name(inner).unwrap();
                let inner = self.message(&inner, depth.saturating_sub(1));
                let url = format!("type.googleapis.com/{}", inner.descriptor().full_name());
                message.set_field_by_name("type_url", Value::String(url));
                let bytes = Value::Bytes(prost::Message::encode_to_vec(&inner).into());
                message.set_field_by_name("value", bytes);
            }
            // prost-reflect writes infinity in a wrapper as null
            "google.protobuf.DoubleValue" => {
                message.set_field_by_name("value", Value::F64(0.5));
            }
            "google.protobuf.FloatValue" => {
                message.set_field_by_name("value", Value::F32(0.1));
            }
            "google.protobuf.Value" => {
                let top = if depth == 0 { 4 } else { 6 };
                let number = u32::try_from(self.below(top)).unwrap() + 1;
                let field = message.descriptor().get_field(number).unwrap();
                let mut value = self.field(&field, depth.saturating_sub(1));
                if number == 2 {
                    value =
                        Value::F64(f64::from(u32::try_from(self.below(1 << 30)).unwrap()) / 8.0);
                }
                message.set_field(&field, value);
            }
            _ => return false,
        }
        true
    }

    fn nanos(&mut self) -> i32 {
        let unit = [0, 1_000_000, 1000, 1][usize::try_from(self.below(4)).unwrap()];
        unit * i32::try_from(self.below(999)).unwrap()
    }

    fn field(&mut self, field: &FieldDescriptor, depth: u32) -> Value {
        let depth = depth.saturating_sub(1);
        let count = self.below(4);
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                panic!("a map without entry")
            };
            let (key, value) = (entry.map_entry_key_field(), entry.map_entry_value_field());
            let deep = depth == 0 && value.kind().as_message().is_some();
            let count = if deep { 0 } else { count };
            return Value::Map(
                (0..count)
                    .map(|_| (self.key(&key.kind()), self.one(&value.kind(), depth)))
                    .collect(),
            );
        }
        if field.is_list() {
            return Value::List((0..count).map(|_| self.one(&field.kind(), depth)).collect());
        }
        self.one(&field.kind(), depth)
    }

    fn key(&mut self, kind: &Kind) -> MapKey {
        match self.one(kind, 0) {
            Value::Bool(key) => MapKey::Bool(key),
            Value::I32(key) => MapKey::I32(key),
            Value::I64(key) => MapKey::I64(key),
            Value::U32(key) => MapKey::U32(key),
            Value::U64(key) => MapKey::U64(key),
            Value::String(key) => MapKey::String(key),
            other => panic!("{other:?} as key"),
        }
    }

    #[allow(clippy::cast_possible_truncation)]
    fn one(&mut self, kind: &Kind, depth: u32) -> Value {
        let shift = self.below(64);
        let bits = if self.below(8) == 0 {
            0
        } else {
            self.next() >> shift
        };
        match kind {
            Kind::Double => Value::F64(self.double()),
            // with few digits: of two shortest texts of one number the libraries choose differently
            Kind::Float => Value::F32(self.below(1 << 12) as f32 / 8.0),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(bits as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(bits.cast_signed()),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(bits as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(bits),
            Kind::Bool => Value::Bool(bits & 1 == 1),
            Kind::String => Value::String(self.string()),
            Kind::Bytes => Value::Bytes(Bytes::from(self.string().into_bytes())),
            Kind::Enum(described) => {
                let at = self.below(described.values().len() as u64);
                let at = usize::try_from(at).unwrap();
                Value::EnumNumber(described.values().nth(at).unwrap().number())
            }
            Kind::Message(descriptor) => Value::Message(self.message(descriptor, depth)),
        }
    }

    fn double(&mut self) -> f64 {
        match self.below(8) {
            0 => 0.0,
            1 => f64::INFINITY,
            2 => f64::NAN,
            3 => 1e20,
            4 => -1.5e-9,
            _ => f64::from(u32::try_from(self.below(1 << 31)).unwrap()) / 1024.0,
        }
    }

    fn string(&mut self) -> String {
        const PARTS: [&str; 10] = [
            "a",
            "plain text of some length",
            "\"",
            "\\",
            "\n",
            "\u{1}",
            "é",
            "😀",
            "/<>&",
            "\u{2028}",
        ];
        let count = self.below(5);
        (0..count)
            .map(|_| PARTS[usize::try_from(self.below(10)).unwrap()])
            .collect()
    }
}
