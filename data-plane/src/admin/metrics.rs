//! `/metrics` in the Prometheus text format: the workers' counters, then those of the control side. Label values are
//! bounded by what the proxy knows; values sent by callers never become labels.

use std::fmt::Write as _;

use super::http::Sources;
use crate::agent::session::SessionStatus;

/// The whole page.
#[must_use]
pub fn page(sources: &Sources) -> String {
    let mut out = sources.workers.metrics().prometheus();
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    let (_, views) = sources.agent.views();
    let healthy = views
        .values()
        .filter(|v| v.health == heddle_proto::registry::v1::Health::Healthy)
        .count();
    let mesh = sources.mesh.borrow().clone();
    let stream = sources.xds.status.borrow().clone();
    let session = sources.session.borrow().clone();
    let mut gauge = |name: &str, help: &str, value: u64| {
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}"
        );
    };
    gauge(
        "heddle_ready",
        "1 while this proxy is ready for calls.",
        u64::from(sources.readiness.borrow().is_ready()),
    );
    gauge(
        "heddle_agent_instances",
        "Instances of this node.",
        views.len() as u64,
    );
    gauge(
        "heddle_agent_healthy_instances",
        "Instances of this node that take calls.",
        healthy as u64,
    );
    let unknown = views.values().filter(|v| !v.schema_reason.is_empty());
    gauge(
        "heddle_agent_schemas_unknown",
        "Instances of this node whose proto services or descriptors are not all known.",
        unknown.count() as u64,
    );
    gauge(
        "heddle_mesh_services",
        "Services in the routing table.",
        mesh.table.services().count() as u64,
    );
    gauge(
        "heddle_xds_connected",
        "1 while the xDS stream is open.",
        u64::from(stream.connected.is_some()),
    );
    gauge(
        "heddle_xds_services_wanted",
        "Services whose endpoints are subscribed.",
        stream.wanted as u64,
    );
    gauge(
        "heddle_xds_services_held",
        "Services whose endpoints have been received.",
        stream.held as u64,
    );
    let connected = matches!(session, SessionStatus::Connected(_));
    gauge(
        "heddle_session_connected",
        "1 while the node session is open.",
        u64::from(connected),
    );
    let superseded = matches!(session, SessionStatus::Superseded(_));
    gauge(
        "heddle_session_superseded",
        "1 while another process runs as this node.",
        u64::from(superseded),
    );
    let mut counter = |name: &str, help: &str, value: u64| {
        let _ = writeln!(
            out,
            "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}"
        );
    };
    counter(
        "heddle_mesh_table_swaps_total",
        "Routing tables built.",
        mesh.swaps,
    );
    counter(
        "heddle_xds_accepted_total",
        "xDS responses acknowledged.",
        stream.accepted,
    );
    counter(
        "heddle_xds_rejected_total",
        "xDS responses rejected.",
        stream.rejected,
    );
    let name = "heddle_xds_fetches_total";
    let _ = writeln!(
        out,
        "# HELP {name} Requests for the endpoints of a service, by result.\n# TYPE {name} counter\n{name}{{result=\"ok\"}} {}\n{name}{{result=\"timed_out\"}} {}",
        stream.fetches.ok, stream.fetches.timed_out
    );
    let connections = sources.connections.iter();
    let totals: Vec<_> = connections
        .map(heddle_listen::Connections::totals)
        .collect();
    out.push_str(&heddle_listen::connections::prometheus(&totals));
    let name = "heddle_tasks_ended_total";
    let _ = writeln!(
        out,
        "# HELP {name} Background tasks that ended unexpectedly: a bug in Heddle.\n# TYPE {name} counter"
    );
    for (task, value) in sources.tasks.ended() {
        let _ = writeln!(out, "{name}{{task=\"{task}\"}} {value}");
    }
    out
}
