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
        "Replicas of the control plane that are serving, including this one.",
        plane.registry.read(|view| view.replicas().count()) as u64,
    );
    text.one(
        "gauge",
        "heddle_registry_sweeper",
        "1 if this replica is the leader, which expires nodes and deletes unused records.",
        u64::from(plane.registry.is_leader()),
    );
    text.one(
        "gauge",
        "heddle_registry_store_away",
        "1 while the store does not answer this replica.",
        u64::from(plane.registry.store_away().is_some()),
    );
    text.one(
        "gauge",
        "heddle_registry_lags",
        "1 while this replica lags behind others and sends its xDS clients to them.",
        u64::from(plane.membership.lag().borrow().is_some()),
    );
    let snapshot = plane.publisher.subscribe().borrow().clone();
    text.one(
        "gauge",
        "heddle_registry_revision",
        "Store revision of the registry view.",
        revision,
    );
    text.one(
        "gauge",
        "heddle_registry_services",
        "Services with at least one instance.",
        services as u64,
    );
    text.one(
        "gauge",
        "heddle_registry_instances",
        "Instances.",
        instances as u64,
    );
    text.one(
        "gauge",
        "heddle_registry_path_claims",
        "Path claims of services.",
        plane.registry.read(|view| view.claim_counts("").0) as u64,
    );
    text.one(
        "counter",
        "heddle_registry_path_claims_refused_total",
        "Path claims refused because of a limit: their services are called by name only.",
        plane.registry.refused_claims(),
    );
    text.one(
        "gauge",
        "heddle_registry_nodes",
        "Known nodes, including those that have gone recently.",
        nodes as u64,
    );
    text.one(
        "gauge",
        "heddle_registry_nodes_alive",
        "Nodes with a valid lease.",
        alive as u64,
    );
    text.one(
        "gauge",
        "heddle_snapshot_revision",
        "Revision of the published snapshot.",
        snapshot.revision,
    );
    text.one(
        "counter",
        "heddle_snapshots_total",
        "Snapshots built.",
        snapshot.generation,
    );
    text.one(
        "counter",
        "heddle_snapshots_refused_total",
        "Snapshots with an unresolved reference: a bug in Heddle.",
        plane.publisher.refused(),
    );
    let tasks = plane.registry.options().tasks.ended();
    text.labelled(
        "heddle_tasks_ended_total",
        "Background tasks that ended unexpectedly: a bug in Heddle.",
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
        "Transactions and lease operations requested.",
        store.requests,
    );
    text.one(
        "counter",
        "heddle_store_changes_total",
        "Keys put or deleted.",
        store.changes,
    );
    text.one(
        "counter",
        "heddle_store_commits_total",
        "Durable commits.",
        store.commits,
    );
    text.one(
        "counter",
        "heddle_store_faults_total",
        "Failed calls to a member of a replicated store.",
        store.faults,
    );
    text.one(
        "counter",
        "heddle_store_fsyncs_total",
        "Waits for the disk.",
        store.fsyncs,
    );
    text.one(
        "counter",
        "heddle_store_leases_expired_total",
        "Leases that expired.",
        store.leases_expired,
    );
    text.one(
        "gauge",
        "heddle_store_leases",
        "Leases that have not expired.",
        store.leases,
    );
    text.one("gauge", "heddle_store_keys", "Keys.", store.keys);
}

fn client_memory(plane: &Plane, text: &mut Text) {
    let (limit, used, largest) = plane.budget.figures();
    let refused = plane.budget.refused();
    for (kind, name, help, value) in [
        (
            "gauge",
            "heddle_client_memory_limit_bytes",
            "Limit of the memory that clients hold here (--client-memory).",
            limit as u64,
        ),
        (
            "gauge",
            "heddle_client_memory_bytes",
            "Memory that clients hold here.",
            used as u64,
        ),
        (
            "gauge",
            "heddle_client_memory_largest_bytes",
            "Memory held by the peer that holds most.",
            largest as u64,
        ),
    ] {
        text.one(kind, name, help, value);
    }
    text.labelled(
        "heddle_client_memory_refused_total",
        "Requests refused because of this limit, by kind.",
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
        "Connected xDS clients.",
        plane.clients.len() as u64,
    );
    let encodes = plane.publisher.encodes();
    text.per_kind("heddle_xds_encodes_total", "Resources encoded.", |kind| {
        encodes.of(kind)
    });
    text.per_kind("heddle_xds_responses_total", "Responses sent.", |kind| {
        read(counters.responses.get(kind))
    });
    text.per_kind(
        "heddle_xds_response_bytes_total",
        "Bytes of responses sent.",
        |kind| read(counters.response_bytes.get(kind)),
    );
    text.per_kind(
        "heddle_xds_acknowledged_total",
        "Responses acknowledged.",
        |kind| read(counters.acknowledged.get(kind)),
    );
    text.per_kind("heddle_xds_rejected_total", "Responses rejected.", |kind| {
        read(counters.rejected.get(kind))
    });
    for (name, help, counter) in [
        (
            "heddle_xds_stale_total",
            "Acknowledgements and rejections of outdated responses.",
            &counters.stale,
        ),
        (
            "heddle_xds_unknown_types_total",
            "Requests for types that are not served.",
            &counters.unknown_types,
        ),
        (
            "heddle_xds_violations_total",
            "Streams ended because of an invalid request.",
            &counters.violations,
        ),
        (
            "heddle_xds_refused_total",
            "Streams refused because there were too many.",
            &counters.refused,
        ),
        (
            "heddle_xds_stuck_total",
            "Streams ended because the client did not respond.",
            &counters.stuck,
        ),
        (
            "heddle_xds_spread_total",
            "Streams ended because of their age.",
            &counters.spread,
        ),
        (
            "heddle_xds_shed_total",
            "Streams ended because this replica held more than its share.",
            &counters.shed,
        ),
        (
            "heddle_xds_lagging_total",
            "Streams ended or refused because this replica lagged behind others.",
            &counters.lagging,
        ),
        (
            "heddle_xds_muted_total",
            "Times a client sent requests too fast and had to wait.",
            &counters.muted,
        ),
        (
            "heddle_xds_held_back_total",
            "Times updates of large resources were delayed by the rate limit.",
            &counters.held_back,
        ),
        (
            "heddle_xds_behind_total",
            "Streams ended because the client had seen a newer revision.",
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
            "CSDS requests refused because there were too many.",
            &counters.refused,
        ),
        (
            "heddle_csds_unanswered_total",
            "Times another replica did not answer a CSDS request completely.",
            &counters.unanswered,
        ),
        (
            "heddle_csds_stuck_total",
            "CSDS responses ended because the client did not read them.",
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
            "Clients that report their load.",
            streams as u64,
        ),
        (
            "gauge",
            "heddle_load_edges",
            "Callers by service and locality in the last reports.",
            entries as u64,
        ),
        (
            "counter",
            "heddle_load_reports_total",
            "Load reports received.",
            loads.reports(),
        ),
        (
            "counter",
            "heddle_load_left_out_total",
            "Rows of load reports ignored: unknown service, invalid name, or too many.",
            loads.left_out(),
        ),
        (
            "counter",
            "heddle_load_refused_total",
            "Streams of load reports refused because there were too many.",
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
        "Calls that succeeded, as reported by clients.",
        of(|of| of.succeeded),
    );
    text.per_service(
        "heddle_load_failed_total",
        "Calls that failed, as reported by clients.",
        of(|of| of.failed),
    );
    text.per_service(
        "heddle_load_dropped_total",
        "Calls that clients dropped, as reported by them.",
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
