//! `heddle services [NAME]`: the services of the mesh, or one service with its instances.

use std::{ffi::OsString, process::ExitCode};

use heddle_proto::{
    registry::v1::{Health, Protocol, health_check::Kind},
    status::v1::{self as wire, GetServiceRequest, ListServicesRequest},
};
use serde::Serialize;

use super::{ViewOptions, show, word};
use crate::output::{Table, Tabular};

/// List the services of the mesh, or show one with its instances
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle services", version, after_help = crate::exit::HELP)]
struct Options {
    /// One service: users, or users.shop with its namespace
    name: Option<String>,
    /// Only services of this namespace
    #[arg(long, value_name = "NS")]
    namespace: Option<String>,
    #[command(flatten)]
    view: ViewOptions,
}

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_SERVICES", args);
    heddle_options::init_logging("warn");
    let namespace = options.namespace.unwrap_or_default();
    let Some(name) = options.name else {
        return show(&options.view, async |control| {
            let mut mesh = control.mesh.clone();
            let request = ListServicesRequest {
                namespace: namespace.clone(),
            };
            let answer = control.answer(mesh.list_services(request)).await?;
            if answer.services.is_empty() && !namespace.is_empty() {
                return Err(control.empty(&namespace));
            }
            Ok(Services::from(answer))
        });
    };
    let name = match namespace.as_str() {
        "" => name,
        namespace if name.contains('.') => {
            return heddle_options::fail(format!(
                "{name} already has a namespace; remove --namespace {namespace}"
            ));
        }
        namespace => format!("{name}.{namespace}"),
    };
    show(&options.view, async |control| {
        let mut mesh = control.mesh.clone();
        control
            .answer(mesh.get_service(GetServiceRequest { name }))
            .await
            .map(Service::from)
    })
}

#[derive(Debug, Serialize)]
struct Services {
    services: Vec<Service>,
}

#[derive(Debug, Serialize)]
struct Service {
    name: String,
    protocol: String,
    protos: Vec<String>,
    versions: Vec<String>,
    instances: u32,
    healthy_instances: u32,
    schema_sha256: String,
    ambiguous_protos: Vec<String>,
    paths: Vec<Path>,
    endpoints: Vec<Endpoint>,
}

/// The service that gets the calls which name a proto service and no mesh service.
#[derive(Debug, Serialize)]
struct Path {
    proto: String,
    owner: String,
    stand_in: String,
    claimed: bool,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    node: String,
    id: String,
    address: String,
    version: String,
    health: String,
    health_reason: String,
    checked_by: String,
    weight: u32,
    hidden_from_direct_clients: String,
    schema_reason: String,
}

impl From<wire::ListServicesResponse> for Services {
    fn from(answer: wire::ListServicesResponse) -> Self {
        let mut services: Vec<Service> = answer.services.into_iter().map(Service::from).collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Self { services }
    }
}

impl From<wire::Service> for Service {
    fn from(service: wire::Service) -> Self {
        let protocol = service.protocol().as_str_name();
        let protocol = word(protocol, "PROTOCOL_");
        let mut endpoints: Vec<Endpoint> =
            service.endpoints.into_iter().map(Endpoint::from).collect();
        endpoints.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
        Self {
            name: service.name,
            protocol: if protocol == "unspecified" {
                word(Protocol::Grpc.as_str_name(), "PROTOCOL_")
            } else {
                protocol
            },
            protos: service.protos,
            versions: service.versions,
            instances: service.instances,
            healthy_instances: service.healthy_instances,
            schema_sha256: service.schema_sha256,
            ambiguous_protos: service.ambiguous_protos,
            paths: service.paths.into_iter().map(Path::from).collect(),
            endpoints,
        }
    }
}

impl From<wire::Path> for Path {
    fn from(path: wire::Path) -> Self {
        Self {
            proto: path.proto,
            owner: path.owner,
            stand_in: path.stand_in,
            claimed: path.claimed,
        }
    }
}

impl From<wire::Instance> for Endpoint {
    fn from(instance: wire::Instance) -> Self {
        let health = match instance.health() {
            Health::Unspecified => "unknown".to_owned(),
            health => word(health.as_str_name(), "HEALTH_"),
        };
        let checked_by = match instance.checked_by() {
            Kind::Unspecified => String::new(),
            kind => word(kind.as_str_name(), "KIND_").replace(' ', "-"),
        };
        Self {
            health,
            checked_by,
            node: instance.node,
            id: instance.id,
            address: instance.address,
            version: instance.version,
            health_reason: instance.health_reason,
            weight: instance.weight,
            hidden_from_direct_clients: instance.hidden_from_direct_clients,
            schema_reason: instance.schema_reason,
        }
    }
}

impl Service {
    fn healthy(&self) -> String {
        format!("{}/{}", self.healthy_instances, self.instances)
    }

    /// The proto services, or why they are unknown. If calls by path do not reach this service, it names the one that
    /// gets them.
    fn offers(&self) -> String {
        let mut reasons = self
            .endpoints
            .iter()
            .map(|endpoint| &endpoint.schema_reason);
        if self.protos.is_empty()
            && let Some(reason) = reasons.find(|reason| !reason.is_empty())
        {
            // The reason is "cause: remedy"; the remedy is shown with the instance.
            let cause = reason.split(": ").next().unwrap_or_default();
            return format!("unknown ({cause})");
        }
        let mark = |proto: &String| match self.note(proto) {
            Some(note) => format!("{proto} ({note})"),
            None => proto.clone(),
        };
        self.protos.iter().map(mark).collect::<Vec<_>>().join(", ")
    }
}

impl Service {
    fn note(&self, proto: &String) -> Option<String> {
        if self.ambiguous_protos.contains(proto) {
            return Some("ambiguous".to_owned());
        }
        // An older control plane has no paths.
        let path = self.paths.iter().find(|path| path.proto == *proto)?;
        match (path.owner.as_str(), path.stand_in.as_str()) {
            ("", _) if path.claimed => Some("path unclear".to_owned()),
            ("", _) => Some("by name only".to_owned()),
            (owner, "") if owner == self.name => None,
            (owner, "") => Some(format!("path: {owner}")),
            (owner, stand_in) if owner == self.name => {
                Some(format!("no instances, path: {stand_in}"))
            }
            (owner, stand_in) if stand_in == self.name => Some(format!("path: for {owner}")),
            (owner, stand_in) => Some(format!("path: {stand_in} for {owner}")),
        }
    }
}

impl Tabular for Services {
    fn table(&self) -> String {
        let mut table = Table::new(&[
            "SERVICE",
            "PROTOCOL",
            "HEALTHY",
            "VERSIONS",
            "PROTO SERVICES",
        ]);
        for service in &self.services {
            table.row(vec![
                service.name.clone(),
                service.protocol.clone(),
                service.healthy(),
                service.versions.join(", "),
                service.offers(),
            ]);
        }
        table.to_string()
    }
}

impl Tabular for Service {
    fn table(&self) -> String {
        let mut table = Table::new(&[
            "NODE", "INSTANCE", "ADDRESS", "VERSION", "WEIGHT", "CHECK", "HEALTH", "REASON",
        ]);
        for endpoint in &self.endpoints {
            let why = [
                &endpoint.health_reason,
                &endpoint.schema_reason,
                &endpoint.hidden_from_direct_clients,
            ];
            let why: Vec<&str> = why
                .into_iter()
                .map(String::as_str)
                .filter(|w| !w.is_empty())
                .collect();
            table.row(vec![
                endpoint.node.clone(),
                endpoint.id.clone(),
                endpoint.address.clone(),
                endpoint.version.clone(),
                endpoint.weight.to_string(),
                endpoint.checked_by.clone(),
                endpoint.health.clone(),
                why.join("; "),
            ]);
        }
        let mut about = Table::new(&["SERVICE", "PROTOCOL", "HEALTHY", "SCHEMA", "PROTO SERVICES"]);
        let schema: String = self.schema_sha256.chars().take(12).collect();
        about.row(vec![
            self.name.clone(),
            self.protocol.clone(),
            self.healthy(),
            schema,
            self.offers(),
        ]);
        format!("{about}\n{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Service, Services, wire};
    use crate::output::{Format, render};

    fn service(name: &str) -> wire::Service {
        let instance = |node: &str, id: &str, health: i32, reason: &str| wire::Instance {
            id: id.into(),
            node: node.into(),
            address: "127.0.0.1:7".into(),
            version: "v1".into(),
            health,
            health_reason: reason.into(),
            weight: 1,
            checked_by: Kind::KeepAlive.into(),
            ..wire::Instance::default()
        };
        wire::Service {
            name: name.into(),
            protocol: 1,
            protos: vec!["p.A".into(), "p.B".into()],
            versions: vec!["v1".into()],
            instances: 2,
            healthy_instances: 1,
            endpoints: vec![
                instance("b", "e", 2, "refuses connections"),
                instance("a", "e", 1, ""),
            ],
            schema_sha256: "0123456789abcdef".into(),
            ambiguous_protos: vec!["p.B".into()],
            paths: vec![],
        }
    }

    /// Issue 10, B2: the owner of a path is shown if it is not the service itself.
    #[test]
    fn proto_services_say_who_gets_their_calls_by_path() {
        let path = |proto: &str, owner: &str, stand_in: &str, claimed| wire::Path {
            proto: proto.into(),
            owner: owner.into(),
            stand_in: stand_in.into(),
            claimed,
        };
        let check = |name: &str, paths: Vec<wire::Path>, expect: &str| {
            let mut service = service(name);
            service.ambiguous_protos.clear();
            service.paths = paths;
            assert_eq!(Service::from(service).offers(), expect);
        };
        let (users, canary) = ("users.default", "canary.default");
        let own = || path("p.A", users, "", true);
        check(users, vec![own()], "p.A, p.B");
        check(canary, vec![own()], "p.A (path: users.default), p.B");
        let none = path("p.B", "", "", false);
        check(
            canary,
            vec![own(), none],
            "p.A (path: users.default), p.B (by name only)",
        );
        let away = || vec![path("p.A", users, canary, true)];
        check(
            users,
            away(),
            "p.A (no instances, path: canary.default), p.B",
        );
        check(canary, away(), "p.A (path: for users.default), p.B");
    }

    #[test]
    fn services_are_listed_by_name() {
        let answer = wire::ListServicesResponse {
            services: vec![service("b.default"), service("a.shop")],
        };
        assert_eq!(
            render(Format::Table, &Services::from(answer)).unwrap(),
            "SERVICE    PROTOCOL  HEALTHY  VERSIONS  PROTO SERVICES\n\
             a.shop     grpc      1/2      v1        p.A, p.B (ambiguous)\n\
             b.default  grpc      1/2      v1        p.A, p.B (ambiguous)\n"
        );
    }

    /// Issue 10, B1.
    #[test]
    fn a_service_whose_proto_services_are_unknown_says_why() {
        let mut silent = service("a.shop");
        silent.protos.clear();
        silent.endpoints.truncate(1);
        silent.endpoints[0].schema_reason = "it has no reflection: name them".into();
        let table = render(Format::Table, &Service::from(silent)).unwrap();
        assert!(table.contains("unknown (it has no reflection)"), "{table}");
        assert!(table.contains("it has no reflection: name them"), "{table}");
    }

    #[test]
    fn one_service_is_shown_with_its_instances() {
        let one = Service::from(service("a.shop"));
        assert_eq!(
            render(Format::Table, &one).unwrap(),
            "SERVICE  PROTOCOL  HEALTHY  SCHEMA        PROTO SERVICES\n\
             a.shop   grpc      1/2      0123456789ab  p.A, p.B (ambiguous)\n\
             \n\
             NODE  INSTANCE  ADDRESS      VERSION  WEIGHT  CHECK       HEALTH     REASON\n\
             a     e         127.0.0.1:7  v1       1       keep-alive  healthy    -\n\
             b     e         127.0.0.1:7  v1       1       keep-alive  unhealthy  refuses connections\n"
        );
        let json: serde_json::Value =
            serde_json::from_str(&render(Format::Json, &one).unwrap()).unwrap();
        let yaml: serde_json::Value =
            serde_saphyr::from_str(&render(Format::Yaml, &one).unwrap()).unwrap();
        assert_eq!(json, yaml);
        assert_eq!(json["endpoints"][1]["health"], "unhealthy");
    }
}
