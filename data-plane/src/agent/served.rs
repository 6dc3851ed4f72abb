//! What an instance serves: its registration (named proto services, descriptors) combined with what its reflection
//! reported. Pure values; `reflect` does the asking.

use std::collections::BTreeSet;

use heddle_proto::{control::v1::ProtoService, rules::MAX_PROTOS};

use super::schema::{Schema, is_infrastructure};

/// What a registration says by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Proto services that it serves, beside those that reflection lists.
    pub named: Vec<String>,
    pub schema: Option<Schema>,
}

/// What reflection told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reflected {
    /// The services that it lists.
    pub names: Vec<String>,
    /// Their descriptors, as far as it has them.
    pub schema: Option<Schema>,
}

impl Reflected {
    #[must_use]
    pub fn is_something(&self) -> bool {
        !self.names.is_empty() || self.schema.is_some()
    }
}

/// What is known in all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// What it serves, sorted by name, at most [`MAX_PROTOS`].
    pub protos: Vec<ProtoService>,
    pub schema: Option<Schema>,
}

impl Served {
    /// What reflection lists and what is named is served; where there is neither, all that the given descriptors define,
    /// but for what comes with imports. Other services of the same files are schema, not served.
    #[must_use]
    pub fn of(declared: &Declared, reflected: Option<&Reflected>) -> Self {
        let mut names: BTreeSet<&str> = declared.named.iter().map(String::as_str).collect();
        let schema = schema(declared, reflected);
        let described = schema.as_ref().map(Schema::services);
        match reflected {
            Some(reflected) => names.extend(reflected.names.iter().map(String::as_str)),
            None if names.is_empty() => {
                names.extend(schema.iter().flat_map(Schema::own_services));
            }
            None => {}
        }
        let served = names.into_iter().filter(|name| !is_infrastructure(name));
        let protos = served
            .take(MAX_PROTOS)
            .map(|name| {
                let known = described.and_then(|services| services.get(name));
                known.cloned().unwrap_or_else(|| ProtoService {
                    name: name.to_owned(),
                    idempotent_methods: Vec::new(),
                })
            })
            .collect();
        Self { protos, schema }
    }
}

/// Declared descriptors come first, whole and as they are; those of reflection explain what is not in them.
fn schema(declared: &Declared, reflected: Option<&Reflected>) -> Option<Schema> {
    let told = reflected.and_then(|reflected| reflected.schema.as_ref());
    let (Some(own), Some(told)) = (&declared.schema, told) else {
        return declared.schema.as_ref().or(told).cloned();
    };
    let known = own.services();
    let names = reflected
        .map(|reflected| reflected.names.as_slice())
        .unwrap_or_default();
    if names.iter().all(|name| known.contains_key(name)) {
        return Some(own.clone());
    }
    Some(own.with(told).unwrap_or_else(|_| own.clone()))
}
