//! Logs when a service of this node serves a path that another service owns, so that whoever started it learns why
//! calls go elsewhere. Input: tables and this node's instances. Output: one log line when a conflict begins or when who
//! owns the path or gets its calls changes, and one when it is over. Bounded by what this node's instances serve.

use std::{collections::BTreeMap, sync::Arc};

use tracing::{info, warn};

use crate::{
    agent::instance_table::Views,
    route::{RouteTable, table::Claim},
};

/// Service and proto service.
type Path = (String, String);

/// Who owns a path that a service of this node claims but does not own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Conflict {
    owner: Arc<str>,
    /// Gets the calls: the owner, or the service that stands in for it.
    serves: Arc<str>,
}

/// The paths that services of this node claim but do not own.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    current: BTreeMap<Path, Conflict>,
}

impl Conflicts {
    pub(super) fn report_changes(&mut self, table: &RouteTable, own: &Views) {
        let now = owned_by_others(table, own);
        for (path, conflict) in &now {
            if self.current.get(path) != Some(conflict) {
                let (service, proto) = path;
                let (owner, serves) = (&*conflict.owner, &*conflict.serves);
                warn!(
                    event = "path-conflict",
                    service,
                    owner,
                    serves,
                    proto,
                    "{}",
                    sentence(path, conflict)
                );
            }
        }
        for (path, before) in &self.current {
            if !now.contains_key(path) {
                let (service, proto) = path;
                info!(
                    event = "path-released",
                    service,
                    proto,
                    "{}",
                    ending(table, path, before)
                );
            }
        }
        self.current = now;
    }
}

fn sentence((service, proto): &Path, Conflict { owner, serves }: &Conflict) -> String {
    let remedy = "if it should claim no paths, register it with claim_paths: false";
    if **serves == **service {
        return format!(
            "{service} also serves {proto}, whose path {owner} owns: {service} gets its calls as long as {owner} has \
             no instance; {remedy}"
        );
    }
    let stand_in = match serves == owner {
        true => String::new(),
        false => format!(", and {serves} gets its calls as long as {owner} has no instance"),
    };
    format!(
        "{service} also serves {proto}, but {owner} owns that path{stand_in}: {service} is called by its name only \
         (authority {service}); {remedy}"
    )
}

/// Why a conflict is over.
fn ending(table: &RouteTable, (service, proto): &Path, before: &Conflict) -> String {
    let of = table.service(service);
    let owner = of.and_then(|it| table.path_owner(proto, &it.namespace));
    if owner.is_some_and(|owner| *owner.name == **service) {
        format!("{service} owns the path of {proto} now")
    } else {
        let owner = &before.owner;
        format!(
            "no instance of {service} on this node claims the path of {proto} any more, which {owner} owns"
        )
    }
}

fn owned_by_others(table: &RouteTable, own: &Views) -> BTreeMap<Path, Conflict> {
    let mut conflicts = BTreeMap::new();
    for (key, view) in own.iter().filter(|(_, view)| view.claims_paths()) {
        let service = key.full_service();
        for proto in &view.protos {
            let owner = table.path_owner(&proto.name, &key.namespace);
            let Some(owner) = owner.filter(|owner| *owner.name != *service) else {
                continue;
            };
            let serves = match table.claim(&proto.name, &key.namespace) {
                Claim::One(serves) => &serves.name,
                Claim::None | Claim::Many(_) => &owner.name,
            };
            let conflict = Conflict {
                owner: Arc::clone(&owner.name),
                serves: Arc::clone(serves),
            };
            conflicts.insert((service.clone(), proto.name.clone()), conflict);
        }
    }
    conflicts
}

#[cfg(test)]
mod tests {
    use super::{Conflict, Conflicts, ending, sentence};
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
    fn a_conflict_names_the_owner_and_who_gets_the_calls_and_ends() {
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
        let table = |services: &[(&str, u64, bool)]| {
            let mut builder = RouteTable::builder("a", &[]);
            for (name, since, lives) in services {
                let mut service = Service::new(name, "default");
                // It is known to have none, or not known.
                service.endpoints_known = !lives;
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
        let mut warning = |services: Vec<(&str, u64, bool)>, own| {
            conflicts.report_changes(&table(&services), &own);
            let mut now = conflicts.current.iter();
            now.next().map(|(path, conflict)| sentence(path, conflict))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let by_name = "canary.default is called by its name only (authority canary.default); ";
        let all = |users, second| {
            vec![
                ("users", 1, users),
                ("second", 2, second),
                ("canary", 3, true),
            ]
        };
        for (users, second, part) in [
            (true, true, format!("but users.default owns that path: {by_name}")),
            (
                false,
                true,
                format!(
                    "but users.default owns that path, and second.default gets its calls as long as users.default \
                     has no instance: {by_name}"
                ),
            ),
            (
                false,
                false,
                "whose path users.default owns: canary.default gets its calls as long as users.default has no \
                 instance; "
                    .to_owned(),
            ),
        ] {
            let text = warning(all(users, second), register(None)).unwrap();
            assert!(text.contains(&part), "{text}");
        }
        let quiet = warning(all(true, true), register(Some(false)));
        assert_eq!(quiet, None, "it wants no paths");
        assert_eq!(warning(vec![("canary", 3, true)], register(None)), None);
    }

    #[test]
    fn the_end_of_a_conflict_names_the_owner() {
        let path = ("canary.default".to_owned(), "u.Users".to_owned());
        let before = Conflict {
            owner: "users.default".into(),
            serves: "users.default".into(),
        };
        let table = |names: &[(&str, u64)]| {
            let mut builder = RouteTable::builder("a", &[]);
            for (name, since) in names {
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
        let text = ending(&table(&[("canary", 1)]), &path, &before);
        assert_eq!(text, "canary.default owns the path of u.Users now");
        let text = ending(&table(&[("users", 1)]), &path, &before);
        assert!(
            text.ends_with("any more, which users.default owns"),
            "{text}"
        );
    }
}
