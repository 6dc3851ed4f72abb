//! What an instance serves: its registration (named proto services, descriptors) combined with what its reflection
//! reported. Pure values; `reflect` does the asking.

use std::collections::BTreeSet;

use heddle_proto::{control::v1::ProtoService, rules::MAX_PROTOS};

use super::schema::{Schema, is_infrastructure};

/// What a registration declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    /// Proto services that it serves, in addition to those that reflection lists.
    pub named: Vec<String>,
    pub schema: Option<Schema>,
}

/// What reflection reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reflected {
    /// The services that it lists.
    pub names: Vec<String>,
    /// Their descriptors, as far as reflection has them.
    pub schema: Option<Schema>,
}

impl Reflected {
    #[must_use]
    pub fn is_something(&self) -> bool {
        !self.names.is_empty() || self.schema.is_some()
    }
}

/// What an instance serves, from both sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// The proto services, sorted by name, at most [`MAX_PROTOS`].
    pub protos: Vec<ProtoService>,
    pub schema: Option<Schema>,
}

impl Served {
    /// The instance serves what reflection lists and what the registration names. Without either it serves all that the
    /// given descriptors define, except services that only came with an import. Other services of the same files are
    /// schema, not served.
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

/// Declared descriptors are kept whole and unchanged; those of reflection are added only if they describe a service
/// that the declared ones lack.
fn schema(declared: &Declared, reflected: Option<&Reflected>) -> Option<Schema> {
    let reported = reflected.and_then(|reflected| reflected.schema.as_ref());
    let (Some(own), Some(reported)) = (&declared.schema, reported) else {
        return declared.schema.as_ref().or(reported).cloned();
    };
    let known = own.services();
    let names = reflected
        .map(|reflected| reflected.names.as_slice())
        .unwrap_or_default();
    if names.iter().all(|name| known.contains_key(name)) {
        return Some(own.clone());
    }
    Some(own.with(reported).unwrap_or_else(|_| own.clone()))
}
