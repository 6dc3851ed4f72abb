//! The text of `/metrics`, in the format of Prometheus. Nothing is counted here.

use std::{fmt::Write as _, sync::atomic::Ordering};

use crate::{load::ServiceTotals, plane::Plane, snapshot::Kind};

pub(super) fn metrics(plane: &Plane) -> String {
    let mut text = Text::default();
    let (revision, services, instances, nodes, alive) = plane.registry.read(|view| {
        let alive = view.nodes().filter(|node| node.alive).count();
        (
            view.revision().0,
            view.services().count(),
            view.instance_count(),
            view.nodes().count(),
            alive,
        )
    });
    text.one(
        "gauge",
        "heddle_registry_replicas",
        "Replicas of the control plane that serve, this one included",
        plane.registry.read(|view| view.replicas().count()) as u64,
    );
    text.one(
        "gauge",
        "heddle_registry_sweeper",
        "1 if this replica judges lapsed nodes and removes what nobody needs, for all replicas",
        u64::from(plane.registry.is_leader()),
    );
    text.one(
        "gauge",
        "heddle_registry_store_away",
        "1 while the store does not answer this replica",
        u64::from(plane.registry.store_away().is_some()),
    );
    text.one(
        "gauge",
        "heddle_registry_lags",
        "1 while this replica lags behind others, and sends its xDS clients to them",
        u64::from(plane.membership.lag().borrow().is_some()),
    );
    let snapshot = plane.publisher.subscribe().borrow().clone();
    text.one(
        "gauge",
        "heddle_registry_revision",
        "Revision of the store that the view shows",
        revision,
    );
    text.one(
        "gauge",
        "heddle_registry_services",
        "Services with an instance",
        services as u64,
    );
    text.one(
        "gauge",
        "heddle_registry_instances",
        "Instances",
        instances as u64,
    );
    text.one(
        "gauge",
        "heddle_registry_path_claims",
        "Claims of paths by services",
        plane.registry.read(|view| view.claim_counts("").0) as u64,
    );
    text.one(
        "counter",
        "heddle_registry_path_claims_refused_total",
        "Claims of paths over the bounds: their services are called by name only",
        plane.registry.refused_claims(),
    );
    text.one(
        "gauge",
        "heddle_registry_nodes",
        "Nodes known, those that have gone of late included",
        nodes as u64,
    );
    text.one(
        "gauge",
        "heddle_registry_nodes_alive",
        "Nodes that hold their lease",
        alive as u64,
    );
    text.one(
        "gauge",
        "heddle_snapshot_revision",
        "Revision of the published snapshot",
        snapshot.revision,
    );
    text.one(
        "counter",
        "heddle_snapshots_total",
        "Snapshots made",
        snapshot.generation,
    );
    text.one(
        "counter",
        "heddle_snapshots_refused_total",
        "Snapshots with a reference that does not resolve: a fault of Heddle",
        plane.publisher.refused(),
    );
    let tasks = plane.registry.options().tasks.ended();
    text.labelled(
        "heddle_tasks_ended_total",
        "Background tasks that ended though nobody had told them to: a fault of Heddle",
        "task",
        tasks,
    );
    store(plane, &mut text);
    client_memory(plane, &mut text);
    streams(plane, &mut text);
    questions(plane, &mut text);
    loads(plane, &mut text);
    let listeners = [&plane.grpc_connections, &plane.http_connections];
    let totals = listeners.map(heddle_listen::Connections::totals);
    text.0
        .push_str(&heddle_listen::connections::prometheus(&totals));
    text.0
}

fn store(plane: &Plane, text: &mut Text) {
    let store = plane.registry.store().counters();
    text.one(
        "counter",
        "heddle_store_requests_total",
        "Transactions and leases asked for",
        store.requests,
    );
    text.one(
        "counter",
        "heddle_store_changes_total",
        "Keys put or deleted",
        store.changes,
    );
    text.one(
        "counter",
        "heddle_store_commits_total",
        "Durable commits",
        store.commits,
    );
    text.one(
        "counter",
        "heddle_store_faults_total",
        "Calls that a member of a replicated store failed",
        store.faults,
    );
    text.one(
        "counter",
        "heddle_store_fsyncs_total",
        "Waits for the disk",
        store.fsyncs,
    );
    text.one(
        "counter",
        "heddle_store_leases_expired_total",
        "Leases that ran out",
        store.leases_expired,
    );
    text.one(
        "gauge",
        "heddle_store_leases",
        "Leases that live",
        store.leases,
    );
    text.one("gauge", "heddle_store_keys", "Keys", store.keys);
}

fn client_memory(plane: &Plane, text: &mut Text) {
    let (limit, used, largest) = plane.budget.figures();
    let refused = plane.budget.refused();
    for (kind, name, help, value) in [
        (
            "gauge",
            "heddle_client_memory_limit_bytes",
            "Memory for all that clients hold here (--client-memory)",
            limit as u64,
        ),
        (
            "gauge",
            "heddle_client_memory_bytes",
            "What they hold of it",
            used as u64,
        ),
        (
            "gauge",
            "heddle_client_memory_largest_bytes",
            "What the peer holds that holds most",
            largest as u64,
        ),
    ] {
        text.one(kind, name, help, value);
    }
    text.labelled(
        "heddle_client_memory_refused_total",
        "What was refused because of this bound",
        "what",
        [
            ("connection", &refused.connections),
            ("call", &refused.calls),
            ("message", &refused.messages),
            ("answer", &refused.answers),
        ]
        .map(|(what, counter)| (what, counter.load(Ordering::Relaxed))),
    );
}

fn streams(plane: &Plane, text: &mut Text) {
    let counters = plane.clients.metrics();
    let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    text.one(
        "gauge",
        "heddle_xds_clients",
        "Connected xDS clients",
        plane.clients.len() as u64,
    );
    let encodes = plane.publisher.encodes();
    text.per_kind("heddle_xds_encodes_total", "Resources encoded", |kind| {
        encodes.of(kind)
    });
    text.per_kind("heddle_xds_responses_total", "Responses sent", |kind| {
        read(counters.responses.get(kind))
    });
    text.per_kind(
        "heddle_xds_response_bytes_total",
        "Bytes of responses sent",
        |kind| read(counters.response_bytes.get(kind)),
    );
    text.per_kind(
        "heddle_xds_acknowledged_total",
        "Responses acknowledged",
        |kind| read(counters.acknowledged.get(kind)),
    );
    text.per_kind("heddle_xds_rejected_total", "Responses rejected", |kind| {
        read(counters.rejected.get(kind))
    });
    for (name, help, counter) in [
        (
            "heddle_xds_stale_total",
            "Requests about an overtaken response",
            &counters.stale,
        ),
        (
            "heddle_xds_unknown_types_total",
            "Requests for types that are not served",
            &counters.unknown_types,
        ),
        (
            "heddle_xds_violations_total",
            "Streams ended for what the client sent",
            &counters.violations,
        ),
        (
            "heddle_xds_refused_total",
            "Streams refused because there were too many",
            &counters.refused,
        ),
        (
            "heddle_xds_stuck_total",
            "Streams ended because the client answered nothing",
            &counters.stuck,
        ),
        (
            "heddle_xds_spread_total",
            "Streams ended for their age",
            &counters.spread,
        ),
        (
            "heddle_xds_shed_total",
            "Streams ended because this replica held more than its share",
            &counters.shed,
        ),
        (
            "heddle_xds_lagging_total",
            "Streams ended or refused because this replica lagged behind others",
            &counters.lagging,
        ),
        (
            "heddle_xds_muted_total",
            "Times that a client spoke too fast and had to wait",
            &counters.muted,
        ),
        (
            "heddle_xds_held_back_total",
            "Times that newer states of large resources had to wait for their turn",
            &counters.held_back,
        ),
        (
            "heddle_xds_behind_total",
            "Streams ended because the client had seen more",
            &counters.behind,
        ),
    ] {
        text.one("counter", name, help, read(counter));
    }
}

fn questions(plane: &Plane, text: &mut Text) {
    let counters = plane.configs.counters();
    for (name, help, counter) in [
        (
            "heddle_csds_refused_total",
            "Questions what clients were sent that were refused because there were too many",
            &counters.refused,
        ),
        (
            "heddle_csds_unanswered_total",
            "Times that another replica did not answer such a question to the end",
            &counters.unanswered,
        ),
        (
            "heddle_csds_stuck_total",
            "Such answers ended because nobody read them",
            &counters.stuck,
        ),
    ] {
        text.one("counter", name, help, counter.load(Ordering::Relaxed));
    }
}

fn loads(plane: &Plane, text: &mut Text) {
    let loads = &plane.loads;
    let (streams, entries) = loads.size();
    for (kind, name, help, value) in [
        (
            "gauge",
            "heddle_load_clients",
            "Clients that report their load",
            streams as u64,
        ),
        (
            "gauge",
            "heddle_load_edges",
            "Callers by service and locality in the last reports",
            entries as u64,
        ),
        (
            "counter",
            "heddle_load_reports_total",
            "Load reports taken",
            loads.reports(),
        ),
        (
            "counter",
            "heddle_load_left_out_total",
            "Rows of load reports left out: of no service here, badly named, or too many",
            loads.left_out(),
        ),
        (
            "counter",
            "heddle_load_refused_total",
            "Streams of load reports refused because there were too many",
            loads.refused(),
        ),
    ] {
        text.one(kind, name, help, value);
    }
    let totals = loads.totals();
    let of = |value: fn(&ServiceTotals) -> u64| {
        let rows = totals.iter();
        rows.map(move |of| (of.service.as_str(), value(of)))
    };
    text.per_service(
        "heddle_load_succeeded_total",
        "Calls that succeeded, as clients report",
        of(|of| of.succeeded),
    );
    text.per_service(
        "heddle_load_failed_total",
        "Calls that failed, as clients report",
        of(|of| of.failed),
    );
    text.per_service(
        "heddle_load_dropped_total",
        "Calls that clients dropped, as they report",
        of(|of| of.dropped),
    );
}

#[derive(Default)]
struct Text(String);

// Writing to a String cannot fail.
impl Text {
    fn one(&mut self, kind: &str, name: &str, help: &str, value: u64) {
        let _ = write!(
            self.0,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
        );
    }

    fn per_service<'a>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.labelled(name, help, "service", rows);
    }

    /// Writes values of a label that need no escaping.
    fn labelled<'a>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        rows: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for (value, count) in rows {
            let _ = writeln!(self.0, "{name}{{{label}=\"{value}\"}} {count}");
        }
    }

    fn per_kind(&mut self, name: &str, help: &str, value: impl Fn(Kind) -> u64) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for kind in Kind::ALL {
            let _ = writeln!(self.0, "{name}{{type=\"{}\"}} {}", kind.word(), value(kind));
        }
    }
}
