//! Rules of bindings, read from compiled .proto files.

use prost_reflect::DescriptorPool;

use super::*;

/// Compiles a service whose one method has these options.
fn options(option: &str) -> HttpOptions {
    let source = format!(
        r#"syntax = "proto3";
package t;
import "google/api/annotations.proto";
import "heddle/http/v1/http.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/struct.proto";
message Book {{
  string id = 1;
  Book parent = 2;
  repeated string tags = 3;
  google.protobuf.Timestamp at = 4;
  google.protobuf.Struct any = 5;
  map<string, string> labels = 6;
}}
service S {{
  rpc M(Book) returns (Book) {{
    {option}
  }}
  rpc Watch(Book) returns (stream Book) {{ option (heddle.http.v1.method) = {{cursor: "id"}}; }}
}}
"#
    );
    let pool = pool(&source);
    let service = pool.get_service_by_name("t.S").unwrap();
    HttpOptions::of(&service.methods().next().unwrap())
}

fn pool(source: &str) -> DescriptorPool {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("t.proto"), source).unwrap();
    let protos = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
    let mut compiler = protox::Compiler::new([dir.path(), std::path::Path::new(protos)]).unwrap();
    compiler.include_imports(true).include_source_info(true);
    compiler
        .open_file("t.proto")
        .unwrap_or_else(|error| panic!("{error}\n{source}"));
    DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap()
}

/// `GET /a body=* response=1`, one a line.
fn shown(options: &HttpOptions) -> String {
    let one = |binding: &Binding| {
        let body = match binding.body {
            Body::None => String::new(),
            Body::Message => " body=*".to_owned(),
            Body::Field(number) => format!(" body={number}"),
        };
        let response = binding
            .response_body
            .map(|number| format!(" response={number}"))
            .unwrap_or_default();
        format!(
            "{} {}{body}{response}",
            binding.http_method, binding.template
        )
    };
    options
        .bindings
        .iter()
        .map(one)
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn rules_become_bindings() {
    for (rule, expect) in [
        (r#"get: "/b/{id}""#, "GET /b/{id}"),
        (r#"put: "/b/{id}" body: "*""#, "PUT /b/{id} body=*"),
        (r#"post: "/b" body: "parent""#, "POST /b body=2"),
        (r#"post: "/b" body: "tags""#, "POST /b body=3"),
        (
            r#"delete: "/b/{parent.parent.id}""#,
            "DELETE /b/{parent.parent.id}",
        ),
        (
            r#"patch: "/b/{at}" response_body: "tags""#,
            "PATCH /b/{at} response=3",
        ),
        (r#"custom: {kind: "HEAD" path: "/b"}"#, "HEAD /b"),
        (r#"custom: {kind: "*" path: "/b"}"#, "* /b"),
        (
            r#"get: "/b" additional_bindings {get: "/c"} additional_bindings {post: "/d" body: "*"}"#,
            "GET /b, GET /c, POST /d body=*",
        ),
    ] {
        let found = options(&format!("option (google.api.http) = {{{rule}}};"));
        assert_eq!(shown(&found), expect);
        assert_eq!(found.findings, [], "{rule}");
    }
}

#[test]
fn a_method_without_rules_has_none() {
    let found = options("");
    assert_eq!(
        (shown(&found).as_str(), found.status, found.findings.len()),
        ("", 200, 0)
    );
}

#[test]
fn a_rule_that_cannot_be_served_is_a_finding_and_the_others_live() {
    for (rule, why) in [
        (r#"get: "/b/{x}""#, "has no field x"),
        (r#"get: "/b/{parent}""#, "no path can hold"),
        (r#"get: "/b/{any}""#, "no path can hold"),
        (r#"get: "/b/{tags}""#, "is repeated"),
        (r#"get: "/b/{labels}""#, "is repeated"),
        (r#"get: "/b/{id.x}""#, "is no message"),
        (r#"get: "b""#, "does not start"),
        (r#"post: "/b" body: "x""#, "has no field x"),
        (r#"post: "/b" body: "parent.id""#, "has no field parent.id"),
        (
            r#"post: "/b/{parent.id}" body: "parent""#,
            "also a variable",
        ),
        (r#"get: "/b" response_body: "x""#, "has no field x"),
        (r#"custom: {kind: "get" path: "/b"}"#, "no HTTP method"),
        (
            r#"custom: {kind: "CONNECT" path: "/b"}"#,
            "cannot be served",
        ),
        (r#"body: "*""#, "no method and path"),
    ] {
        let found = options(&format!(
            "option (google.api.http) = {{{rule} additional_bindings {{get: \"/lives\"}}}};"
        ));
        assert_eq!(shown(&found), "GET /lives", "{rule}");
        let [finding] = &found.findings[..] else {
            panic!("{rule}: {:?}", found.findings);
        };
        assert!(finding.why.contains(why), "{rule}: {finding}");
        assert!(
            finding.to_string().starts_with("t.proto:16: t.S.M: "),
            "{finding}"
        );
    }
    let nested = options(
        r#"option (google.api.http) = {get: "/a" additional_bindings {get: "/b" additional_bindings {get: "/c"}}};"#,
    );
    assert_eq!(shown(&nested), "GET /a, GET /b");
    assert!(
        nested.findings[0]
            .why
            .contains("inside additional_bindings")
    );
}

#[test]
fn the_answer_of_a_method_can_be_described() {
    let found = options(r#"option (heddle.http.v1.method) = {status: 201 location: "/b/{id}"};"#);
    assert_eq!((found.status, found.findings.len()), (201, 0));
    assert_eq!(found.location.unwrap().to_string(), "/b/{id}");
    for (option, why) in [
        ("status: 404", "200 to 299"),
        ("status: 100000", "200 to 299"),
        (r#"location: "/b/{x}""#, "has no field x"),
        (r#"location: "/b/{tags}""#, "is repeated"),
        (r#"cursor: "id""#, "for methods that stream responses"),
    ] {
        let found = options(&format!("option (heddle.http.v1.method) = {{{option}}};"));
        assert!(
            found.findings[0].why.contains(why),
            "{option}: {:?}",
            found.findings
        );
    }
}

#[test]
fn options_are_found_whatever_file_declares_them() {
    let pool = pool(
        r#"syntax = "proto3";
package t;
import "google/protobuf/descriptor.proto";
message Rule { string get = 2; }
extend google.protobuf.MethodOptions { Rule vendored = 72295728; }
message A {}
service S { rpc M(A) returns (A) { option (vendored) = {get: "/a"}; } }
"#,
    );
    let service = pool.get_service_by_name("t.S").unwrap();
    let found = HttpOptions::of(&service.methods().next().unwrap());
    assert_eq!(shown(&found), "GET /a");
}
