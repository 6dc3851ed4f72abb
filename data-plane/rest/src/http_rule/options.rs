//! The two options as they stand in the descriptor. They are decoded from the raw options of a method, so it does not
//! matter whether the service's descriptors contain the files that declare them.

use prost::Message;
use prost_reflect::MethodDescriptor;

/// Most rules of one method.
const MOST_RULES: usize = 100;

/// `google.protobuf.MethodOptions`, with the two extensions.
#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(message, optional, tag = "72295728")]
    http: Option<HttpRule>,
    #[prost(message, optional, tag = "50812")]
    method: Option<Method>,
}

/// `google.api.HttpRule`
#[derive(Clone, PartialEq, Message)]
pub(super) struct HttpRule {
    #[prost(oneof = "Pattern", tags = "2, 3, 4, 5, 6, 8")]
    pub(super) pattern: Option<Pattern>,
    #[prost(string, tag = "7")]
    pub(super) body: String,
    #[prost(string, tag = "12")]
    pub(super) response_body: String,
    #[prost(message, repeated, tag = "11")]
    additional_bindings: Vec<HttpRule>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Pattern {
    #[prost(string, tag = "2")]
    Get(String),
    #[prost(string, tag = "3")]
    Put(String),
    #[prost(string, tag = "4")]
    Post(String),
    #[prost(string, tag = "5")]
    Delete(String),
    #[prost(string, tag = "6")]
    Patch(String),
    #[prost(message, tag = "8")]
    Custom(Custom),
}

/// `google.api.CustomHttpPattern`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Custom {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "2")]
    pub(super) path: String,
}

/// `heddle.http.v1.Method`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Method {
    #[prost(uint32, tag = "1")]
    pub(super) status: u32,
    #[prost(string, tag = "2")]
    pub(super) location: String,
    #[prost(string, tag = "3")]
    pub(super) cursor: String,
}

/// The options of a method.
#[derive(Default)]
pub(super) struct Raw {
    pub(super) rules: Vec<HttpRule>,
    pub(super) method: Method,
    /// Why some of it is missing.
    pub(super) fault: Option<String>,
}

impl Default for Pattern {
    fn default() -> Self {
        Self::Get(String::new())
    }
}

pub(super) fn of(method: &MethodDescriptor) -> Raw {
    let bytes = method.options().encode_to_vec();
    let options = match Options::decode(bytes.as_slice()) {
        Ok(options) => options,
        Err(error) => {
            return Raw {
                fault: Some(format!("its options cannot be decoded: {error}")),
                ..Raw::default()
            };
        }
    };
    let mut raw = Raw {
        method: options.method.unwrap_or_default(),
        fault: None,
        rules: Vec::new(),
    };
    let Some(mut rule) = options.http else {
        return raw;
    };
    let more = std::mem::take(&mut rule.additional_bindings);
    if more.iter().any(|rule| !rule.additional_bindings.is_empty()) {
        raw.fault = Some(
            "additional_bindings inside additional_bindings: write them beside each other"
                .to_owned(),
        );
    }
    if more.len() >= MOST_RULES {
        raw.fault = Some(format!("it has more than {MOST_RULES} bindings"));
    }
    raw.rules.push(rule);
    raw.rules.extend(more.into_iter().take(MOST_RULES - 1));
    raw
}

/// The line in which a method is declared, from 1.
pub(super) fn line(method: &MethodDescriptor) -> Option<u32> {
    let file = method.parent_file();
    let path = method.path();
    let info = file.file_descriptor_proto().source_code_info.as_ref()?;
    let location = info.location.iter().find(|at| at.path == path)?;
    let line = location.span.first()?;
    u32::try_from(*line).ok()?.checked_add(1)
}
