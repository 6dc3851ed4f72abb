//! Parses one file of `--services-dir`. Input: its text. Output: checked instances, or one sentence with field and
//! remedy. Pure except for two questions that the caller answers: whether an address belongs to this host, and what the
//! named descriptor file contains.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bytes::Bytes;
use heddle_options::parse_duration;
use heddle_proto::registry::v1::{HealthCheck, Instance, Protocol, health_check::Kind};
use serde::Deserialize;

use super::{
    key::InstanceKey,
    schema::Schema,
    validate::{Checked, Origin, Violation, check},
};

/// The format of the file (docs/services.md). Unknown fields are errors: a typing error as in `weigth: 3` must not be ignored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ServicesFile {
    service: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    protocol: Option<String>,
    #[serde(default)]
    protos: Vec<String>,
    /// A file with a descriptor set, for programs without reflection; relative to the folder of this file.
    #[serde(default)]
    descriptors: Option<String>,
    /// Whether the service claims the paths of its proto services; default: yes.
    #[serde(default)]
    claim_paths: Option<bool>,
    /// For a future HTTP gateway; accepted and ignored by this version.
    #[serde(default)]
    #[allow(dead_code)]
    http: Option<HttpPart>,
    #[serde(default)]
    health: Option<HealthPart>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    instances: Vec<InstancePart>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct HttpPart {
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    paths: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HealthPart {
    kind: String,
    #[serde(default)]
    interval: Option<String>,
    #[serde(default)]
    timeout: Option<String>,
    #[serde(default)]
    unhealthy_threshold: u32,
    #[serde(default)]
    healthy_threshold: u32,
    #[serde(default)]
    path: String,
    #[serde(default)]
    grpc_service: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InstancePart {
    id: String,
    address: String,
    #[serde(default)]
    weight: u32,
}

/// The largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// The content of a file.
#[derive(Debug, Default)]
pub struct Parsed {
    pub instances: Vec<Checked>,
    /// Instances whose address cannot be used, each in one line with field and remedy. The other instances are used.
    pub left_out: Vec<String>,
}

/// Parses a file's text.
///
/// # Errors
/// One line with every mistake, its field and its remedy.
pub fn parse(
    text: &str,
    is_own: &dyn Fn(IpAddr) -> bool,
    descriptors: &mut dyn FnMut(&str) -> Result<Schema, String>,
) -> Result<Parsed, String> {
    let file: ServicesFile =
        serde_saphyr::from_str(text).map_err(|error| explain(text, &error.to_string()))?;
    let mut faults = Vec::new();
    let protocol = protocol(file.protocol.as_deref(), &mut faults);
    let health = file.health.as_ref().map(|part| health(part, &mut faults));
    let schema = match file.descriptors.as_deref().map(descriptors) {
        Some(Err(why)) => {
            faults.push(format!("descriptors: {why}"));
            None
        }
        read => read.and_then(Result::ok),
    };
    if file.instances.is_empty() {
        faults.push(
            "instances: is empty: name at least one {id, address}, or remove the file".to_owned(),
        );
    }
    let mut parsed = Parsed::default();
    let mut seen = BTreeSet::new();
    for (index, part) in file.instances.iter().enumerate() {
        let instance = Instance {
            service: file.service.clone(),
            namespace: file.namespace.clone(),
            id: part.id.clone(),
            version: file.version.clone(),
            address: part.address.clone(),
            protocol: protocol.into(),
            weight: part.weight,
            protos: file.protos.clone(),
            health: health.clone(),
            labels: file.labels.clone().into_iter().collect(),
            claim_paths: file.claim_paths,
        };
        match check(instance, &Bytes::new(), Origin::File, is_own) {
            Ok(checked) => {
                if !seen.insert(InstanceKey::of(&checked.instance)) {
                    faults.push(format!(
                        "instances[{index}].id: \"{}\" occurs twice: ids must be unique in a \
                         service",
                        part.id
                    ));
                }
                parsed.instances.push(match &schema {
                    Some(schema) => checked.described_by(schema.clone()),
                    None => checked,
                });
            }
            Err(violations) if violations.iter().all(|v| v.alone) => {
                let named = violations.iter().map(|v| at_address(index, v));
                parsed.left_out.extend(named);
            }
            Err(violations) => faults.extend(violations.into_iter().map(|v| {
                // The field is one of the service as a whole or one of this instance.
                let field = v.field.trim_start_matches("instance.");
                let own = matches!(field, "id" | "address" | "weight");
                let at = if own {
                    format!("instances[{index}].{field}")
                } else {
                    field.to_owned()
                };
                format!("{at}: {}", v.description)
            })),
        }
    }
    let mut named = BTreeSet::new();
    faults.retain(|fault| named.insert(fault.clone()));
    if faults.is_empty() {
        Ok(parsed)
    } else {
        Err(faults.join("; "))
    }
}

fn at_address(index: usize, violation: &Violation) -> String {
    format!("instances[{index}].address: {}", violation.description)
}

fn protocol(word: Option<&str>, faults: &mut Vec<String>) -> Protocol {
    match word {
        None | Some("grpc") => Protocol::Grpc,
        Some("http") => Protocol::Http,
        Some("tcp") => Protocol::Tcp,
        Some(other) => {
            faults.push(format!(
                "protocol: \"{other}\" is unknown: use grpc or http"
            ));
            Protocol::Grpc
        }
    }
}

fn health(part: &HealthPart, faults: &mut Vec<String>) -> HealthCheck {
    let kind = match part.kind.as_str() {
        "auto" => Kind::Auto,
        "grpc" => Kind::Grpc,
        "http" => Kind::Http,
        "tcp" => Kind::Tcp,
        "none" => Kind::None,
        other => {
            faults.push(format!(
                "health.kind: \"{other}\" is unknown: use auto, grpc, http, tcp or none"
            ));
            Kind::None
        }
    };
    let mut span = |field: &str, word: Option<&String>| {
        let word = word?;
        let parsed = parse_duration(word).and_then(|d| prost_types::Duration::try_from(d).ok());
        if parsed.is_none() {
            faults.push(format!(
                "health.{field}: \"{word}\" is not a duration: write for example 5s or 500ms"
            ));
        }
        parsed
    };
    HealthCheck {
        kind: kind.into(),
        interval: span("interval", part.interval.as_ref()),
        timeout: span("timeout", part.timeout.as_ref()),
        unhealthy_threshold: part.unhealthy_threshold,
        healthy_threshold: part.healthy_threshold,
        path: part.path.clone(),
        grpc_service: part.grpc_service.clone(),
    }
}

/// Turns a parser's message into one for the author of the file: with the field, and with Heddle's remedy instead of
/// the parser's.
fn explain(text: &str, message: &str) -> String {
    // Some messages append an excerpt of the source.
    let line = message.lines().map(str::trim).find(|line| !line.is_empty());
    let Some(line) = line else {
        return "is not YAML".to_owned();
    };
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let (place, what) = match line.split_once(": ") {
        Some((place, what)) if place.starts_with("line ") => (place, what),
        _ => ("", line),
    };
    let remedy = match what {
        _ if text.trim().is_empty() => {
            return "is empty: name a service and its instances, or remove the file".to_owned();
        }
        "expected sequence start" => "must be a list, as [a, b]",
        "expected mapping start" => "must be fields with values, as {kind: grpc}",
        "invalid u32" => "must be a whole number, as 2",
        _ if what.starts_with("multiple YAML documents") => {
            "a second document begins here: give each service a file of its own"
        }
        _ => what
            .split(", set DuplicateKeyPolicy")
            .next()
            .unwrap_or(what),
    };
    let field = field_at(text, place).filter(|_| remedy.starts_with("must be"));
    let parts = [Some(place).filter(|at| !at.is_empty()), field, Some(remedy)];
    let parts: Vec<&str> = parts.into_iter().flatten().collect();
    parts.join(": ")
}

/// The key whose value is at "line L column C".
fn field_at<'t>(text: &'t str, place: &str) -> Option<&'t str> {
    let mut numbers = place
        .split(' ')
        .filter_map(|word| word.parse::<usize>().ok());
    let (line, column) = (numbers.next()?.checked_sub(1)?, numbers.next()?);
    let line = text.lines().nth(line)?;
    let end = line.char_indices().nth(column.checked_sub(1)?);
    let before = line.get(..end.map_or(line.len(), |(at, _)| at))?;
    let before = before.get(..before.rfind(':')?)?;
    let key = before
        .rsplit(|c: char| !c.is_alphanumeric() && c != '_')
        .next();
    key.filter(|key| !key.is_empty())
}
