//! Which services are listed, and what of their descriptors.

use super::*;

fn source(name: &str, ready: usize, protos: &[&str], set: Bytes) -> Source {
    Source {
        set,
        protos: protos.iter().map(|&p| p.to_owned()).collect(),
        owned: Vec::new(),
        ready,
        name: name.into(),
    }
}

fn catalog_of(sources: Vec<Source>) -> Catalog {
    Catalog::build(sources, usize::MAX)
}

/// Issue 10, B2: reflection and routing agree on who owns a path.
#[test]
fn who_gets_the_calls_of_a_proto_service_explains_it_and_not_who_has_more_instances() {
    let schema = |message: &str| set(&[file("users.proto", "users", message, "Users", &[])]);
    let mut owner = source("users", 1, &["users.Users"], schema("User"));
    owner.owned = vec!["users.Users".to_owned()];
    let canary = source("canary", 5, &["users.Users"], schema("Member"));
    let catalog = catalog_of(vec![canary, owner]);
    let files = resolve(&catalog, "users.Users");
    let messages: Vec<_> = files.values().flat_map(|file| &file.message_type).collect();
    let names: Vec<_> = messages.iter().map(|message| message.name()).collect();
    assert_eq!(names, ["User"]);
}

/// What a client resolves from the answer: every file complete, every import present under the name that imports it.
fn resolve(catalog: &Catalog, symbol: &str) -> HashMap<String, FileDescriptorProto> {
    let start = catalog
        .file_of_symbol(symbol)
        .unwrap_or_else(|| panic!("{symbol} is not known"));
    let mut out = HashMap::new();
    for (name, bytes) in catalog.closure(start, usize::MAX) {
        assert!(bytes.ends_with(UNKNOWN_OPTION), "{name} lost an extension");
        let parsed = FileDescriptorProto::decode(bytes).unwrap();
        assert_eq!(parsed.name(), name);
        out.insert(name, parsed);
    }
    for file in out.values() {
        for import in &file.dependency {
            assert!(
                out.contains_key(import),
                "{} imports {import}, which is not there",
                file.name()
            );
        }
    }
    out
}

#[test]
fn equal_names_with_different_content_are_distinguished_and_imports_follow() {
    let users = set(&[
        file("common.proto", "common", "Old", "", &[]),
        file("users.proto", "users", "User", "Users", &["common.proto"]),
    ]);
    let orders = set(&[
        file("common.proto", "common", "New", "", &[]),
        file(
            "orders.proto",
            "orders",
            "Order",
            "Orders",
            &["common.proto"],
        ),
    ]);
    let catalog = catalog_of(vec![
        source("users.default", 1, &["users.Users"], users.clone()),
        source("orders.default", 3, &["orders.Orders"], orders),
    ]);
    // The files of the service with the most ready instances keep their names.
    let of_orders = resolve(&catalog, "orders.Orders");
    assert_eq!(of_orders["common.proto"].message_type[0].name(), "New");
    // The files of the other service are renamed, with the imports of them; names without a clash stay.
    let of_users = resolve(&catalog, "users.Users.Call");
    let renamed = of_users
        .keys()
        .find(|n| n.ends_with("/common.proto"))
        .expect("a renamed file");
    let prefix = renamed.strip_suffix("/common.proto").unwrap();
    assert!(
        prefix.len() == 8 && prefix.bytes().all(|b| b.is_ascii_hexdigit()),
        "{renamed}"
    );
    assert_eq!(of_users[renamed].message_type[0].name(), "Old");
    assert_eq!(
        of_users["users.proto"].dependency,
        std::slice::from_ref(renamed)
    );
    assert_eq!(of_users["users.proto"].service[0].method[0].name(), "Call");

    // Equal bytes are stored once.
    let twins = catalog_of(vec![
        source("a.x", 1, &[], users.clone()),
        source("b.x", 1, &[], users.clone()),
    ]);
    for raw in files(&users).unwrap() {
        assert_eq!(
            twins.file(&raw.index.name).unwrap().bytes,
            raw.bytes,
            "byte for byte"
        );
    }
}

#[test]
fn what_a_file_imports_is_part_of_what_it_is() {
    // The same text has another meaning if its import differs.
    let api = || file("api.proto", "api", "Req", "Api", &["common.proto"]);
    let one = set(&[file("common.proto", "common", "Old", "", &[]), api()]);
    let two = set(&[file("common.proto", "common", "New", "", &[]), api()]);
    let catalog = catalog_of(vec![
        source("one.x", 2, &["api.Api"], one),
        source("two.x", 1, &["api.Api"], two),
    ]);
    let shown = resolve(&catalog, "api.Api");
    assert_eq!(
        shown["common.proto"].message_type[0].name(),
        "Old",
        "the schema of most ready instances"
    );
}

#[test]
fn who_implements_a_proto_service_explains_it() {
    // A caller with many instances contains an old copy of a service that another one implements.
    let old = set(&[file("users.proto", "users", "Old", "Users", &[])]);
    let new = set(&[file("users.proto", "users", "New", "Users", &[])]);
    let catalog = catalog_of(vec![
        source("web.default", 50, &["web.Web"], old),
        source("users.default", 1, &["users.Users"], new),
    ]);
    let shown = resolve(&catalog, "users.Users");
    assert_eq!(shown.len(), 1);
    assert_eq!(shown.values().next().unwrap().message_type[0].name(), "New");
}

/// Issue 10, D1: the memory of the catalogue is bounded, and a service that is left out is named with the reason.
#[test]
fn over_its_budget_the_services_with_the_fewest_instances_are_left_out() {
    let of = |name: &str| set(&[file(&format!("{name}.proto"), name, "M", "S", &[])]);
    let sources = vec![
        source("few.x", 1, &["few.S"], of("few")),
        source("many.x", 9, &["many.S"], of("many")),
        source("bad.x", 5, &["bad.S"], Bytes::from_static(b"\x0a\xff")),
    ];
    let cost = crate::agent::schema::files_at_cost(&of("many")).unwrap().1;
    let catalog = Catalog::build(sources, cost + cost / 2);
    assert!(catalog.file_of_symbol("many.S").is_some());
    assert_eq!(catalog.file_of_symbol("few.S"), None);
    let left_out: Vec<_> = catalog
        .left_out()
        .iter()
        .map(|one| (one.service.as_str(), one.why.as_str()))
        .collect();
    assert_eq!(left_out.len(), 2, "{left_out:?}");
    let why = |name: &str| left_out.iter().find(|one| one.0 == name).unwrap().1;
    assert!(why("few.x").contains("of memory"), "{left_out:?}");
    assert!(why("bad.x").contains("FileDescriptorSet"), "{left_out:?}");
}

#[test]
fn extensions_are_found_by_number() {
    let mut one = file("x.proto", "x", "Options", "", &[]);
    one.extension.push(FieldDescriptorProto {
        name: Some("color".into()),
        extendee: Some(".x.Options".into()),
        number: Some(50001),
        ..Default::default()
    });
    let catalog = catalog_of(vec![source("x.x", 1, &[], set(&[one]))]);
    assert_eq!(catalog.extension_numbers("x.Options"), Some(vec![50001]));
    assert_eq!(
        catalog.file_of_extension("x.Options", 50001),
        Some("x.proto")
    );
    assert_eq!(catalog.file_of_symbol("x.color"), Some("x.proto"));
    assert_eq!(catalog.extension_numbers("x.Nobody"), None);
    assert_eq!(catalog.file_of_symbol("y.Nobody"), None);
}
