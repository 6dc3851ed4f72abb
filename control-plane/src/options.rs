//! The options of heddle-control and their meaning. Text becomes typed values, or an error that says what is wrong.
//! Routes and policies are not options: they belong into the store.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use heddle_listen::ListenOption;

use crate::{
    budget::parse_memory,
    names::keys,
    store::{etcd_prefix, etcd_urls},
};

/// Longest name of a replica: enough for a host name and a port.
const MAX_REPLICA: usize = 128;

/// Heddle's control plane: registry, xDS (ADS) and status of the mesh
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle-control", version)]
pub struct Options {
    /// Where to serve gRPC (registry, node sessions, xDS, status, health, reflection): IP:PORT (port 0: a free one),
    /// localhost:PORT (127.0.0.1 and ::1) or unix:/path; repeatable
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15010")]
    pub listen: Vec<ListenOption>,

    /// Where to serve HTTP (/metrics, /healthz, /readyz); like --listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    pub http: Vec<ListenOption>,

    /// Allows this address of --listen or --http although it is not a loopback address and callers are not authenticated
    /// yet; repeatable
    #[arg(long, value_name = "ADDR")]
    pub insecure_listen: Vec<ListenOption>,

    /// A further host name that HTTP clients may use for this process in `Host`, besides its addresses, localhost, the
    /// host's name and --advertise; repeatable
    #[arg(long, value_name = "NAME")]
    pub own_name: Vec<String>,

    /// Maximum connections on --listen; at the limit, the connection that has been idle longest is closed for a new one
    #[arg(long, value_name = "N", default_value_t = crate::grpc::CONNECTIONS)]
    pub listen_connections: usize,

    /// Maximum connections on --http; like --listen-connections
    #[arg(long, value_name = "N", default_value_t = crate::http::CONNECTIONS)]
    pub http_connections: usize,

    /// Where the state of the mesh is stored: embedded:PATH, a durable file, created if missing; `embedded` alone means
    /// $XDG_STATE_HOME/heddle/control.redb, else ~/.local/state/heddle/control.redb, else ./heddle-data/control.redb;
    /// or etcd:URL[,URL…], the members of an etcd (http or https; the scheme may be left out after the first), for any
    /// number of control planes
    #[arg(long, value_name = "STORE", default_value = "embedded")]
    pub store: StoreOption,

    /// Prefix of every key in etcd, so that several meshes and other programs can share it
    #[arg(long, value_name = "PREFIX", default_value = "heddle/", value_parser = etcd_prefix)]
    pub store_prefix: String,

    /// Certificate authorities (PEM) for etcd's certificate; required with https
    #[arg(long, value_name = "FILE")]
    pub store_ca: Option<PathBuf>,

    /// Client certificate (PEM) for etcd; requires --store-key
    #[arg(long, value_name = "FILE")]
    pub store_cert: Option<PathBuf>,

    /// Private key (PEM) of --store-cert
    #[arg(long, value_name = "FILE")]
    pub store_key: Option<PathBuf>,

    /// User name for etcd; requires --store-password-file
    #[arg(long, value_name = "NAME")]
    pub store_user: Option<String>,

    /// File with the password of --store-user and nothing else
    #[arg(long, value_name = "FILE")]
    pub store_password_file: Option<PathBuf>,

    /// Name of this replica, shown in status, unique among the replicas of a store [default: the host's name; with etcd
    /// the host's name and the port of --listen]
    #[arg(long, value_name = "NAME", value_parser = parse_replica)]
    pub replica: Option<String>,

    /// Address at which the other replicas reach this one's gRPC [default: the first address of --listen; if that is unspecified,
    /// this host's own address with its port]
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_advertise)]
    pub advertise: Option<String>,

    /// Limit of the memory that clients hold here: connections, requests until they are handled, responses until they are
    /// read, streams and their subscriptions. One peer (an IPv4 address or an IPv6 /64) gets at most 80 % of it, and one
    /// connection 76 %; requests beyond that fail with RESOURCE_EXHAUSTED. At least 128MiB [default: half of the
    /// machine's memory, or of its cgroup's limit]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory)]
    pub client_memory: Option<usize>,

    /// How long a node may be silent before its lease expires and its instances are removed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_time)]
    pub lease_ttl: Duration,

    /// How often a node renews its lease
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_time)]
    pub renew_interval: Duration,

    /// How often xDS clients report their load (LRS), which `heddle edges` shows
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_time)]
    pub load_report_interval: Duration,
}

/// A replica's name is part of keys in the store.
fn parse_replica(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.is_empty() || text.len() > MAX_REPLICA || !text.bytes().all(fits) {
        return Err(format!(
            "must be 1 to {MAX_REPLICA} letters, digits, '-', '_' or '.'"
        ));
    }
    if keys::is_reserved(text) {
        return Err("is reserved: choose another name".to_owned());
    }
    Ok(text.to_owned())
}

/// "host:port"; a host that other replicas can resolve.
fn parse_advertise(text: &str) -> Result<String, String> {
    let wrong = || "must be HOST:PORT, for example 10.0.0.5:15010 or [fd00::5]:15010".to_owned();
    let uri: http::Uri = format!("http://{text}").parse().map_err(|_| wrong())?;
    let port = uri.port_u16().filter(|port| *port != 0).ok_or_else(wrong)?;
    let host = uri.host().filter(|host| !host.is_empty());
    let canonical = host.map(|host| format!("{host}:{port}"));
    if canonical.as_deref() != Some(text) {
        return Err(wrong());
    }
    let nobody = |address: SocketAddr| address.ip().is_unspecified() || address.ip().is_multicast();
    if text.parse().is_ok_and(nobody) {
        // A replica that dials it reaches itself, and would take its own clients for those of this one.
        return Err(format!("{text} is not the address of one host"));
    }
    Ok(text.to_owned())
}

/// The store to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreOption {
    /// A file that only this process uses.
    Embedded(PathBuf),
    /// The members of an etcd, as scheme://host:port.
    Etcd(Vec<String>),
}

impl FromStr for StoreOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (engine, rest) = text.split_once(':').unwrap_or((text, ""));
        match (engine, rest) {
            ("embedded", "") => Ok(Self::Embedded(default_store(
                env::var_os("XDG_STATE_HOME"),
                env::var_os("HOME"),
            ))),
            ("embedded", path) => Ok(Self::Embedded(path.into())),
            ("etcd", urls) => etcd_urls(urls).map(Self::Etcd),
            _ => Err(
                "must be embedded:PATH, for example embedded:/var/lib/heddle/control.redb, or etcd:URL,…"
                    .to_owned(),
            ),
        }
    }
}

fn default_store(state: Option<std::ffi::OsString>, home: Option<std::ffi::OsString>) -> PathBuf {
    let absolute = |text: Option<std::ffi::OsString>| {
        text.map(PathBuf::from).filter(|path| path.is_absolute())
    };
    match (absolute(state), absolute(home)) {
        (Some(state), _) => state.join("heddle/control.redb"),
        (None, Some(home)) => home.join(".local/state/heddle/control.redb"),
        (None, None) => Path::new("heddle-data/control.redb").to_owned(),
    }
}

/// "500ms", "10s", "5m"; at least 100 ms, at most a day.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
    let number: Option<u64> = digits.parse().ok();
    let unit = text.get(digits.len()..).unwrap_or_default();
    let time = match (number, unit) {
        (Some(number), "ms") => Some(Duration::from_millis(number)),
        (Some(number), "s") => Some(Duration::from_secs(number)),
        (Some(number), "m") => Some(Duration::from_secs(number.saturating_mul(60))),
        _ => None,
    };
    let bounds = Duration::from_millis(100)..=Duration::from_secs(86_400);
    time.filter(|time| bounds.contains(time))
        .ok_or_else(|| "must be a time such as 500ms, 10s or 5m, from 100ms to a day".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_read() {
        let read = |text: &str| text.parse::<StoreOption>();
        let embedded = StoreOption::Embedded("/x/y".into());
        assert_eq!(read("embedded:/x/y"), Ok(embedded));
        let etcd = ["http://h1:2379", "http://h2:2379"].map(str::to_owned);
        let etcd = StoreOption::Etcd(etcd.to_vec());
        assert_eq!(read("etcd:http://h1:2379,h2:2379"), Ok(etcd));
        assert!(read("etcd:h1:2379").unwrap_err().contains("http://"));
        assert!(read("/x/y").unwrap_err().contains("embedded:PATH"));
        let of = |state: Option<&str>, home: Option<&str>| {
            default_store(state.map(Into::into), home.map(Into::into))
                .display()
                .to_string()
        };
        assert_eq!(of(Some("/s"), Some("/h")), "/s/heddle/control.redb");
        assert_eq!(
            of(Some("relative"), Some("/h")),
            "/h/.local/state/heddle/control.redb"
        );
        assert_eq!(of(None, None), "heddle-data/control.redb");
    }

    #[test]
    fn names_and_addresses_of_replicas_are_read() {
        for name in ["c1", "host.example-15010", "A_b"] {
            assert_eq!(parse_replica(name).as_deref(), Ok(name));
        }
        for name in ["", "a/b", "a b", &"x".repeat(MAX_REPLICA + 1)] {
            assert!(parse_replica(name).is_err(), "{name}");
        }
        for there in ["10.0.0.5:15010", "control-1.mesh:80", "[fd00::5]:15010"] {
            assert_eq!(parse_advertise(there).as_deref(), Ok(there));
        }
        for there in [
            "10.0.0.5",
            "host:0",
            ":15010",
            "http://a:1",
            "a:1/x",
            "u@a:1",
            "a:x",
        ] {
            assert!(parse_advertise(there).is_err(), "{there}");
        }
    }

    #[test]
    fn an_address_that_means_every_host_is_no_replicas() {
        for there in ["0.0.0.0:15010", "[::]:15010", "224.0.0.1:15010"] {
            let error = parse_advertise(there).unwrap_err();
            assert!(error.contains("not the address of one host"), "{error}");
        }
    }

    #[test]
    fn times_are_read() {
        assert_eq!(parse_time("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_time("2m"), Ok(Duration::from_secs(120)));
        for wrong in [
            "",
            "10",
            "s",
            "1ms",
            "-1s",
            "10 s",
            "99999999999999999999s",
            "2d",
            "30000m",
        ] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
