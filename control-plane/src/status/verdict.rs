//! The health of the mesh: its problems, each with a remedy, and the verdict that follows from them. Pure: computed
//! from the view, the clients of all replicas and what this replica knows of its store.

use std::{collections::BTreeSet, time::Duration};

use heddle_proto::{
    registry::v1::Health,
    status::v1::{Mesh, Problem, Proxy, mesh::Verdict, problem::Severity, proxy::Sync},
};

use super::mesh::count;
use crate::{
    names::ServiceName,
    registry::{Node, View},
};

/// Most problems in one answer; the number of further ones is given.
const MAX_PROBLEMS: usize = 100;

/// What the view does not contain.
pub(super) struct Observations<'a> {
    /// The xDS clients of all replicas that answered.
    pub(super) proxies: &'a [Proxy],
    /// Replicas that did not answer.
    pub(super) unanswered: &'a [String],
    /// For how long the store has not answered this replica.
    pub(super) store_away: Option<Duration>,
    /// This replica lags behind another one.
    pub(super) lags: bool,
    /// The replica that answers.
    pub(super) replica: &'a str,
}

/// Sets the verdict of an answer.
pub(super) fn evaluate(mesh: &mut Mesh, view: &View, observations: &Observations<'_>) {
    let mut problems = of_control(observations);
    problems.extend(of_nodes(view));
    problems.extend(of_services(view));
    let proxies = observations.proxies.iter();
    let reported = proxies.filter(|proxy| !is_reported_as_lapsed(view, proxy));
    problems.extend(reported.filter_map(of_proxy));
    let errs = |problem: &Problem| problem.severity() == Severity::Error;
    mesh.set_verdict(match (problems.is_empty(), problems.iter().any(errs)) {
        (true, _) => Verdict::Ok,
        (false, false) => Verdict::Degraded,
        (false, true) => Verdict::Failing,
    });
    problems.sort_by(|a, b| {
        let key = |it: &Problem| (!errs(it), it.check.clone(), it.subject.clone());
        key(a).cmp(&key(b))
    });
    mesh.more_problems = count(problems.len().saturating_sub(MAX_PROBLEMS));
    problems.truncate(MAX_PROBLEMS);
    mesh.problems = problems;
}

fn problem(
    check: &str,
    severity: Severity,
    subject: &str,
    sentence: String,
    remedy: &str,
) -> Problem {
    Problem {
        check: check.to_owned(),
        severity: severity.into(),
        subject: subject.to_owned(),
        sentence,
        remedy: remedy.to_owned(),
    }
}

fn of_control(observations: &Observations<'_>) -> Vec<Problem> {
    let replica = observations.replica;
    let away = observations.store_away.map(|away| {
        let sentence = format!(
            "the store has not answered replica {replica} for {} s: calls continue, but changes \
             of the mesh are not stored",
            away.as_secs()
        );
        let remedy =
            "check the store (etcd's members and quorum, or the disk) and the replica's log";
        problem("store.away", Severity::Error, replica, sentence, remedy)
    });
    let lags = observations.lags.then(|| {
        let sentence = format!(
            "replica {replica} is seconds behind another replica and sends its clients there"
        );
        let remedy = "check the network between this replica and the store";
        problem("control.lag", Severity::Error, replica, sentence, remedy)
    });
    let unanswered = observations.unanswered.iter().map(|name| {
        let sentence = format!("replica {name} did not answer within 2 s");
        let remedy = "check its log and the address that it advertises (--advertise)";
        problem(
            "control.unanswered",
            Severity::Warning,
            name,
            sentence,
            remedy,
        )
    });
    away.into_iter().chain(lags).chain(unanswered).collect()
}

/// An expired node is a problem for as long as its event is kept, about an hour: one that was removed for good must not
/// be a problem forever.
fn of_nodes(view: &View) -> Vec<Problem> {
    let expired: BTreeSet<&str> = view
        .events()
        .filter(|event| event.record.kind == "node-expired")
        .map(|event| event.record.node.as_str())
        .collect();
    view.nodes()
        .flat_map(|node| of_node(view, node, expired.contains(&*node.name)))
        .collect()
}

fn of_node(view: &View, node: &Node, expired: bool) -> Vec<Problem> {
    let name = &*node.name;
    let mut problems = Vec::new();
    if node.suspect {
        let sentence = format!(
            "the lease of node {name} expired together with many others; still in use for now: {}",
            heddle_proto::count(view.instances_on(&node.name), "instance")
        );
        let remedy = "check the network between the nodes and the control plane";
        problems.push(problem(
            "node.suspect",
            Severity::Warning,
            name,
            sentence,
            remedy,
        ));
    } else if !node.alive && !node.left && (expired || view.instances_on(&node.name) > 0) {
        let sentence = format!(
            "node {name} has not renewed its lease: its proxy has stopped without notice or is cut off, and its instances \
             get no calls"
        );
        let remedy = "start its proxy again, or check its connection to the control plane; if it \
            is gone for good, this problem disappears within an hour";
        problems.push(problem(
            "node.lapsed",
            Severity::Error,
            name,
            sentence,
            remedy,
        ));
    }
    if let Some(clash) = &node.clash {
        let sentence = format!(
            "another running process also claims the name of node {name}: {}",
            clash.process_id
        );
        let remedy = "give each proxy its own --node name";
        problems.push(problem(
            "node.clash",
            Severity::Error,
            name,
            sentence,
            remedy,
        ));
    }
    problems
}

fn of_services(view: &View) -> Vec<Problem> {
    view.services()
        .filter_map(|name| of_service(view, name))
        .collect()
}

/// Draining instances are not counted.
fn of_service(view: &View, name: &ServiceName) -> Option<Problem> {
    let (mut all, mut out, mut why) = (0, 0, None);
    for instance in view.instances(name) {
        let health = view.health(instance);
        if health == Health::Draining {
            continue;
        }
        all += 1;
        if health == Health::Unhealthy {
            out += 1;
            why = why.or(Some((instance.id.clone(), instance.health_reason.clone())));
        }
    }
    let (id, reason) = why?;
    let severity = match out == all {
        true => Severity::Error,
        false => Severity::Warning,
    };
    let of = heddle_proto::count(all, "instance");
    let are = if out == 1 { "is" } else { "are" };
    let sentence = format!("{out} of {of} of {name} {are} unhealthy; {id}: {reason}");
    let remedy = format!("heddle services {name} shows each with its reason");
    Some(problem(
        "service.unhealthy",
        severity,
        &name.to_string(),
        sentence,
        &remedy,
    ))
}

/// Whether the proxy has no stream because its node's lease has expired: `node.lapsed` says so, and that the proxy would
/// go on serving may not be true.
fn is_reported_as_lapsed(view: &View, proxy: &Proxy) -> bool {
    let node = view.node(&proxy.node_id);
    proxy.variant.is_empty()
        && node.is_some_and(|node| node.expired && !node.alive && !node.suspect)
}

fn of_proxy(proxy: &Proxy) -> Option<Problem> {
    // It is stopping, and serves no new calls.
    if proxy.draining {
        return None;
    }
    let id = &proxy.node_id;
    match proxy.sync() {
        Sync::Stale if proxy.variant.is_empty() => {
            // Its node reports the same, unless it serves without any state from its control plane.
            (proxy.lag_seconds >= 30.0).then(|| {
                let sentence = format!(
                    "proxy {id} has had no xDS stream for {:.0} s: it serves with its last known \
                     state",
                    proxy.lag_seconds
                );
                let remedy = "check its log and its connection to the control plane (--control)";
                problem("xds.stale", Severity::Error, id, sentence, remedy)
            })
        }
        Sync::Stale => {
            let sentence = format!(
                "{id} has not answered a response for {:.0} s: it serves with an older state",
                proxy.lag_seconds
            );
            let remedy = "check whether that process hangs";
            Some(problem("xds.stale", Severity::Error, id, sentence, remedy))
        }
        Sync::Rejecting => {
            let of = proxy
                .types
                .iter()
                .find(|of| !of.rejected_reason.is_empty() || !of.refused.is_empty());
            let why = of.map_or(String::new(), |of| match of.refused.first() {
                Some(first) => format!("{}: {}", first.name, first.reason),
                None => of.rejected_reason.clone(),
            });
            let sentence = format!("{id} rejects a response and keeps its earlier state: {why}");
            let remedy = "heddle proxies lists everything that it rejects";
            Some(problem(
                "xds.rejecting",
                Severity::Error,
                id,
                sentence,
                remedy,
            ))
        }
        Sync::Unknown | Sync::InSync => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::fixture;

    fn evaluated(view: &View, observations: &Observations<'_>) -> (Verdict, Vec<String>) {
        let mut mesh = Mesh::default();
        evaluate(&mut mesh, view, observations);
        let short = |it: &Problem| format!("{} {}", it.check, it.subject);
        assert!(mesh.problems.iter().all(|it| {
            !it.sentence.is_empty() && !it.remedy.is_empty() && it.severity() != Severity::Unknown
        }));
        (mesh.verdict(), mesh.problems.iter().map(short).collect())
    }

    fn quiet() -> Observations<'static> {
        Observations {
            proxies: &[],
            unanswered: &[],
            store_away: None,
            lags: false,
            replica: "r1",
        }
    }

    fn set_health(mesh: &mut fixture::Mesh, path: &str, health: Health) {
        let local = mesh.put(path, "10.0.0.1:80");
        local.set_health(health);
        local.health_reason = "refused".into();
    }

    #[test]
    fn a_mesh_in_which_all_works_is_ok() {
        let mut mesh = fixture::Mesh::new();
        set_health(&mut mesh, "a/users/1", Health::Healthy);
        set_health(&mut mesh, "a/users/2", Health::Draining);
        assert_eq!(evaluated(&mesh.view(), &quiet()), (Verdict::Ok, Vec::new()));
    }

    #[test]
    fn some_unhealthy_instances_degrade_and_a_service_with_no_other_fails() {
        let mut mesh = fixture::Mesh::new();
        set_health(&mut mesh, "a/users/1", Health::Healthy);
        set_health(&mut mesh, "a/users/2", Health::Unhealthy);
        let named = vec!["service.unhealthy users.default".to_owned()];
        let (verdict, problems) = evaluated(&mesh.view(), &quiet());
        assert_eq!((verdict, problems), (Verdict::Degraded, named.clone()));
        set_health(&mut mesh, "a/users/1", Health::Unhealthy);
        set_health(&mut mesh, "a/web/1", Health::Healthy);
        assert_eq!(evaluated(&mesh.view(), &quiet()), (Verdict::Failing, named));
    }

    /// Issue 10, E1: a proxy that was killed was said to serve with its last known state.
    #[test]
    fn a_node_that_lapsed_is_one_problem() {
        let mut mesh = fixture::Mesh::new();
        set_health(&mut mesh, "a/users/1", Health::Healthy);
        mesh.node("a").expired = true;
        let gone = Proxy {
            node_id: "a".into(),
            sync: Sync::Stale.into(),
            lag_seconds: 45.0,
            ..Proxy::default()
        };
        let observations = Observations {
            proxies: &[gone],
            ..quiet()
        };
        let (verdict, problems) = evaluated(&mesh.view(), &observations);
        let lapsed = vec!["node.lapsed a".to_owned()];
        assert_eq!((verdict, problems), (Verdict::Failing, lapsed));
    }

    #[test]
    fn stores_replicas_and_clients_are_named() {
        let mesh = fixture::Mesh::new();
        let stale = Proxy {
            node_id: "a".into(),
            variant: "delta".into(),
            sync: Sync::Stale.into(),
            lag_seconds: 31.0,
            ..Proxy::default()
        };
        // It left just now: it may be restarting.
        let gone = Proxy {
            node_id: "b".into(),
            variant: String::new(),
            lag_seconds: 3.0,
            ..stale.clone()
        };
        let rejecting = Proxy {
            node_id: "c".into(),
            sync: Sync::Rejecting.into(),
            ..stale.clone()
        };
        let observations = Observations {
            proxies: &[stale, gone, rejecting],
            unanswered: &["r2".into()],
            store_away: Some(Duration::from_secs(3)),
            lags: true,
            ..quiet()
        };
        let (verdict, problems) = evaluated(&mesh.view(), &observations);
        assert_eq!(verdict, Verdict::Failing);
        let expected = [
            "control.lag r1",
            "store.away r1",
            "xds.rejecting c",
            "xds.stale a",
            "control.unanswered r2",
        ];
        assert_eq!(problems, expected, "errors first");
    }
}
