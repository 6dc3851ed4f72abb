//! The allowed dependencies between modules, read from the sources: `crate::` and `super::` paths outside of tests
//! (`sources`), and calls of methods if several modules have methods of one type (`methods`). A table per crate, or per
//! module with parts, lists its modules from the bottom up; a module uses only modules that are above it in the table.
//! Exceptions are listed by name, and an exception that is no longer needed fails the test.

mod methods;
mod sources;

use std::collections::BTreeSet;

use heddle_tests::tools::root;

use sources::uses;

/// The modules of one crate, or of one module of it.
struct Layers {
    /// Where its sources are.
    src: &'static str,
    /// The module of the crate that these are in; empty: the crate itself.
    within: &'static [&'static str],
    /// Each module and what it may use, from the bottom up. `lib.rs` and `main.rs` may use everything.
    modules: &'static [(&'static str, &'static [&'static str])],
    /// A type of this module whose methods are in several of its parts: a call of a method is a use of the part that has
    /// it.
    owner: Option<&'static str>,
    /// Uses that are allowed although they point upward or are not in the table: circles that are still to go.
    exceptions: &'static [(&'static str, &'static str)],
}

const DATA_PLANE: Layers = Layers {
    src: "data-plane/src",
    within: &[],
    modules: &[
        // The path of calls, and what it stands on.
        ("control_urls", &[]),
        ("state_dir", &[]),
        ("readiness", &[]),
        ("arena", &[]),
        ("keys", &["arena"]),
        ("timers", &["keys"]),
        ("caller", &["keys"]),
        ("failure", &[]),
        ("policy", &[]),
        ("settings", &["policy"]),
        ("balance", &[]),
        ("route", &["caller", "policy", "balance"]),
        ("observe", &["caller"]),
        (
            "connection",
            &["arena", "keys", "timers", "caller", "policy"],
        ),
        ("link", &["failure", "connection"]),
        (
            "upstream",
            &[
                "arena",
                "keys",
                "timers",
                "caller",
                "policy",
                "settings",
                "balance",
                "observe",
                "connection",
            ],
        ),
        (
            "exchange",
            &[
                "arena",
                "keys",
                "timers",
                "caller",
                "failure",
                "policy",
                "settings",
                "balance",
                "route",
                "observe",
                "connection",
                "link",
                "upstream",
            ],
        ),
        ("listener", &["caller", "connection"]),
        (
            "worker",
            &[
                "arena",
                "keys",
                "timers",
                "caller",
                "failure",
                "settings",
                "route",
                "observe",
                "connection",
                "exchange",
                "listener",
            ],
        ),
        // The control side.
        ("agent", &["control_urls", "state_dir"]),
        (
            "xds",
            &[
                "control_urls",
                "state_dir",
                "balance",
                "route",
                "observe",
                "worker",
                "agent",
            ],
        ),
        ("mesh", &["balance", "route", "agent", "xds"]),
        (
            "admin",
            &[
                "readiness",
                "balance",
                "route",
                "observe",
                "worker",
                "agent",
                "xds",
                "mesh",
            ],
        ),
        ("options", &["agent", "xds", "admin"]),
        (
            "app",
            &[
                "state_dir",
                "readiness",
                "listener",
                "worker",
                "agent",
                "xds",
                "mesh",
                "admin",
                "options",
            ],
        ),
    ],
    owner: None,
    exceptions: &[],
};

const CONTROL_PLANE: Layers = Layers {
    src: "control-plane/src",
    within: &[],
    modules: &[
        ("names", &[]),
        ("store", &[]),
        ("budget", &[]),
        ("access", &["budget"]),
        // The way of an endpoint update.
        ("registry", &["names", "store"]),
        ("snapshot", &["names", "store", "registry"]),
        (
            "session",
            &["names", "store", "budget", "access", "registry"],
        ),
        (
            "xds",
            &[
                "names", "store", "budget", "access", "registry", "snapshot", "session",
            ],
        ),
        // What people and tools ask.
        ("load", &["names", "budget", "access", "registry", "xds"]),
        (
            "replica",
            &[
                "names", "store", "registry", "snapshot", "session", "xds", "load",
            ],
        ),
        (
            "status",
            &["names", "registry", "snapshot", "xds", "load", "replica"],
        ),
        // The process.
        (
            "plane",
            &[
                "budget", "registry", "snapshot", "session", "xds", "load", "replica", "status",
            ],
        ),
        ("grpc", &["budget", "access"]),
        (
            "http",
            &["budget", "access", "registry", "snapshot", "load", "plane"],
        ),
        ("options", &["names", "store", "budget", "grpc", "http"]),
        (
            "app",
            &[
                "store", "budget", "access", "registry", "snapshot", "xds", "load", "replica",
                "plane", "grpc", "http", "options",
            ],
        ),
    ],
    owner: None,
    exceptions: &[],
};

const REGISTRY: Layers = Layers {
    src: "control-plane/src/registry",
    within: &["registry"],
    modules: &[
        ("wall_clock", &[]),
        ("options", &["wall_clock"]),
        ("model", &[]),
        ("view", &["model"]),
        ("core", &["options", "model", "view"]),
        ("lease", &["options", "model", "view", "core"]),
        ("membership", &["options", "model", "view", "core"]),
        (
            "leader",
            &["options", "model", "view", "core", "lease", "membership"],
        ),
        ("start", &["options", "core", "membership", "leader"]),
    ],
    owner: None,
    exceptions: &[],
};

/// The way of a call, from the bottom up. All parts from `owner` up have methods of `Exchange`.
const EXCHANGE: Layers = Layers {
    src: "data-plane/src/exchange",
    within: &["exchange"],
    modules: &[
        // What a call is, and what calls share.
        ("headers", &[]),
        ("call", &[]),
        ("answer", &["call"]),
        ("admission", &[]),
        ("endpoint_requests", &[]),
        (
            "owner",
            &["call", "answer", "admission", "endpoint_requests"],
        ),
        ("accounting", &["call", "owner"]),
        // Ends of attempts and calls.
        ("detach", &["call", "owner", "accounting"]),
        (
            "finish",
            &["call", "answer", "owner", "accounting", "detach"],
        ),
        // Attempts, and the connections that they need.
        (
            "attempt",
            &[
                "headers",
                "call",
                "admission",
                "owner",
                "accounting",
                "detach",
                "finish",
            ],
        ),
        ("connect", &["owner", "detach", "attempt"]),
        (
            "close",
            &["call", "owner", "detach", "finish", "attempt", "connect"],
        ),
        (
            "output",
            &["call", "owner", "accounting", "finish", "close"],
        ),
        // What servers and callers send.
        (
            "response",
            &[
                "headers",
                "call",
                "answer",
                "owner",
                "accounting",
                "detach",
                "finish",
                "attempt",
                "output",
            ],
        ),
        (
            "request",
            &[
                "headers",
                "call",
                "answer",
                "owner",
                "accounting",
                "detach",
                "finish",
                "attempt",
                "close",
            ],
        ),
        (
            "events",
            &[
                "call", "owner", "detach", "finish", "connect", "close", "output", "response",
                "request",
            ],
        ),
        (
            "turn",
            &[
                "call", "owner", "detach", "finish", "attempt", "close", "output", "request",
                "events",
            ],
        ),
    ],
    owner: Some("Exchange"),
    exceptions: &[],
};

/// Issue 10, F1.
#[test]
fn the_modules_of_the_data_plane_point_one_way() {
    check(&DATA_PLANE);
    check(&EXCHANGE);
}

/// Issue 10, F6.
#[test]
fn the_modules_of_the_control_plane_point_one_way() {
    check(&CONTROL_PLANE);
    check(&REGISTRY);
}

fn check(layers: &Layers) {
    let mut faults = Vec::new();
    for (at, (name, may)) in layers.modules.iter().enumerate() {
        let below = layers.modules.get(..at).unwrap();
        for used in *may {
            if !below.iter().any(|(other, _)| other == used) {
                faults.push(format!(
                    "the table lets {name} use {used}, which does not stand before it"
                ));
            }
        }
    }
    let src = root().join(layers.src);
    let mut found = uses(&src, layers.within);
    if let Some(owner) = layers.owner {
        methods::add_calls(&src, owner, &mut found);
    }
    let mut needed = BTreeSet::new();
    for (name, used) in &found {
        let Some((_, may)) = layers.modules.iter().find(|(other, _)| other == name) else {
            faults.push(format!("{name} is not in the table"));
            continue;
        };
        for (other, place) in used {
            if may.contains(&other.as_str()) {
                continue;
            }
            let exception = layers
                .exceptions
                .iter()
                .find(|e| **e == (name.as_str(), other.as_str()));
            match exception {
                Some(exception) => drop(needed.insert(exception)),
                None => faults.push(format!("{name} may not use {other}: {place}")),
            }
        }
    }
    let unneeded = layers.exceptions.iter().filter(|e| !needed.contains(e));
    faults.extend(unneeded.map(|(name, other)| {
        format!("{name} does not use {other} any more: take the exception out")
    }));
    assert!(faults.is_empty(), "in {}: {faults:#?}", layers.src);
}
