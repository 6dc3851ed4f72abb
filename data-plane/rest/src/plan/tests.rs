//! Names, numbers and bounds of plans.

use prost_reflect::DescriptorPool;
use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};

use super::{Cardinality, PlanError, PlanSet, WellKnown};
use crate::fixture::{PLANS, all, id};

fn place(name: &str) -> Option<u32> {
    PLANS.message(all()).find(name.as_bytes())
}

#[test]
fn fields_are_found_by_both_names_and_by_number() {
    let plan = PLANS.message(all());
    for (at, field) in (0..).zip(plan.fields()) {
        assert_eq!(plan.find(field.name.as_bytes()), Some(at));
        assert_eq!(plan.find(field.json_name.as_bytes()), Some(at));
        assert_eq!(plan.find_number(field.number, 0), Some(at));
        assert_eq!(plan.find_number(field.number, at), Some(at));
    }
    assert_eq!(place("renamed_field"), place("other"));
    for name in ["renamedField", "AnInt32", "", "an_int3", "an_int322"] {
        assert_eq!(place(name), None, "{name}");
    }
    assert_eq!(plan.find_number(20, 0), None);
    assert_eq!(plan.find_number(536_870_911, 0), None);
}

#[test]
fn well_known_messages_are_told_by_name_and_shape() {
    assert_eq!(
        PLANS.message(id("google.protobuf.Timestamp")).well_known(),
        WellKnown::Timestamp
    );
    assert_eq!(
        PLANS.message(id("google.protobuf.BytesValue")).well_known(),
        WellKnown::Wrapper
    );
    assert_eq!(PLANS.message(all()).well_known(), WellKnown::No);
    let fields = [("seconds", Type::String)];
    let plans = flat("google.protobuf", "Timestamp", &fields);
    let found = plans.find("google.protobuf.Timestamp").unwrap();
    assert_eq!(plans.message(found).well_known(), WellKnown::No);
}

#[test]
fn paths_are_followed_by_either_name() {
    let path = PLANS
        .field_path(all(), "nested.choiceAll.an_int32")
        .unwrap();
    let names: Vec<_> = path
        .iter()
        .map(|field| &*PLANS.field(*field).name)
        .collect();
    assert_eq!(names, ["nested", "choice_all", "an_int32"]);
    let fault = PLANS.field_path(all(), "nested.aSting").unwrap_err();
    assert_eq!(
        fault.to_string(),
        "nested.aSting has no field \"aSting\" in kinds.All; did you mean \"aString\"?"
    );
    for path in [
        "children.an_int32",
        "labels.x",
        "a_string.x",
        "",
        "nested.",
        ".nested",
    ] {
        assert!(PLANS.field_path(all(), path).is_err(), "{path}");
    }
}

#[test]
fn optional_is_presence_and_no_oneof() {
    let field = |name| &PLANS.message(all()).fields()[place(name).unwrap() as usize];
    assert!(field("maybe_int32").presence && field("maybe_int32").oneof.is_none());
    assert!(field("choice_int").presence && field("choice_int").oneof == Some(0));
    assert!(!field("an_int32").presence);
    assert_eq!(field("labels").cardinality, Cardinality::Map);
}

#[test]
fn only_what_is_reached_is_compiled() {
    let plans = PlanSet::compile(&crate::fixture::POOL, ["old.Old"]).unwrap();
    assert_eq!(plans.len(), 3);
    let missing = PlanSet::compile(&crate::fixture::POOL, ["no.Such"]).unwrap_err();
    assert_eq!(missing, PlanError::NoSuchMessage("no.Such".to_owned()));
}

/// A schema of one message.
fn flat(package: &str, name: &str, fields: &[(&str, Type)]) -> PlanSet {
    let fields = (1..)
        .zip(fields)
        .map(|(number, (name, kind))| FieldDescriptorProto {
            name: Some((*name).to_owned()),
            number: Some(number),
            label: Some(Label::Optional.into()),
            r#type: Some((*kind).into()),
            ..Default::default()
        });
    let message = DescriptorProto {
        name: Some(name.to_owned()),
        field: fields.collect(),
        ..Default::default()
    };
    let file = FileDescriptorProto {
        name: Some("x.proto".to_owned()),
        package: Some(package.to_owned()),
        message_type: vec![message],
        syntax: Some("proto3".to_owned()),
        ..Default::default()
    };
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_proto(file).unwrap();
    PlanSet::compile(&pool, [format!("{package}.{name}").as_str()]).unwrap()
}

#[test]
fn a_wide_message_finds_its_names() {
    let names: Vec<String> = (0..10_000).map(|i| format!("field_{i}")).collect();
    let fields: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), Type::Int32))
        .collect();
    let plans = flat("wide", "Wide", &fields);
    let plan = plans.message(plans.find("wide.Wide").unwrap());
    for (at, name) in (0..).zip(&names) {
        assert_eq!(plan.find(name.as_bytes()), Some(at));
    }
}
