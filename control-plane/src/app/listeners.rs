//! The sockets of the process: which addresses need consent, how many connections each may have, and how they are bound
//! and opened. The protocols on them are not known here.

use heddle_listen::{
    Bound, Guard, InsecureListeners, ListenOption, Socket,
    files::{ConnectionLimit, within_files},
};

use super::{AppError, addresses::host_name};
use crate::options::Options;

/// What anyone who reaches a listener can do: callers are not authenticated yet.
const GRPC_RISK: &str = "can register instances, watch the mesh and act as any node";
const HTTP_RISK: &str = "can read the state of the mesh";

/// Refuses listeners beyond loopback that the operator has not named, and warns of those that are named.
pub(super) fn check_exposure(options: &Options) -> Result<(), AppError> {
    let mut consent = InsecureListeners::new(options.insecure_listen.iter().cloned());
    let grpc = options.listen.iter().map(|at| ("--listen", at, GRPC_RISK));
    let http = options.http.iter().map(|at| ("--http", at, HTTP_RISK));
    let all: Vec<_> = grpc.chain(http).collect();
    for (option, address, risk) in &all {
        consent
            .check(option, address, risk)
            .map_err(AppError::Exposed)?;
    }
    consent.unused().map_err(AppError::Exposed)?;
    for (option, address, risk) in all {
        if let Some(warning) = InsecureListeners::warning(option, address, risk) {
            tracing::warn!("{warning}");
        }
    }
    Ok(())
}

/// Reduces the limits of connections to the process's limit of open files; returns a message to log after the start.
pub(super) fn bound_by_files(options: &mut Options) -> Option<String> {
    let files = heddle_options::raise_file_limit()?;
    let limits = [options.listen_connections, options.http_connections];
    let limits = limits.map(|bound| ConnectionLimit { bound, times: 1 });
    let bounds = within_files(usize::try_from(files).unwrap_or(usize::MAX), &limits);
    let &[grpc, http] = &bounds[..] else {
        return None;
    };
    let reduced = grpc < options.listen_connections || http < options.http_connections;
    (options.listen_connections, options.http_connections) = (grpc, http);
    reduced.then(|| {
        format!(
            "the limit of open files (ulimit -Hn) is {files}, too low for the configured \
             connection limits: they are reduced to {grpc} on --listen and {http} on --http"
        )
    })
}

/// Binds every address of one option.
pub(super) fn bind(
    option: &'static str,
    addresses: &[ListenOption],
) -> Result<Vec<Bound>, AppError> {
    let mut all = Vec::new();
    for address in addresses {
        let bound = heddle_listen::bind(address).map_err(|source| AppError::Listen {
            option,
            address: address.clone(),
            source,
        })?;
        all.extend(bound);
    }
    Ok(all)
}

/// Opens what was bound.
pub(super) fn open(option: &'static str, bound: Vec<Bound>) -> Result<Vec<Socket>, AppError> {
    let opened = bound.into_iter().map(|bound| {
        let address = ListenOption::At(bound.address());
        bound.listen().map_err(|source| AppError::Listen {
            option,
            address,
            source,
        })
    });
    opened.collect()
}

/// The sockets for the ready line: the real addresses, joined with "+".
pub(super) fn joined(sockets: &[Socket]) -> String {
    let addresses: Vec<String> = sockets.iter().map(ToString::to_string).collect();
    addresses.join("+")
}

/// The names by which other hosts address this process.
pub(super) fn guard(options: &Options) -> Guard {
    let advertised = options.advertise.as_deref().and_then(|advertise| {
        let (host, _) = advertise.rsplit_once(':')?;
        Some(host.to_owned())
    });
    let names = options.own_name.iter().cloned();
    Guard::new(names.chain([host_name()]).chain(advertised))
}
