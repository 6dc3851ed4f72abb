//! Checks a rule against the messages of its method.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor};

use super::options::{HttpRule, Pattern};
use super::{Binding, Body};
use crate::path_template::Template;

/// Messages with a JSON form that is one string or number, so that they can stand in a path.
const SCALAR_MESSAGES: &[&str] = &[
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
    "google.protobuf.FieldMask",
    "google.protobuf.DoubleValue",
    "google.protobuf.FloatValue",
    "google.protobuf.Int64Value",
    "google.protobuf.UInt64Value",
    "google.protobuf.Int32Value",
    "google.protobuf.UInt32Value",
    "google.protobuf.BoolValue",
    "google.protobuf.StringValue",
    "google.protobuf.BytesValue",
];

pub(super) fn binding(method: &MethodDescriptor, rule: &HttpRule) -> Result<Binding, String> {
    let (http_method, path) = match &rule.pattern {
        Some(Pattern::Get(path)) => ("GET", path),
        Some(Pattern::Put(path)) => ("PUT", path),
        Some(Pattern::Post(path)) => ("POST", path),
        Some(Pattern::Delete(path)) => ("DELETE", path),
        Some(Pattern::Patch(path)) => ("PATCH", path),
        Some(Pattern::Custom(custom)) => (custom.kind.as_str(), &custom.path),
        None => return Err("its HTTP rule has no method and path".to_owned()),
    };
    let token = |c: char| c.is_ascii_uppercase() || c == '-' || c == '_';
    if http_method != "*" && (http_method.is_empty() || !http_method.chars().all(token)) {
        return Err(format!(
            "the custom kind {http_method:?} of {path} is no HTTP method: write it in upper case, or \"*\" for every method"
        ));
    }
    if http_method == "CONNECT" {
        return Err(format!(
            "the custom kind CONNECT of {path} cannot be served"
        ));
    }
    let template = template(path)?;
    for field in template.variables() {
        singular(&method.input(), field).map_err(|why| format!("the template {path}: {why}"))?;
    }
    let body = match rule.body.as_str() {
        "" => Body::None,
        "*" => Body::Message,
        name => {
            let field = top_level(&method.input(), name)
                .map_err(|why| format!("the body of {http_method} {path}: {why}"))?;
            let bound = template
                .variables()
                .any(|variable| variable.split('.').next() == Some(field.name()));
            if bound {
                return Err(format!(
                    "the body {name} of {http_method} {path} is also a variable of its path"
                ));
            }
            Body::Field(field.number())
        }
    };
    let response_body = match rule.response_body.as_str() {
        "" | "*" => None,
        name => {
            let field = top_level(&method.output(), name)
                .map_err(|why| format!("the response_body of {http_method} {path}: {why}"))?;
            Some(field.number())
        }
    };
    Ok(Binding {
        http_method: http_method.into(),
        template,
        body,
        response_body,
    })
}

pub(super) fn status(given: u32) -> Result<u16, String> {
    match given {
        0 => Ok(200),
        status => u16::try_from(status)
            .ok()
            .filter(|status| (200..300).contains(status))
            .ok_or_else(|| format!("the status {status} of its heddle.http.v1.method is none of an OK answer: use 200 to 299")),
    }
}

pub(super) fn location(method: &MethodDescriptor, text: &str) -> Result<Option<Template>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let template = template(text)?;
    for field in template.variables() {
        singular(&method.output(), field).map_err(|why| format!("the location {text}: {why}"))?;
    }
    Ok(Some(template))
}

pub(super) fn cursor(method: &MethodDescriptor, name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    if !method.is_server_streaming() {
        return Err(format!(
            "the cursor {name} is for methods that stream responses"
        ));
    }
    for message in [method.input(), method.output()] {
        singular(&message, name).map_err(|why| format!("the cursor: {why}"))?;
    }
    Ok(())
}

fn template(path: &str) -> Result<Template, String> {
    Template::parse(path).map_err(|fault| format!("the template {path} is wrong {fault}"))
}

/// A field of the message itself.
fn top_level(message: &MessageDescriptor, name: &str) -> Result<FieldDescriptor, String> {
    message
        .get_field_by_name(name)
        .ok_or_else(|| format!("{} has no field {name}", message.full_name()))
}

/// Checks that a field path ends in what one text can hold.
fn singular(message: &MessageDescriptor, path: &str) -> Result<(), String> {
    let mut message = message.clone();
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        let field = top_level(&message, name)?;
        if field.is_list() || field.is_map() {
            return Err(format!("{path}: {} is repeated", field.full_name()));
        }
        match (field.kind(), names.peek()) {
            (Kind::Message(inner), Some(_)) => message = inner,
            (Kind::Message(inner), None) if !SCALAR_MESSAGES.contains(&inner.full_name()) => {
                return Err(format!(
                    "{path} is a {}, which no path can hold",
                    inner.full_name()
                ));
            }
            (_, Some(_)) => return Err(format!("{} is no message", field.full_name())),
            (_, None) => {}
        }
    }
    Ok(())
}
