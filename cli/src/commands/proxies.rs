//! `heddle proxies`: every xDS client with what it has acknowledged or rejected.

use std::{ffi::OsString, process::ExitCode};

use heddle_proto::status::v1::{self as wire, ListProxiesRequest};
use serde::Serialize;

use super::{ViewOptions, missing, show};
use crate::output::{Table, Tabular};

/// List proxies and other xDS clients with what each has acknowledged or rejected
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle proxies", version, after_help = crate::exit::HELP)]
struct Options {
    #[command(flatten)]
    view: ViewOptions,
}

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_PROXIES", args);
    heddle_options::init_logging("warn");
    show(&options.view, async |control| {
        let mut mesh = control.mesh.clone();
        control
            .answer(mesh.list_proxies(ListProxiesRequest {}))
            .await
            .map(Proxies::from)
    })
}

#[derive(Debug, Serialize)]
struct Proxies {
    proxies: Vec<Proxy>,
    unanswered: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Proxy {
    node_id: String,
    role: String,
    address: String,
    variant: String,
    replica: String,
    /// Only for proxies: new with each process start.
    process_id: String,
    /// It is stopping: its calls in flight are ending.
    draining: bool,
    /// IN_SYNC, STALE or REJECTING.
    sync: String,
    /// The age of the oldest response that is not acknowledged.
    lag_seconds: f64,
    types: Vec<TypeStatus>,
}

#[derive(Debug, Serialize)]
struct TypeStatus {
    type_url: String,
    acknowledged_version: String,
    sent_version: String,
    in_flight: bool,
    wildcard: bool,
    subscribed: u32,
    resources: u32,
    rejected_version: String,
    rejected_reason: String,
    refused: Vec<Refused>,
}

#[derive(Debug, Serialize)]
struct Refused {
    name: String,
    version: String,
    reason: String,
}

impl From<wire::ListProxiesResponse> for Proxies {
    fn from(answer: wire::ListProxiesResponse) -> Self {
        let mut proxies: Vec<Proxy> = answer.proxies.into_iter().map(Proxy::from).collect();
        proxies.sort_by(|a, b| (&a.node_id, &a.address).cmp(&(&b.node_id, &b.address)));
        Self {
            proxies,
            unanswered: answer.unanswered,
        }
    }
}

impl From<wire::Proxy> for Proxy {
    fn from(proxy: wire::Proxy) -> Self {
        let sync = proxy.sync().as_str_name().to_owned();
        let mut types: Vec<TypeStatus> = proxy
            .types
            .into_iter()
            .map(|of| TypeStatus {
                type_url: of.type_url,
                acknowledged_version: of.acknowledged_version,
                sent_version: of.sent_version,
                in_flight: of.in_flight,
                wildcard: of.wildcard,
                subscribed: of.subscribed,
                resources: of.resources,
                rejected_version: of.rejected_version,
                rejected_reason: of.rejected_reason,
                refused: of.refused.into_iter().map(Refused::from).collect(),
            })
            .collect();
        types.sort_by(|a, b| a.type_url.cmp(&b.type_url));
        Self {
            node_id: proxy.node_id,
            role: proxy.role,
            address: proxy.address,
            variant: proxy.variant,
            replica: proxy.replica,
            process_id: proxy.process_id,
            draining: proxy.draining,
            sync,
            lag_seconds: proxy.lag_seconds,
            types,
        }
    }
}

impl From<wire::Refused> for Refused {
    fn from(refused: wire::Refused) -> Self {
        Self {
            name: refused.name,
            version: refused.version,
            reason: refused.reason,
        }
    }
}

impl Proxy {
    /// A readable word, for a stale client with its lag.
    fn sync(&self) -> String {
        match self.sync.as_str() {
            _ if self.draining => "DRAINING".to_owned(),
            "IN_SYNC" => "in sync".to_owned(),
            "STALE" => format!("stale for {:.0} s", self.lag_seconds),
            "REJECTING" => "rejecting".to_owned(),
            _ => String::new(),
        }
    }
}

impl TypeStatus {
    fn state(&self) -> String {
        if let Some(first) = self.refused.first() {
            let more = match self.refused.len() - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            return format!("rejects {}: {}{more}", first.name, first.reason);
        }
        if !self.rejected_version.is_empty() || !self.rejected_reason.is_empty() {
            return format!(
                "rejected {}: {}",
                self.rejected_version, self.rejected_reason
            );
        }
        if self.in_flight {
            "in flight"
        } else {
            "acknowledged"
        }
        .to_owned()
    }
}

impl Tabular for Proxies {
    fn table(&self) -> String {
        let mut table = Table::new(&[
            "CLIENT",
            "ROLE",
            "FROM",
            "REPLICA",
            "VARIANT",
            "SYNC",
            "TYPE",
            "SUBSCRIBED",
            "RECEIVED",
            "ACKNOWLEDGED",
            "STATE",
        ]);
        for proxy in &self.proxies {
            let who = [
                proxy.node_id.clone(),
                proxy.role.clone(),
                proxy.address.clone(),
                proxy.replica.clone(),
                proxy.variant.clone(),
                proxy.sync(),
            ];
            let who: Vec<String> = who.into_iter().collect();
            if proxy.types.is_empty() {
                let mut row = who.clone();
                row.extend(["", "0", "0", "", "no subscriptions"].map(str::to_owned));
                table.row(row);
            }
            for of in &proxy.types {
                let kind = of.type_url.rsplit('.').next().unwrap_or(&of.type_url);
                let mut row = who.clone();
                row.extend([
                    kind.to_owned(),
                    if of.wildcard {
                        "all".to_owned()
                    } else {
                        of.subscribed.to_string()
                    },
                    of.resources.to_string(),
                    of.acknowledged_version.clone(),
                    of.state(),
                ]);
                table.row(row);
            }
        }
        format!("{table}{}", missing(&self.unanswered, "clients"))
    }
}

#[cfg(test)]
mod tests {
    use super::{Proxies, wire};
    use crate::output::{Format, render};

    #[test]
    fn a_rejection_shows_the_clients_words() {
        let of = |kind: &str, rejected: &str| wire::TypeStatus {
            type_url: format!("type.googleapis.com/envoy.config.cluster.v3.{kind}"),
            acknowledged_version: "7/ab".into(),
            sent_version: "8/cd".into(),
            in_flight: false,
            subscribed: 2,
            wildcard: kind == "Cluster",
            resources: 3,
            rejected_version: if rejected.is_empty() {
                String::new()
            } else {
                "8/cd".into()
            },
            rejected_reason: rejected.into(),
            refused: Vec::new(),
        };
        let proxy = |node: &str, types| wire::Proxy {
            node_id: node.into(),
            role: "proxy".into(),
            address: "127.0.0.1:9".into(),
            variant: "delta".into(),
            types,
            replica: "r1".into(),
            sync: match node {
                "a" => wire::proxy::Sync::Rejecting.into(),
                "b" => wire::proxy::Sync::Stale.into(),
                _ => wire::proxy::Sync::InSync.into(),
            },
            lag_seconds: 41.5,
            process_id: "7".into(),
            draining: false,
        };
        let mut isolated = of("Route", "no such field");
        isolated.refused = ["users.default", "web.default"]
            .map(|name| wire::Refused {
                name: name.into(),
                version: "cd".into(),
                reason: "no such field".into(),
            })
            .to_vec();
        let answer = Proxies::from(wire::ListProxiesResponse {
            proxies: vec![
                proxy("c", vec![isolated]),
                proxy("b", vec![]),
                proxy("a", vec![of("Route", "no such field"), of("Cluster", "")]),
            ],
            unanswered: vec!["r2".into()],
        });
        assert_eq!(
            render(Format::Table, &answer).unwrap(),
            "CLIENT  ROLE   FROM         REPLICA  VARIANT  SYNC            TYPE     SUBSCRIBED  RECEIVED  ACKNOWLEDGED  STATE\n\
             a       proxy  127.0.0.1:9  r1       delta    rejecting       Cluster  all         3         7/ab          acknowledged\n\
             a       proxy  127.0.0.1:9  r1       delta    rejecting       Route    2           3         7/ab          rejected 8/cd: no such field\n\
             b       proxy  127.0.0.1:9  r1       delta    stale for 42 s  -        0           0         -             no subscriptions\n\
             c       proxy  127.0.0.1:9  r1       delta    in sync         Route    2           3         7/ab          rejects users.default: no such field (and 1 more)\n\
             \n\
             did not answer: r2 (their clients are missing here)\n"
        );
    }
}
