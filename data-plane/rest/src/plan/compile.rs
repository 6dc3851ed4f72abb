//! From descriptors to plans. The only file of the plans that sees prost-reflect.

use prost_reflect::{DescriptorPool, EnumDescriptor, FieldDescriptor, Kind as Described};
use prost_reflect::{MessageDescriptor, Syntax};
use rustc_hash::FxHashMap;

use super::message::{Cardinality, FieldPlan, Kind, MessagePlan};
use super::well_known::classify;
use super::{EnumId, EnumPlan, MAX_FIELDS, MAX_TYPES, MessageId, PlanError, PlanSet};

const ANY: &str = "google.protobuf.Any";

impl PlanSet {
    /// Compiles the messages named (full names, no leading dot) and all that they reach. Where `google.protobuf.Any` is among
    /// them, every message of the pool can stand in an answer, so all of them are compiled.
    pub fn compile<'a>(
        pool: &DescriptorPool,
        roots: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, PlanError> {
        let mut compiler = Compiler::default();
        for root in roots {
            let found = pool
                .get_message_by_name(root)
                .ok_or_else(|| PlanError::NoSuchMessage(root.to_owned()))?;
            compiler.message(&found)?;
        }
        compiler.run()?;
        if compiler.ids.contains_key(ANY) {
            for message in pool.all_messages() {
                compiler.message(&message)?;
            }
            compiler.run()?;
        }
        Ok(Self {
            messages: compiler.messages,
            enums: compiler.enums,
            by_name: compiler.ids,
        })
    }
}

#[derive(Default)]
struct Compiler {
    messages: Vec<MessagePlan>,
    enums: Vec<EnumPlan>,
    ids: FxHashMap<Box<str>, MessageId>,
    enum_ids: FxHashMap<Box<str>, EnumId>,
    /// Have an id, and no plan yet; those before `messages.len()` are done.
    waiting: Vec<MessageDescriptor>,
    fields: usize,
}

impl Compiler {
    /// Plans all that waits, in the order of the ids.
    fn run(&mut self) -> Result<(), PlanError> {
        while let Some(next) = self.waiting.get(self.messages.len()).cloned() {
            let plan = self.plan(&next)?;
            self.messages.push(plan);
        }
        Ok(())
    }

    fn message(&mut self, message: &MessageDescriptor) -> Result<MessageId, PlanError> {
        if let Some(id) = self.ids.get(message.full_name()) {
            return Ok(*id);
        }
        let id = MessageId(crate::wire::at32(self.waiting.len()));
        self.ids.insert(message.full_name().into(), id);
        self.waiting.push(message.clone());
        self.check_types()?;
        Ok(id)
    }

    fn enumeration(&mut self, described: &EnumDescriptor) -> Result<EnumId, PlanError> {
        if let Some(id) = self.enum_ids.get(described.full_name()) {
            return Ok(*id);
        }
        let id = EnumId(crate::wire::at32(self.enums.len()));
        self.count_fields(described.values().len())?;
        // as declared: the first of two names for one number is the one that is written
        let declared = &described.enum_descriptor_proto().value;
        let values = declared
            .iter()
            .map(|value| (value.name().into(), value.number()));
        let closed = described.parent_file().syntax() == Syntax::Proto2;
        self.enums.push(EnumPlan::new(
            described.full_name(),
            closed,
            values.collect(),
        ));
        self.enum_ids.insert(described.full_name().into(), id);
        self.check_types()?;
        Ok(id)
    }

    fn plan(&mut self, message: &MessageDescriptor) -> Result<MessagePlan, PlanError> {
        self.count_fields(message.fields().len())?;
        // `optional` of proto3 is a oneof of one member in descriptors, and none to the reader
        let real = || message.oneofs().filter(|oneof| !oneof.is_synthetic());
        let oneofs: Vec<Box<str>> = real().map(|oneof| oneof.name().into()).collect();
        let places: FxHashMap<Box<str>, u32> = oneofs.iter().cloned().zip(0..).collect();
        let mut fields = Vec::with_capacity(message.fields().len());
        for field in message.fields() {
            let oneof = field.containing_oneof();
            let oneof = oneof.and_then(|oneof| places.get(oneof.name()).copied());
            fields.push(self.field(&field, oneof)?);
        }
        let well_known = classify(message.full_name(), &fields);
        Ok(MessagePlan::new(
            message.full_name(),
            well_known,
            fields,
            oneofs,
        ))
    }

    fn field(
        &mut self,
        field: &FieldDescriptor,
        oneof: Option<u32>,
    ) -> Result<FieldPlan, PlanError> {
        let cardinality = match (field.is_map(), field.is_list()) {
            (true, _) => Cardinality::Map,
            (_, true) => Cardinality::Repeated,
            _ => Cardinality::Singular,
        };
        let plan = FieldPlan {
            number: field.number(),
            kind: self.kind(field)?,
            cardinality,
            presence: field.supports_presence(),
            packed: field.is_packed(),
            oneof,
            name: field.name().into(),
            json_name: field.json_name().into(),
            json_key: Box::default(),
            proto_key: Box::default(),
        };
        Ok(plan.keyed())
    }

    fn kind(&mut self, field: &FieldDescriptor) -> Result<Kind, PlanError> {
        Ok(match field.kind() {
            Described::Double => Kind::Double,
            Described::Float => Kind::Float,
            Described::Int32 => Kind::Int32,
            Described::Int64 => Kind::Int64,
            Described::Uint32 => Kind::Uint32,
            Described::Uint64 => Kind::Uint64,
            Described::Sint32 => Kind::Sint32,
            Described::Sint64 => Kind::Sint64,
            Described::Fixed32 => Kind::Fixed32,
            Described::Fixed64 => Kind::Fixed64,
            Described::Sfixed32 => Kind::Sfixed32,
            Described::Sfixed64 => Kind::Sfixed64,
            Described::Bool => Kind::Bool,
            Described::String => Kind::String,
            Described::Bytes => Kind::Bytes,
            Described::Enum(described) => Kind::Enum(self.enumeration(&described)?),
            Described::Message(message) if field.is_group() => Kind::Group(self.message(&message)?),
            Described::Message(message) => Kind::Message(self.message(&message)?),
        })
    }

    fn check_types(&self) -> Result<(), PlanError> {
        if self.waiting.len() + self.enums.len() > MAX_TYPES {
            return Err(PlanError::TooManyTypes);
        }
        Ok(())
    }

    fn count_fields(&mut self, more: usize) -> Result<(), PlanError> {
        self.fields += more;
        if self.fields > MAX_FIELDS {
            return Err(PlanError::TooManyFields);
        }
        Ok(())
    }
}
