//! The plan of an instance's health check: kind, times and thresholds, with all defaults filled in. Input: an instance as
//! given. Output: the plan, or the faults of `health`. The checks themselves are in `health`.

use std::time::Duration;

use heddle_proto::{
    registry::v1::{Instance, Protocol, health_check::Kind},
    rules::MAX_PROTO_NAME,
};

use super::validate::{Faults, Origin, shown};

const MAX_PATH: usize = 1024;

/// How an instance's health is checked, with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckPlan {
    pub kind: Kind,
    pub interval: Duration,
    pub timeout: Duration,
    pub unhealthy_threshold: u32,
    pub healthy_threshold: u32,
    pub path: String,
    pub grpc_service: String,
}

impl CheckPlan {
    /// The check in use before the first one has run. `before` is what an earlier registration of the same program used:
    /// with `auto` its choice stays, because a program that does not answer just now is no reason for another one.
    #[must_use]
    pub fn checked_by(&self, before: Kind) -> Kind {
        match (self.kind, before) {
            (Kind::Auto, Kind::Grpc | Kind::Tcp) => before,
            (Kind::Auto, _) => Kind::Unspecified,
            (kind, _) => kind,
        }
    }
}

/// The plan of an instance, or `None` if it has faults.
pub(super) fn plan(instance: &Instance, origin: Origin, faults: &mut Faults) -> Option<CheckPlan> {
    let given = instance.health.clone().unwrap_or_default();
    let default_kind = match origin {
        Origin::Registration => Kind::KeepAlive,
        Origin::File => Kind::None,
    };
    let before = faults.len();
    let kind = match Kind::try_from(given.kind) {
        Ok(Kind::Unspecified) => default_kind,
        Ok(Kind::KeepAlive) if origin == Origin::File => {
            faults.add(
                "health.kind",
                "instances from a file send no keep-alive: use auto, grpc, http, tcp or none"
                    .into(),
            );
            default_kind
        }
        // A program that speaks HTTP has no gRPC health service: it is not asked.
        Ok(Kind::Auto) if instance.protocol == i32::from(Protocol::Http) => Kind::Tcp,
        Ok(kind) => kind,
        Err(_) => {
            faults.add(
                "health.kind",
                format!(
                    "{} is unknown: use auto, grpc, http, tcp or none",
                    given.kind
                ),
            );
            default_kind
        }
    };
    let interval = span(
        "health.interval",
        given.interval,
        Duration::from_secs(5),
        (Duration::from_secs(3600), "1 h"),
        faults,
    );
    let timeout = span(
        "health.timeout",
        given.timeout,
        Duration::from_secs(1),
        (Duration::from_secs(60), "1 min"),
        faults,
    );
    let path = if given.path.is_empty() {
        "/".to_owned()
    } else {
        given.path
    };
    let visible = |b: u8| b.is_ascii_graphic();
    if !path.starts_with('/') || path.len() > MAX_PATH || !path.bytes().all(visible) {
        faults.add(
            "health.path",
            format!(
                "\"{}\" is not a path: it must start with '/' and have no spaces",
                shown(&path)
            ),
        );
    }
    if !given.grpc_service.is_empty()
        && (given.grpc_service.len() > MAX_PROTO_NAME || !given.grpc_service.bytes().all(visible))
    {
        faults.add(
            "health.grpc_service",
            "use the name of a service, or leave it out for the whole server".into(),
        );
    }
    let threshold = |field: &str, given: u32, default: u32, faults: &mut Faults| {
        if given > 100 {
            faults.add(field, format!("{given} is too large: at most 100"));
        }
        if given == 0 { default } else { given }
    };
    let unhealthy_threshold = threshold(
        "health.unhealthy_threshold",
        given.unhealthy_threshold,
        2,
        faults,
    );
    let healthy_threshold = threshold(
        "health.healthy_threshold",
        given.healthy_threshold,
        1,
        faults,
    );
    (faults.len() == before).then_some(CheckPlan {
        kind,
        interval,
        timeout,
        unhealthy_threshold,
        healthy_threshold,
        path,
        grpc_service: given.grpc_service,
    })
}

fn span(
    field: &str,
    given: Option<prost_types::Duration>,
    default: Duration,
    (longest, words): (Duration, &str),
    faults: &mut Faults,
) -> Duration {
    let Some(given) = given else { return default };
    let value = Duration::try_from(given).ok();
    match value.filter(|v| (Duration::from_millis(50)..=longest).contains(v)) {
        Some(value) => value,
        None => {
            faults.add(field, format!("is out of range: 50 ms to {words}"));
            default
        }
    }
}
