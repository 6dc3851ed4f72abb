//! `heddle edges [SERVICE]`: which client calls which service, as the clients report it.

use std::{ffi::OsString, process::ExitCode};

use heddle_proto::status::v1::{self as wire, ListEdgesRequest};
use serde::Serialize;

use super::{ViewOptions, missing, show};
use crate::output::{Table, Tabular};

/// Show which service calls which: rate, success and latency, as reported by proxies, Envoys and gRPC clients
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle edges", version, after_help = crate::exit::HELP)]
struct Options {
    /// Only calls to this service: users, or users.shop with its namespace
    service: Option<String>,
    #[command(flatten)]
    view: ViewOptions,
}

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_EDGES", args);
    heddle_options::init_logging("warn");
    let service = options.service.unwrap_or_default();
    show(&options.view, async |control| {
        let mut mesh = control.mesh.clone();
        control
            .answer(mesh.list_edges(ListEdgesRequest { service }))
            .await
            .map(Edges::from)
    })
}

#[derive(Debug, Serialize)]
struct Edges {
    edges: Vec<Edge>,
    unanswered: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Edge {
    caller: String,
    role: String,
    service: String,
    locality: String,
    requests_per_second: f64,
    success_ratio: f64,
    in_progress: u64,
    latency_ms: f64,
    dropped: u64,
    interval_seconds: f64,
}

impl From<wire::ListEdgesResponse> for Edges {
    fn from(answer: wire::ListEdgesResponse) -> Self {
        let edge = |edge: wire::Edge| Edge {
            caller: edge.caller,
            role: edge.role,
            service: edge.service,
            locality: edge.locality,
            requests_per_second: edge.requests_per_second,
            success_ratio: edge.success_ratio,
            in_progress: edge.in_progress,
            latency_ms: edge.latency_ms,
            dropped: edge.dropped,
            interval_seconds: edge.interval_seconds,
        };
        Self {
            edges: answer.edges.into_iter().map(edge).collect(),
            unanswered: answer.unanswered,
        }
    }
}

impl Tabular for Edges {
    fn table(&self) -> String {
        let mut table = Table::new(&[
            "CALLER",
            "ROLE",
            "SERVICE",
            "LOCALITY",
            "CALLS/S",
            "SUCCESS",
            "LATENCY",
            "IN PROGRESS",
            "DROPPED",
        ]);
        for edge in &self.edges {
            table.row(vec![
                edge.caller.clone(),
                edge.role.clone(),
                edge.service.clone(),
                edge.locality.clone(),
                format!("{:.1}", edge.requests_per_second),
                // Rounded down: 100 % means that no call failed.
                format!("{:.2} %", (edge.success_ratio * 10_000.0).floor() / 100.0),
                if edge.latency_ms > 0.0 {
                    format!("{:.2} ms", edge.latency_ms)
                } else {
                    String::new()
                },
                edge.in_progress.to_string(),
                edge.dropped.to_string(),
            ]);
        }
        format!("{table}{}", missing(&self.unanswered, "edges"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Edges, wire};
    use crate::output::{Format, render};

    #[test]
    fn an_edge_says_who_calls_whom_and_how_it_goes() {
        let edge = wire::Edge {
            caller: "node-a".into(),
            role: "proxy".into(),
            service: "users.default".into(),
            locality: "eu/a".into(),
            requests_per_second: 12.34,
            success_ratio: 0.999_999,
            in_progress: 3,
            latency_ms: 1.234,
            dropped: 0,
            interval_seconds: 10.0,
        };
        let stock = wire::Edge {
            caller: "stock".into(),
            role: "grpc-go".into(),
            locality: String::new(),
            latency_ms: 0.0,
            success_ratio: 1.0,
            ..edge.clone()
        };
        let answer = Edges::from(wire::ListEdgesResponse {
            edges: vec![edge, stock],
            unanswered: vec!["r2".into(), "r3".into()],
        });
        assert_eq!(
            render(Format::Table, &answer).unwrap(),
            "CALLER  ROLE     SERVICE        LOCALITY  CALLS/S  SUCCESS   LATENCY  IN PROGRESS  DROPPED\n\
             node-a  proxy    users.default  eu/a      12.3     99.99 %   1.23 ms  3            0\n\
             stock   grpc-go  users.default  -         12.3     100.00 %  -        3            0\n\
             \n\
             did not answer: r2, r3 (their edges are missing here)\n"
        );
        let json: serde_json::Value =
            serde_json::from_str(&render(Format::Json, &answer).unwrap()).unwrap();
        assert_eq!(json["edges"][0]["in_progress"], 3);
        assert_eq!(json["unanswered"][1], "r3");
    }
}
