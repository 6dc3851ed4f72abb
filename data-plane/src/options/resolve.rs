//! Turns words into [`Options`]. Every fault is collected and reported with the option's name, the word that was typed
//! and the remedy. Nothing is bound or created here.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, UdpSocket},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use heddle_options::parse_duration;
use heddle_proto::rules::is_dns_label;

use crate::{
    agent::key::full_name,
    xds::{demand::Prefetch, translate::split_name},
};

use super::{
    Options, RawOptions,
    listeners::{advertise, check_exposure, inbound, listeners, sockets},
};

/// All faults of a command line, one line each.
#[derive(Debug, PartialEq, Eq)]
pub struct OptionsError(pub Vec<String>);

impl fmt::Display for OptionsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for OptionsError {}

/// The lower bound of `--service-idle`: with less, a service would be dropped between two calls.
const SHORTEST_SERVICE_IDLE: Duration = Duration::from_secs(1);

/// The upper bound: more connections to one address cost more than they gain.
const MOST_UPSTREAM_CONNECTIONS: u16 = 1024;
/// The lower bound: a shorter wait would fail calls while their connection is just being opened.
const SHORTEST_PENDING_TIMEOUT: Duration = Duration::from_millis(100);
/// The upper bound: no caller waits longer.
const LONGEST_PENDING_TIMEOUT: Duration = Duration::from_secs(3600);

impl RawOptions {
    /// Checks and resolves everything.
    ///
    /// # Errors
    /// All faults at once.
    pub fn resolve(self) -> Result<Options, OptionsError> {
        let given = given(&self);
        let mut faults = Vec::new();
        let host = host_name();
        let node = match &self.node {
            Some(node) if is_dns_label(node) => node.clone(),
            Some(node) => {
                faults.push(format!(
                    "--node \"{node}\" is not a DNS label: use a-z, 0-9 and '-', at most 63 \
                     characters, not starting or ending with '-'"
                ));
                String::new()
            }
            None => label_from(&host),
        };
        let mut own_names: Vec<String> = vec![node.clone(), host.to_ascii_lowercase()];
        for name in &self.own_name {
            let name_ok = !name.is_empty() && name.split('.').all(is_dns_label);
            if name_ok {
                own_names.push(name.clone());
            } else {
                faults.push(format!(
                    "--own-name \"{name}\" is not a host name: use labels of a-z, 0-9 and '-' \
                     joined by dots"
                ));
            }
        }
        own_names.sort();
        own_names.dedup();
        let control = control(&self.control, &mut faults);
        let outbound = listeners("--outbound", &self.outbound, &mut faults);
        let inbound = inbound(&self, &mut faults);
        let agent = listeners("--agent", &self.agent, &mut faults);
        let admin = listeners("--admin", &self.admin, &mut faults);
        // Nothing is bound for these yet, but an invalid address is reported now, not by the version that binds it.
        let dns = listeners("--dns", &self.dns, &mut faults);
        listeners("--gateway", &self.gateway, &mut faults);
        let mut warnings = check_exposure(
            &self,
            &[
                (
                    "--outbound",
                    &outbound,
                    "can call every service of the mesh as this node",
                ),
                (
                    "--agent",
                    &agent,
                    "can register and remove instances of this node",
                ),
                ("--admin", &admin, "can read the state of this node"),
                ("--dns", &dns, "can look up the names of the mesh"),
            ],
            &mut faults,
        );
        warnings.extend(not_served(&self));
        let advertise = self
            .advertise
            .as_deref()
            .and_then(|word| advertise(word, &mut faults));
        let host = self
            .advertise
            .as_deref()
            .and_then(|word| word.rsplit_once(':'))
            .map(|(host, _)| host.to_owned());
        let host_names = own_names.iter().cloned().chain(host).collect();
        let (region, zone) = locality(self.locality.as_deref(), &mut faults);
        let drain_timeout = parse_duration(&self.drain_timeout).unwrap_or_else(|| {
            faults.push(format!(
                "--drain-timeout \"{}\" is not a duration: write for example 60s, 500ms or 2m",
                self.drain_timeout
            ));
            Duration::ZERO
        });
        let upstream_connections = upstream_connections(self.upstream_connections, &mut faults);
        let pending_timeout = pending_timeout(&self.pending_timeout, &mut faults);
        let prefetch = prefetch(&self.prefetch, &mut faults);
        let service_idle = service_idle(&self.service_idle, &mut faults);
        let workers = workers(self.workers, &mut faults);
        for (name, dir) in [
            ("--state-dir", &self.state_dir),
            ("--services-dir", &self.services_dir),
        ] {
            if dir.as_ref().is_some_and(|dir| dir.as_os_str().is_empty()) {
                faults.push(format!("{name} is empty: give a path or leave it out"));
            }
        }
        if !faults.is_empty() {
            return Err(OptionsError(faults));
        }
        Ok(Options {
            node,
            own_names,
            control,
            state_dir: self.state_dir,
            workers,
            outbound: sockets(&outbound),
            inbound,
            agent,
            admin,
            outbound_connections: self.outbound_connections,
            inbound_connections: self.inbound_connections,
            agent_connections: self.agent_connections,
            admin_connections: self.admin_connections,
            host_names,
            warnings,
            advertise,
            region,
            zone,
            drain_timeout,
            upstream_connections,
            pending_timeout,
            prefetch,
            service_idle,
            services_dir: self.services_dir,
            insecure_inbound: self.insecure_inbound,
            given,
        })
    }
}

fn control(words: &[String], faults: &mut Vec<String>) -> Vec<String> {
    let mut urls = Vec::new();
    for word in words {
        if word == "none" || word.is_empty() {
            continue;
        }
        let url = if word.contains("://") {
            word.clone()
        } else {
            format!("http://{word}")
        };
        let fault = match http::Uri::from_str(&url) {
            Err(error) => Some(error.to_string()),
            Ok(uri) if uri.scheme_str() == Some("https") => {
                Some("https comes with identity in a later version: use http".to_owned())
            }
            Ok(uri) if uri.scheme_str() != Some("http") => Some("only http is known".to_owned()),
            Ok(uri) if uri.host().is_none_or(str::is_empty) => Some("it has no host".to_owned()),
            Ok(uri) if uri.port_u16().is_none() => {
                Some("it has no port (the control plane's is 15010)".to_owned())
            }
            Ok(_) => None,
        };
        match fault {
            None => urls.push(url),
            Some(why) => faults.push(format!(
                "--control \"{word}\": {why}; write for example http://127.0.0.1:15010"
            )),
        }
    }
    urls.dedup();
    urls
}

fn locality(word: Option<&str>, faults: &mut Vec<String>) -> (String, String) {
    let Some(word) = word.filter(|word| !word.is_empty()) else {
        return (String::new(), String::new());
    };
    let mut parts = word.splitn(2, '/');
    let region = parts.next().unwrap_or_default();
    let zone = parts.next().unwrap_or_default();
    let bad = |part: &str| {
        part.len() > 63
            || part
                .chars()
                .any(|c| c == '/' || c.is_control() || c.is_whitespace())
    };
    if region.is_empty() || bad(region) || bad(zone) {
        faults.push(format!(
            "--locality \"{word}\" is not REGION/ZONE: write for example eu/eu-1 (or eu alone)"
        ));
    }
    (region.to_owned(), zone.to_owned())
}

fn prefetch(words: &[String], faults: &mut Vec<String>) -> Prefetch {
    let mut names = BTreeSet::new();
    let words: Vec<&String> = words.iter().filter(|word| !word.is_empty()).collect();
    if words.iter().any(|word| *word == "all") {
        return Prefetch::All;
    }
    for word in words {
        let name = full_name(word.strip_suffix(".mesh").unwrap_or(word));
        match split_name(&name) {
            Ok(_) => drop(names.insert(name)),
            Err(_) => faults.push(format!(
                "--prefetch \"{word}\" is not a service name: write users, users.shop (its \
                 namespace after the dot), or all"
            )),
        }
    }
    match names.is_empty() {
        true => Prefetch::None,
        false => Prefetch::Named(names),
    }
}

fn service_idle(word: &str, faults: &mut Vec<String>) -> Duration {
    match parse_duration(word) {
        Some(idle) if idle >= SHORTEST_SERVICE_IDLE => idle,
        Some(_) => {
            faults.push(format!(
                "--service-idle \"{word}\" is too short: use at least {SHORTEST_SERVICE_IDLE:?}, \
                 or the endpoints of a service would be dropped between two calls"
            ));
            SHORTEST_SERVICE_IDLE
        }
        None => {
            faults.push(format!(
                "--service-idle \"{word}\" is not a duration: write for example 1h, 30m or 90s"
            ));
            SHORTEST_SERVICE_IDLE
        }
    }
}

fn upstream_connections(given: u16, faults: &mut Vec<String>) -> usize {
    if !(1..=MOST_UPSTREAM_CONNECTIONS).contains(&given) {
        faults.push(format!(
            "--upstream-connections {given} is out of range: use 1 to {MOST_UPSTREAM_CONNECTIONS}"
        ));
    }
    usize::from(given)
}

fn pending_timeout(word: &str, faults: &mut Vec<String>) -> Duration {
    let fault = match parse_duration(word) {
        Some(wait) if wait < SHORTEST_PENDING_TIMEOUT => format!(
            "is too short: use at least {SHORTEST_PENDING_TIMEOUT:?}, or calls fail while a connection is being opened"
        ),
        Some(wait) if wait > LONGEST_PENDING_TIMEOUT => "is too long: use at most 1h".to_owned(),
        Some(wait) => return wait,
        None => "is not a duration: write for example 5s, 500ms or 1m".to_owned(),
    };
    faults.push(format!("--pending-timeout \"{word}\" {fault}"));
    Duration::ZERO
}

fn workers(given: Option<u16>, faults: &mut Vec<String>) -> usize {
    match given {
        Some(n) if (1..=64).contains(&n) => usize::from(n),
        Some(n) => {
            faults.push(format!("--workers {n} is out of range: use 1 to 64"));
            1
        }
        // The standard library reads the CPU quota of the cgroup.
        None => std::thread::available_parallelism().map_or(1, |n| n.get().min(4)),
    }
}

/// Whether `ip` is an address of this host: only such an address can be bound.
#[must_use]
pub fn is_own_address(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && UdpSocket::bind((ip, 0)).is_ok()
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// A DNS label made from a host name: its first part, lower case, other characters as `-`.
fn label_from(host: &str) -> String {
    let first = host.split('.').next().unwrap_or_default();
    let label: String = first
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(63)
        .collect();
    let label = label.trim_matches('-').to_owned();
    if label.is_empty() {
        "node".to_owned()
    } else {
        label
    }
}

/// A warning for each option that was given and that this version accepts without effect.
fn not_served(raw: &RawOptions) -> Vec<String> {
    let listeners = [
        ("--dns", &raw.dns, "DNS"),
        ("--gateway", &raw.gateway, "gateway"),
    ];
    let listeners = listeners
        .into_iter()
        .filter(|(_, given, _)| !given.is_empty());
    let unbound = listeners.map(|(option, given, what)| {
        let given = given.join(", ");
        format!("{option} {given}: this version has no {what}, nothing listens there; leave it out")
    });
    let others = [
        ("--gateway-expose", !raw.gateway_expose.is_empty()),
        ("--gateway-origin", !raw.gateway_origin.is_empty()),
        (
            "--gateway-trusted-proxy",
            !raw.gateway_trusted_proxy.is_empty(),
        ),
        ("--gateway-docs", raw.gateway_docs.is_some()),
        ("--gateway-errors", raw.gateway_errors.is_some()),
        ("--gateway-name", raw.gateway_name.is_some()),
    ];
    let others = others.into_iter().filter(|(_, given)| *given);
    let idle = others.map(|(option, _)| {
        format!("{option} has no effect: this version has no gateway; leave it out")
    });
    unbound.chain(idle).collect()
}

/// The options for `/config`, without those that this version accepts without effect.
fn given(raw: &RawOptions) -> Vec<(&'static str, String)> {
    let path = |path: &Option<PathBuf>| {
        path.as_ref()
            .map_or_else(String::new, |p| p.display().to_string())
    };
    vec![
        ("node", raw.node.clone().unwrap_or_default()),
        (
            "control",
            raw.control
                .iter()
                .map(|url| without_secret(url))
                .collect::<Vec<_>>()
                .join(","),
        ),
        ("state-dir", path(&raw.state_dir)),
        (
            "workers",
            raw.workers.map_or_else(String::new, |n| n.to_string()),
        ),
        ("outbound", raw.outbound.join(",")),
        ("inbound", raw.inbound.join(",")),
        ("insecure-inbound", raw.insecure_inbound.to_string()),
        ("agent", raw.agent.join(",")),
        ("admin", raw.admin.join(",")),
        ("insecure-listen", raw.insecure_listen.join(",")),
        ("outbound-connections", raw.outbound_connections.to_string()),
        ("inbound-connections", raw.inbound_connections.to_string()),
        ("agent-connections", raw.agent_connections.to_string()),
        ("admin-connections", raw.admin_connections.to_string()),
        ("advertise", raw.advertise.clone().unwrap_or_default()),
        ("locality", raw.locality.clone().unwrap_or_default()),
        ("own-name", raw.own_name.join(",")),
        ("drain-timeout", raw.drain_timeout.clone()),
        ("upstream-connections", raw.upstream_connections.to_string()),
        ("pending-timeout", raw.pending_timeout.clone()),
        ("prefetch", raw.prefetch.join(",")),
        ("service-idle", raw.service_idle.clone()),
        ("services-dir", path(&raw.services_dir)),
    ]
}

/// The URL with its user information, if any, replaced by `***`.
fn without_secret(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.split_once('@') {
        Some((_, host)) => format!("{scheme}://***@{host}"),
        None => url.to_owned(),
    }
}
