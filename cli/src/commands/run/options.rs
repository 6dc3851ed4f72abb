//! The options of `heddle run` as typed, and the checked plan.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use bytes::Bytes;
use heddle_options::parse_duration;
use heddle_proto::{
    registry::v1::{HealthCheck, Instance, Protocol, health_check::Kind},
    rules::{MAX_PROTO_NAME, is_proto_name},
};
use heddle_proxy::agent::{descriptor_file, removal::MAX_FINISH};
use heddle_sdk::proxy_url;

/// Run any program as an instance of a service; it must listen on $PORT
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle run", disable_version_flag = true)]
pub(crate) struct Options {
    /// The mesh name to register
    #[arg(long, value_name = "NAME")]
    service: String,
    /// The namespace of the service
    #[arg(long, value_name = "NS", default_value = "default")]
    namespace: String,
    /// The version to register
    #[arg(long, value_name = "V", default_value = "v1")]
    version: String,
    /// The name of this instance, unique on its node [default: the service's name and 8 random characters]
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// The protocol of the program
    #[arg(long, value_name = "PROTOCOL", value_parser = ["grpc", "http"], default_value = "grpc")]
    protocol: String,
    /// The program's share of calls relative to the other instances of the service
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    weight: u32,
    /// A proto service that the program serves, in addition to those that its server reflection lists; repeatable
    #[arg(long, value_name = "PACKAGE.SERVICE")]
    proto: Vec<String>,
    /// Descriptors of the program's proto services if it has no server reflection: the output of protoc --include_imports
    /// --descriptor_set_out=FILE or of buf build -o FILE
    #[arg(long, value_name = "FILE")]
    descriptors: Option<PathBuf>,
    /// Claim no paths: the program is called by its service's name only, for example as a canary of another service
    #[arg(long)]
    no_paths: bool,
    /// How the agent checks the program: auto (grpc if it answers gRPC health checks, else tcp), tcp, grpc, grpc:SERVICE,
    /// http, http:/PATH, keep-alive or none
    #[arg(long, value_name = "CHECK", default_value = "auto")]
    health: String,
    /// The port that the program listens on, given to it as $PORT; 0: a free one at each start
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// When to restart the program after it has ended: on-failure, always or never
    #[arg(long, value_name = "WHEN", value_enum, default_value = "on-failure")]
    restart: Restart,
    /// On SIGTERM the program leaves the mesh: how long its calls in flight may then take before the program gets SIGTERM,
    /// and how long it may take after that before it is killed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = stop_timeout)]
    stop_timeout: Duration,
    /// The agent of this node: http://HOST:PORT or unix:/path; the program gets it as $HEDDLE_AGENT, and as HOST:PORT (or
    /// unix:/path) in $HEDDLE_AGENT_ADDR
    #[arg(
        long,
        value_name = "URL",
        env = "HEDDLE_AGENT",
        default_value = "http://127.0.0.1:15002"
    )]
    agent: String,
    /// Where the program sends its calls: http://HOST:PORT or unix:/path; the program gets it as $HEDDLE_OUTBOUND, and as
    /// HOST:PORT (or unix:/path) in $HEDDLE_OUTBOUND_ADDR
    #[arg(
        long,
        value_name = "URL",
        env = "HEDDLE_OUTBOUND",
        default_value = "http://127.0.0.1:15001"
    )]
    outbound: String,
    /// The program and its arguments; $PORT in an argument becomes the port
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Restart {
    OnFailure,
    Always,
    Never,
}

/// What is run, and how it is registered.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    /// Everything but the address, which each start chooses.
    pub(crate) instance: Instance,
    /// Its descriptor set; empty if none was given.
    pub(crate) descriptors: Bytes,
    pub(crate) port: u16,
    pub(crate) agent: String,
    pub(crate) outbound: String,
    pub(crate) restart: Restart,
    pub(crate) stop_timeout: Duration,
}

impl Options {
    /// The plan, or the first fault in one line.
    pub(crate) fn plan(self) -> Result<Plan, String> {
        let health = health(&self.health)?;
        let protocol = if self.protocol == "http" {
            Protocol::Http
        } else {
            Protocol::Grpc
        };
        let id = self.instance.unwrap_or_else(|| fresh_id(&self.service));
        for (flag, name) in [
            ("--service", &self.service),
            ("--namespace", &self.namespace),
            ("--instance", &id),
        ] {
            if !is_label(name) {
                return Err(format!(
                    "{flag} \"{name}\": use at most 63 characters of a-z, 0-9 and \"-\", not \
                     starting or ending with \"-\""
                ));
            }
        }
        for name in &self.proto {
            if !is_proto_name(name) {
                return Err(format!(
                    "--proto \"{name}\": is not the full name of a proto service: write its \
                     package and name, for example --proto shop.v1.Users (at most \
                     {MAX_PROTO_NAME} characters)"
                ));
            }
        }
        let descriptors = match &self.descriptors {
            Some(_) if protocol == Protocol::Http => {
                return Err(
                    "--descriptors is for gRPC only: remove it, or use --protocol grpc".to_owned(),
                );
            }
            Some(file) => descriptor_file::read(file)
                .map(|schema| schema.bytes)
                .map_err(|why| format!("--descriptors: {why}"))?,
            None => Bytes::new(),
        };
        let mut words = self.command.into_iter();
        let Some(program) = words.next() else {
            return Err("no command is given: write it after --".to_owned());
        };
        Ok(Plan {
            program,
            args: words.collect(),
            instance: Instance {
                service: self.service,
                namespace: self.namespace,
                id,
                version: self.version,
                protocol: protocol.into(),
                weight: self.weight,
                protos: self.proto,
                health: Some(health),
                claim_paths: self.no_paths.then_some(false),
                ..Instance::default()
            },
            descriptors,
            port: self.port,
            agent: url("--agent", &self.agent)?,
            outbound: url("--outbound", &self.outbound)?,
            restart: self.restart,
            stop_timeout: self.stop_timeout,
        })
    }
}

/// Whether it is a DNS label, as the agent requires: checked here before the program is started in vain.
fn is_label(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn fresh_id(service: &str) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let start: String = service.chars().take(54).collect();
    let (short, _) = random.split_at(8);
    format!("{}-{short}", start.trim_end_matches('-'))
}

fn stop_timeout(word: &str) -> Result<Duration, String> {
    parse_duration(word)
        .filter(|duration| *duration <= MAX_FINISH)
        .ok_or_else(|| "give a duration of at most 1h, for example 500ms, 10s or 2m".to_owned())
}

fn url(flag: &str, given: &str) -> Result<String, String> {
    proxy_url(given).map_err(|why| format!("{flag} \"{given}\": {why}"))
}

fn health(word: &str) -> Result<HealthCheck, String> {
    let (kind, detail) = word.split_once(':').unwrap_or((word, ""));
    let check = |kind: Kind| HealthCheck {
        kind: kind.into(),
        ..HealthCheck::default()
    };
    match (kind, detail) {
        ("auto", "") => Ok(check(Kind::Auto)),
        ("tcp", "") => Ok(check(Kind::Tcp)),
        ("none", "") => Ok(check(Kind::None)),
        ("keep-alive", "") => Ok(check(Kind::KeepAlive)),
        ("grpc", service) => Ok(HealthCheck {
            grpc_service: service.to_owned(),
            ..check(Kind::Grpc)
        }),
        ("http", path) if path.is_empty() || path.starts_with('/') => Ok(HealthCheck {
            path: path.to_owned(),
            ..check(Kind::Http)
        }),
        _ => Err(format!(
            "--health \"{word}\" is not a kind of health check: use auto, tcp, grpc, \
             grpc:SERVICE, http, http:/PATH, keep-alive or none"
        )),
    }
}
