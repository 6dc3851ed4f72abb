//! Validates an instance, whether it comes by the API or from a file. Input: an [`Instance`] as given. Output: a
//! [`Checked`] one with its defaults filled in, or every violation with its field and remedy. No I/O; the caller
//! answers whether an address belongs to this host.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use heddle_proto::control::v1::ProtoService;
use heddle_proto::registry::v1::{Instance, Protocol};
use heddle_proto::rules::{
    MAX_LABEL_VALUE, MAX_LABELS, MAX_PROTOS, MAX_TEXT, MAX_WEIGHT, is_dns_label, is_proto_name,
    unfit,
};

use super::{
    check_plan::{CheckPlan, plan},
    schema::Schema,
    served::{Declared, Served},
};

/// A fault of one field: its name, such as `instance.address`, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub field: String,
    pub description: String,
    /// Only this instance is left out; other instances of the same file are used. True for an address.
    pub alone: bool,
}

impl Violation {
    /// An address that is malformed or cannot be used, with the reason of whoever refuses it.
    pub(super) fn of_address(why: &impl ToString) -> Self {
        Self {
            field: ADDRESS.into(),
            description: why.to_string(),
            alone: true,
        }
    }
}

/// A validated instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    pub instance: Instance,
    pub address: SocketAddr,
    pub check: CheckPlan,
    /// What it serves, as far as the registration declares it.
    pub protos: Vec<ProtoService>,
    pub schema: Option<Schema>,
}

impl Checked {
    /// Adds descriptors that were checked already.
    #[must_use]
    pub fn described_by(mut self, schema: Schema) -> Self {
        let given = Declared {
            named: self.instance.protos.clone(),
            schema: Some(schema),
        };
        self.protos = Served::of(&given, None).protos;
        self.schema = given.schema;
        self
    }
}

/// Where the instance comes from. The default check differs: a file sends no keep-alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Registration,
    File,
}

/// The field of an address, as both planes name it.
pub(super) const ADDRESS: &str = "instance.address";
const LABEL_RULE: &str =
    "use a-z, 0-9 and '-', at most 63 characters, not starting or ending with '-'";

/// Checks everything and reports every fault.
///
/// # Errors
/// The violations, at least one.
pub fn check(
    mut instance: Instance,
    file_descriptor_set: &Bytes,
    origin: Origin,
    is_own: &dyn Fn(IpAddr) -> bool,
) -> Result<Checked, Vec<Violation>> {
    let mut faults = Faults(Vec::new());
    if instance.namespace.is_empty() {
        "default".clone_into(&mut instance.namespace);
    }
    names(&instance, &mut faults);
    let address = address(&instance.address, is_own, &mut faults);
    match Protocol::try_from(instance.protocol) {
        Ok(Protocol::Unspecified) => instance.protocol = Protocol::Grpc.into(),
        Ok(Protocol::Grpc | Protocol::Http) => {}
        Ok(Protocol::Tcp) => faults.add(
            "protocol",
            "tcp has no listener in this version: use grpc or http".into(),
        ),
        Err(_) => faults.add(
            "protocol",
            format!("{} is unknown: use grpc or http", instance.protocol),
        ),
    }
    if instance.weight == 0 {
        instance.weight = 1;
    }
    if instance.weight > MAX_WEIGHT {
        faults.add(
            "weight",
            format!("{} is too large: at most {MAX_WEIGHT}", instance.weight),
        );
    }
    labels(&instance, &mut faults);
    proto_names(&instance, &mut faults);
    let check = plan(&instance, origin, &mut faults);
    let schema = given_schema(file_descriptor_set, &mut faults);
    let (Some(address), Some(check), true) = (address, check, faults.0.is_empty()) else {
        return Err(faults.0);
    };
    let given = Declared {
        named: instance.protos.clone(),
        schema,
    };
    let protos = Served::of(&given, None).protos;
    instance.address = address.to_string();
    Ok(Checked {
        instance,
        address,
        check,
        protos,
        schema: given.schema,
    })
}

pub(super) struct Faults(Vec<Violation>);

impl Faults {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn add(&mut self, field: &str, description: String) {
        let field = if field == "file_descriptor_set" {
            field.to_owned()
        } else {
            format!("instance.{field}")
        };
        self.0.push(Violation {
            field,
            description,
            alone: false,
        });
    }
}

fn names(instance: &Instance, faults: &mut Faults) {
    for (field, word) in [
        ("service", &instance.service),
        ("namespace", &instance.namespace),
        ("id", &instance.id),
    ] {
        if word.is_empty() {
            faults.add(field, format!("is missing: {LABEL_RULE}"));
        } else if !is_dns_label(word) {
            faults.add(
                field,
                format!("\"{}\" is not a DNS label: {LABEL_RULE}", shown(word)),
            );
        }
    }
    if instance.version.chars().count() > MAX_TEXT || instance.version.chars().any(char::is_control)
    {
        faults.add(
            "version",
            format!("use at most {MAX_TEXT} printable characters"),
        );
    }
}

fn address(word: &str, is_own: &dyn Fn(IpAddr) -> bool, faults: &mut Faults) -> Option<SocketAddr> {
    let form = "write \"IP:port\" or \"[IPv6]:port\", an address of this host on which the instance listens";
    // An IPv4-mapped IPv6 address is the same address: it is stored in one form, so that it counts once and as
    // loopback.
    let parsed = word
        .parse::<SocketAddr>()
        .map(|addr| SocketAddr::new(addr.ip().to_canonical(), addr.port()));
    let why = match parsed {
        _ if word.is_empty() => format!("is missing: {form}"),
        Err(_) => format!(
            "\"{}\" is not an address (names are not resolved): {form}",
            shown(word)
        ),
        Ok(addr) if addr.port() == 0 => {
            format!("\"{addr}\" has port 0: give the port on which the instance listens")
        }
        Ok(addr) => match not_here(addr, is_own) {
            None => return Some(addr),
            Some(why) => {
                faults.0.push(Violation::of_address(&why));
                return None;
            }
        },
    };
    faults.0.push(Violation::of_address(&why));
    None
}

/// Why an address cannot belong to an instance of this host.
fn not_here(addr: SocketAddr, is_own: &dyn Fn(IpAddr) -> bool) -> Option<String> {
    let ip = addr.ip();
    if ip.is_unspecified() {
        let port = addr.port();
        return Some(format!(
            "\"{addr}\" is the unspecified address: write 127.0.0.1:{port} or an address of this \
             host"
        ));
    }
    if let Some(why) = unfit(ip) {
        return Some(format!("\"{addr}\" {why}"));
    }
    (!is_own(ip)).then(|| {
        format!(
            "\"{addr}\" is not an address of this host: an instance registers with the agent of its own node"
        )
    })
}

fn labels(instance: &Instance, faults: &mut Faults) {
    if instance.labels.len() > MAX_LABELS {
        faults.add(
            "labels",
            format!(
                "{} are too many: at most {MAX_LABELS}",
                instance.labels.len()
            ),
        );
    }
    for (name, value) in &instance.labels {
        if name.is_empty() || name.len() > MAX_TEXT || value.len() > MAX_LABEL_VALUE {
            faults.add(
                &format!("labels[\"{}\"]", shown(name)),
                format!(
                    "a name must have 1 to {MAX_TEXT} bytes and a value at most {MAX_LABEL_VALUE}"
                ),
            );
        }
    }
}

fn proto_names(instance: &Instance, faults: &mut Faults) {
    if instance.protos.len() > MAX_PROTOS {
        faults.add(
            "protos",
            format!(
                "{} are too many: at most {MAX_PROTOS}",
                instance.protos.len()
            ),
        );
    }
    for (index, name) in instance.protos.iter().take(MAX_PROTOS).enumerate() {
        if !is_proto_name(name) {
            faults.add(
                &format!("protos[{index}]"),
                format!(
                    "\"{}\" is not the full name of a proto service: write for example \
                     \"package.Service\"",
                    shown(name)
                ),
            );
        }
    }
}

fn given_schema(bytes: &Bytes, faults: &mut Faults) -> Option<Schema> {
    if bytes.is_empty() {
        return None;
    }
    match Schema::parse(bytes.clone()) {
        Ok(schema) => Some(schema),
        Err(error) => {
            faults.add("file_descriptor_set", error.to_string());
            None
        }
    }
}

/// Text from outside, bounded and made printable for an error message.
pub(super) fn shown(word: &str) -> String {
    word.chars()
        .take(80)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
