//! Logs when a service of this node serves a path that another service owns, so that whoever started it learns why
//! calls go elsewhere. Input: tables and this node's instances. Output: one log line when a conflict begins or its
//! owner changes, and one when this node's service has become the owner. Bounded by what this node's instances serve.

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::{agent::instance_table::Views, route::RouteTable};

/// Service and proto service.
type Path = (String, String);

/// The owners of the paths that services of this node claim but do not own.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    owners: BTreeMap<Path, String>,
}

impl Conflicts {
    pub(super) fn report_changes(&mut self, table: &RouteTable, own: &Views) {
        let now = owned_by_others(table, own);
        for ((service, proto), owner) in &now {
            if self.owners.get(&(service.clone(), proto.clone())) != Some(owner) {
                warn!(
                    event = "path-conflict",
                    service,
                    owner,
                    proto,
                    "{service} also serves {proto}, but {owner} owns that path: {service} is \
                     called by its name only (authority {service}); if it should claim no paths, \
                     register it with claim_paths: false"
                );
            }
        }
        for (service, proto) in self.owners.keys() {
            let is_over = !now.contains_key(&(service.clone(), proto.clone()));
            let owner = table
                .service(service)
                .and_then(|it| table.path_owner(proto, &it.namespace));
            if is_over && owner.is_some_and(|owner| *owner.name == **service) {
                info!(service, proto, "{service} owns the path of {proto} now");
            }
        }
        self.owners = now;
    }
}

fn owned_by_others(table: &RouteTable, own: &Views) -> BTreeMap<Path, String> {
    let mut conflicts = BTreeMap::new();
    for (key, view) in own.iter().filter(|(_, view)| view.claims_paths()) {
        let service = key.full_service();
        for proto in &view.protos {
            let owner = table.path_owner(&proto.name, &key.namespace);
            if let Some(owner) = owner.filter(|owner| *owner.name != *service) {
                let path = (service.clone(), proto.name.clone());
                conflicts.insert(path, owner.name.to_string());
            }
        }
    }
    conflicts
}

#[cfg(test)]
mod tests {
    use super::Conflicts;
    use crate::{
        agent::{
            Agent,
            validate::{Origin, check},
        },
        route::{ProtoService, Rank, RouteTable, Service},
    };
    use heddle_proto::registry::v1::Instance;
    use prost::bytes::Bytes;

    #[test]
    fn a_conflict_names_the_owner_and_ends_with_it() {
        let agent = Agent::new("a");
        let canary = Instance {
            service: "canary".to_owned(),
            id: "c1".to_owned(),
            address: "127.0.0.1:1".to_owned(),
            protos: vec!["u.Users".to_owned()],
            ..Instance::default()
        };
        let register = |claim_paths| {
            let instance = Instance {
                claim_paths,
                ..canary.clone()
            };
            let checked = check(instance, &Bytes::new(), Origin::File, &|_| true);
            agent
                .set_file("f".as_ref(), vec![checked.unwrap()])
                .unwrap();
            agent.views().1
        };
        let table = |services: &[(&str, u64)]| {
            let mut builder = RouteTable::builder("a", &[]);
            for (name, since) in services {
                let mut service = Service::new(name, "default");
                service.protos = vec![ProtoService {
                    name: "u.Users".to_owned(),
                    claim: Some(Rank::Since(*since)),
                    ..ProtoService::default()
                }];
                builder.service(service);
            }
            builder.build()
        };
        let mut conflicts = Conflicts::default();
        let mut owner = |services, own| {
            conflicts.report_changes(&table(services), &own);
            conflicts.owners.values().next().cloned()
        };
        let both = &[("users", 1), ("canary", 2)][..];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        assert_eq!(
            owner(both, register(None)).as_deref(),
            Some("users.default")
        );
        assert_eq!(
            owner(both, register(Some(false))),
            None,
            "it wants no paths"
        );
        assert_eq!(owner(&[("canary", 2)], register(None)), None);
    }
}
