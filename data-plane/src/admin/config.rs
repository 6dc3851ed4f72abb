//! `/config`: the options and the state of this proxy, as JSON for people and tests. Read only; secrets are replaced by
//! `***` before they get here.

use heddle_proto::registry::v1::Health as OwnHealth;
use serde_json::{Map, Value, json};

use super::http::Sources;
use crate::{
    agent::session::SessionStatus,
    balance::endpoints::{Endpoint, Health, Target},
    mesh::Mesh,
    observe::MetricsSnapshot,
    route::Protocol,
    worker::ConnectionInfo,
};

/// The whole page. `connections` are collected from the workers beforehand, because that takes a turn of each.
#[must_use]
pub fn dump(sources: &Sources, connections: &[ConnectionInfo]) -> Value {
    let mesh = sources.mesh.borrow().clone();
    let options: Map<String, Value> = sources
        .options
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let connections: Vec<_> = connections
        .iter()
        .map(
            |c| json!({ "worker": c.worker, "kind": c.kind, "peer": c.peer, "streams": c.streams }),
        )
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": mesh.table.node().as_ref(),
        "readiness": sources.readiness.borrow().sentence(),
        "options": options,
        "listeners": *sources.listeners.borrow(),
        "session": session(sources),
        "xds": xds(sources),
        "routing_table": table(&mesh, &sources.workers.metrics()),
        "instances": instances(sources),
        "services_file_faults": sources.agent.file_faults(),
        "connections": connections,
    })
}

fn session(sources: &Sources) -> Value {
    match &*sources.session.borrow() {
        SessionStatus::Off => json!({ "state": "off" }),
        SessionStatus::Connecting(why) => json!({ "state": "connecting", "reason": why }),
        SessionStatus::Connected(replica) => json!({ "state": "connected", "replica": replica }),
        SessionStatus::Ended => json!({ "state": "ended" }),
        SessionStatus::Superseded(by) => json!({ "state": "superseded", "reason": by }),
    }
}

fn xds(sources: &Sources) -> Value {
    let status = sources.xds.status.borrow().clone();
    let view = sources.xds.view.borrow().clone();
    json!({
        "connected": status.connected,
        "reason": status.error,
        "complete": view.complete,
        "services": view.clusters.len(),
        "services_wanted": status.wanted,
        "services_held": status.held,
        "accepted": status.accepted,
        "rejected": status.rejected,
        "rejections": status.rejections,
        "versions": status.versions,
    })
}

fn table(mesh: &Mesh, metrics: &MetricsSnapshot) -> Value {
    let services: Map<String, Value> = mesh
        .table
        .services()
        .map(|service| {
            let protos: Map<String, Value> =
                service.protos.iter().map(|p| (p.name.clone(), json!(p.idempotent_methods))).collect();
            let endpoints: Vec<_> = service.endpoints.endpoints.iter().map(|e| endpoint(e, metrics)).collect();
            let protocol = match service.protocol {
                Protocol::Grpc => "grpc",
                Protocol::Http => "http",
                Protocol::Tcp => "tcp",
            };
            let value = json!({
                "protocol": protocol, "idempotent_methods_by_proto": protos, "held": service.endpoints_known, "endpoints": endpoints,
            });
            (service.name.to_string(), value)
        })
        .collect();
    json!({ "ready": mesh.table.is_ready(), "swaps": mesh.swaps, "services": services })
}

fn endpoint(endpoint: &Endpoint, metrics: &MetricsSnapshot) -> Value {
    let (kind, address) = match endpoint.target {
        Target::Local(address) => ("local", address),
        Target::Node(address) => ("node", address),
    };
    json!({
        "uid": endpoint.uid,
        "node": endpoint.node.as_ref(),
        "id": endpoint.id.as_ref(),
        "version": endpoint.version.as_ref(),
        "target": kind,
        "address": address.to_string(),
        "weight": endpoint.weight,
        "region": endpoint.region.as_ref(),
        "zone": endpoint.zone.as_ref(),
        "health": match endpoint.health {
            Health::Healthy => "healthy",
            Health::Unknown => "unknown",
            Health::Unhealthy => "unhealthy",
            Health::Draining => "draining",
        },
        "ejected_by_workers": metrics.ejected_by(endpoint.uid),
    })
}

fn instances(sources: &Sources) -> Value {
    let (_, views) = sources.agent.views();
    let all: Vec<_> = views
        .iter()
        .map(|(key, view)| {
            json!({
                "instance": key.to_string(),
                "address": view.address.to_string(),
                "health": match view.health {
                    OwnHealth::Healthy => "healthy",
                    OwnHealth::Draining => "draining",
                    OwnHealth::Unknown => "unknown",
                    OwnHealth::Unhealthy | OwnHealth::Unspecified => "unhealthy",
                },
                "reason": view.reason,
                "schema_sha256": view.schema.as_ref().map(|s| s.sha256.as_str()),
            })
        })
        .collect();
    json!(all)
}
