//! Composes the proxy: what starts in which order, what is waited for, and how everything stops. Input: options.
//! Output: an exit code. One `start_*` per module; no module's work is done here.

mod predecessor;
mod proxy;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    pin::pin,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use heddle_listen::files::{ConnectionLimit, within_files};
use heddle_options::Tasks;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{health::ProxyHealth, reflection::Reflection, serve},
    agent::{
        Agent, InstanceFailure,
        keep_alive::Stop,
        removal::Remover,
        restarts, saved,
        services_dir::ServicesDir,
        session::{Identity, Session},
    },
    listener::ListenError,
    mesh::{LocalNode, Mesh, TableBuilder},
    options::{Options, OptionsError, RawOptions, is_own_address},
    readiness::{self, Readiness},
    state_dir::{StateDir, StateDirError},
    worker::{Report, Role, WorkerOptions, Workers},
    xds::{
        Callers,
        client::{ClientIdentity, Uses, XdsClient, XdsHandle},
        demand::Demand,
        last_good, load,
        resources::Resources,
        schemas::{Schemas, Wanted},
    },
};
use predecessor::Predecessor;
use proxy::{OwnListeners, Proxy};

/// The most workers' reports that wait. A report that is dropped is repeated by the next failing call, or made
/// unnecessary by the next health check.
const MAX_REPORTS: usize = 4096;

/// The whole program: `args[0]` is its name.
#[must_use]
pub fn run(args: Vec<OsString>) -> ExitCode {
    let raw: RawOptions = heddle_options::parse("HEDDLE_PROXY", args);
    heddle_options::init_logging("info");
    let options = match raw.resolve() {
        Ok(options) => options,
        Err(OptionsError(faults)) => {
            for fault in faults {
                heddle_options::fail(fault);
            }
            return ExitCode::from(2);
        }
    };
    for warning in &options.warnings {
        tracing::warn!("{warning}");
    }
    // Beats, health checks and xDS are light work: one thread beside this one is enough.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(serve(options));
            // The remaining tasks are not needed any more.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(StartError::Threads(error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => heddle_options::fail(error),
    }
}

/// Why the proxy cannot start: one line, exit code 2.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error("--{listener}: {source}")]
    Listen {
        listener: &'static str,
        source: ListenError,
    },
    #[error(
        "cannot start the worker threads: {0}; raise the limit of threads of this process, or use \
         fewer --workers"
    )]
    Threads(#[from] io::Error),
    #[error(
        "--inbound has no TCP address that other nodes could dial: give --advertise HOST:PORT, or --control none"
    )]
    Advertise,
    #[error(
        "the background task {0} ended unexpectedly, which is a bug in Heddle (see the log): this \
         process has drained and stopped so that it can be restarted"
    )]
    TaskEnded(&'static str),
}

async fn serve(mut options: Options) -> Result<(), StartError> {
    // Before the first listener opens, so that a signal is a drain from the moment anyone can reach the proxy.
    let mut stop_signal = pin!(heddle_options::terminated());
    let reduced = bound_by_files(&mut options);
    let incarnation = uuid::Uuid::new_v4().to_string();
    let revision = Arc::new(AtomicU64::new(0));
    let (readiness, _) = readiness::channel();
    let predecessor = Predecessor::new();
    let state = match &options.state_dir {
        None => None,
        Some(path) => tokio::select! {
            biased;
            () = &mut stop_signal => return Ok(()),
            opened = predecessor.released(|| Ok(StateDir::open(path)?)) => Some(opened?),
        },
    };
    let agent = Agent::new(&options.node);
    let reserved = proxy::choose_outbound_ports(&mut options);
    proxy::plan_listeners(&agent, &options);
    let tasks = Tasks::default();
    if let Some(state) = &state {
        let mut last = saved::load(state, &options.node);
        last.drop_ended().await;
        agent.restore(last);
        let (state, agent) = (state.clone(), agent.clone());
        tasks.restarted("saved-instances", move || {
            until_input_ends(saved::keep(state.clone(), agent.clone()))
        });
    }
    let swept = agent.clone();
    tasks.restarted("agent-sweep", move || until_exit(swept.clone().sweep()));
    let watched = agent.clone();
    tasks.restarted("agent-restarts", move || {
        until_exit(restarts::watch(watched.clone()))
    });

    let (schemas, wanted) = Schemas::new();
    let (workers, reports, internal) = start_workers(&options, &incarnation)?;
    let xds = start_xds(
        &options,
        &incarnation,
        state.as_ref(),
        &revision,
        wanted,
        &workers,
        &tasks,
    );
    let mesh = start_table_builder(&options, &agent, &xds, &workers, &tasks);
    let uses = xds.uses.clone();
    let reports = take_reports(reports, mesh.clone(), agent.clone(), uses.clone());
    tasks.vital(
        "worker-reports",
        until_drained(reports, readiness.subscribe()),
    );

    let stop = Stop::default();
    let health = ProxyHealth::mesh(readiness.subscribe(), mesh.clone(), uses);
    let reflection = Reflection::mesh(mesh.clone(), agent.clone(), schemas);
    let internal = serve::internal(
        internal,
        serve::common(health, reflection),
        stop.begun.clone(),
    );
    tasks.vital(
        "internal-listener",
        until_drained(internal, readiness.subscribe()),
    );

    let identity = Identity {
        node: options.node.clone(),
        process_id: incarnation.clone(),
        advertise: String::new(),
        region: options.region.clone(),
        zone: options.zone.clone(),
    };
    let (mut session, handle) =
        Session::new(agent.clone(), identity, options.control.clone(), revision);
    let calls = Arc::new(proxy::CallsOfInstances {
        workers: Arc::clone(&workers),
        mesh: mesh.clone(),
    });
    let applied = proxy::applied(mesh.clone());
    let remover = Remover::new(agent.clone(), handle.clone(), applied, calls);
    if let Some(dir) = &options.services_dir {
        let mut dir = ServicesDir::new(dir, agent.clone(), remover.clone(), is_own_address);
        dir.poll();
        tasks.vital("services-dir", until_exit(dir.run()));
    }
    let listeners = watch::Sender::new(BTreeMap::new());
    let own = OwnListeners::new(&options, stop);
    let proxy = Proxy {
        options,
        process_id: incarnation,
        state,
        agent,
        workers,
        mesh,
        xds,
        readiness,
        listeners,
        own,
        tasks: tasks.clone(),
        predecessor,
    };
    let inbound = tokio::select! {
        biased;
        () = &mut stop_signal => return Ok(()),
        opened = proxy.open_all_but_outbound(&handle, remover) => opened?,
    };
    session.set_advertise(proxy.advertise(&inbound)?);
    if let Some(reduced) = reduced {
        tracing::info!("{reduced}");
    }
    // Without a control plane the session ends at once, which is no failure.
    let alone = proxy.options.control.is_empty();
    let draining = proxy.readiness.subscribe();
    tasks.vital("node-session", async move {
        session.run().await;
        let ends = alone || matches!(*draining.borrow(), Readiness::Draining);
        (!ends).then_some(())
    });

    let routable = tokio::select! {
        biased;
        () = &mut stop_signal => false,
        _ = tasks.failed() => false,
        () = proxy.until_routable() => true,
    };
    let mut failed = None;
    drop(reserved);
    let open = routable
        && tokio::select! {
            biased;
            () = &mut stop_signal => false,
            opened = proxy.listen(Role::Outbound, &proxy.options.outbound) => opened.map(|_| true)?,
        };
    if open {
        proxy.readiness.send_replace(Readiness::Ready);
        heddle_options::ready(&proxy.ready_line());
        tokio::select! {
            biased;
            () = stop_signal => {}
            name = tasks.failed() => failed = Some(name),
        }
    }
    proxy.stop(&handle).await;
    failed.map_or(Ok(()), |name| Err(StartError::TaskEnded(name)))
}

/// A task that must run until the process ends.
async fn until_exit(work: impl Future<Output = ()>) -> Option<()> {
    work.await;
    Some(())
}

/// A task that ends when its input ends. Whoever feeds it reports that, so only its own panic is a failure.
async fn until_input_ends(work: impl Future<Output = ()>) -> Option<()> {
    work.await;
    None
}

/// A task that ends when its token is cancelled.
async fn until_stopped(work: impl Future<Output = ()>, stop: CancellationToken) -> Option<()> {
    work.await;
    (!stop.is_cancelled()).then_some(())
}

/// A task that ends with the workers, which drain when the proxy stops.
async fn until_drained(
    work: impl Future<Output = ()>,
    readiness: watch::Receiver<Readiness>,
) -> Option<()> {
    work.await;
    let stops = matches!(*readiness.borrow(), Readiness::Draining);
    (!stops).then_some(())
}

fn start_xds(
    options: &Options,
    incarnation: &str,
    state: Option<&StateDir>,
    revision: &Arc<AtomicU64>,
    wanted: mpsc::Receiver<Wanted>,
    workers: &Arc<Workers>,
    tasks: &Tasks,
) -> XdsHandle {
    let last_good = state.and_then(|state| last_good::load(state, &options.node));
    let (resources, seen) = last_good.unwrap_or((Resources::default(), 0));
    revision.store(seen, Ordering::Relaxed);
    let asker = ClientIdentity {
        node: options.node.clone(),
        process_id: incarnation.to_owned(),
        region: options.region.clone(),
        zone: options.zone.clone(),
    };
    let demand = Demand::new(
        options.prefetch.clone(),
        options.service_idle,
        Instant::now(),
    );
    let workers = Arc::clone(workers);
    let callers: Arc<dyn Callers> = workers;
    let (client, handle) = XdsClient::new(
        asker.clone(),
        options.control.clone(),
        resources,
        demand,
        Arc::clone(revision),
        wanted,
        Arc::clone(&callers),
    );
    let channel = handle.channel.clone();
    tasks.restarted("load-reports", move || {
        let (asker, callers) = (asker.clone(), Arc::clone(&callers));
        until_input_ends(load::report(asker, callers, channel.clone()))
    });
    if let Some(state) = state.cloned() {
        let (node, snapshot) = (options.node.clone(), handle.snapshot.clone());
        tasks.restarted("last-good-state", move || {
            until_input_ends(last_good::keep(
                state.clone(),
                node.clone(),
                snapshot.clone(),
            ))
        });
    }
    tasks.vital("xds-client", until_exit(client.run()));
    handle
}

type Started = (
    Arc<Workers>,
    mpsc::Receiver<Report>,
    mpsc::Receiver<std::os::unix::net::UnixStream>,
);

fn start_workers(options: &Options, incarnation: &str) -> Result<Started, StartError> {
    let (reports_in, reports) = mpsc::channel(MAX_REPORTS);
    // Each worker opens one connection, and a new one if it breaks.
    let (internal_in, internal) = mpsc::channel(options.workers * 4);
    let worker_options = WorkerOptions {
        workers: options.workers,
        node: options.node.clone(),
        incarnation: incarnation.to_owned(),
        drain_timeout: options.drain_timeout,
        own_names: options.own_names.clone(),
        outbound_connections: options.outbound_connections,
        inbound_connections: options.inbound_connections,
        upstream_connections: options.upstream_connections,
        pending_timeout: options.pending_timeout,
        ..WorkerOptions::default()
    };
    let workers = Workers::start(worker_options, reports_in, internal_in)?;
    Ok((Arc::new(workers), reports, internal))
}

/// Reduces the limits of connections to what the process's file limit allows. Returns a warning, to be logged after the
/// start.
fn bound_by_files(options: &mut Options) -> Option<String> {
    let files = heddle_options::raise_file_limit()?;
    let of = |bound, times| ConnectionLimit { bound, times };
    let limits = [
        of(options.outbound_connections, options.workers),
        of(options.inbound_connections, options.workers),
        of(options.agent_connections, 1),
        of(options.admin_connections, 1),
    ];
    let bounds = within_files(usize::try_from(files).unwrap_or(usize::MAX), &limits);
    let &[outbound, inbound, agent, admin] = &bounds[..] else {
        return None;
    };
    options.outbound_connections = outbound;
    options.inbound_connections = inbound;
    options.agent_connections = agent;
    options.admin_connections = admin;
    let mut both = limits.iter().zip(&bounds);
    both.any(|(limit, bound)| limit.bound > *bound).then(|| {
        format!(
            "the limit of open files (ulimit -Hn) is {files}, too low for the configured \
             connection limits: they are reduced to {outbound} on outbound and {inbound} on \
             inbound per worker, {agent} on agent, {admin} on admin"
        )
    })
}

fn start_table_builder(
    options: &Options,
    agent: &Agent,
    xds: &XdsHandle,
    workers: &Arc<Workers>,
    tasks: &Tasks,
) -> watch::Receiver<Mesh> {
    let local_node = LocalNode {
        node: options.node.clone(),
        own_names: options.own_names.clone(),
        region: options.region.clone(),
        zone: options.zone.clone(),
    };
    let (builder, mesh) = TableBuilder::new(local_node, agent.clone(), xds.view.clone());
    let publisher = Arc::clone(workers);
    let run = builder.run(move |table| publisher.publish(table));
    tasks.vital("routing-table", until_input_ends(run));
    mesh
}

/// Passes on the workers' reports: to the agent what they observed at this node's instances, to xDS which services are
/// called whose endpoints are unknown.
async fn take_reports(
    mut reports: mpsc::Receiver<Report>,
    mesh: watch::Receiver<Mesh>,
    agent: Agent,
    uses: Uses,
) {
    while let Some(report) = reports.recv().await {
        let (uid, failure) = match report {
            Report::ServiceWanted { service } => {
                uses.report(service);
                continue;
            }
            Report::EndpointRefused { uid } => (uid, InstanceFailure::Refused),
            Report::EndpointLost { uid } => (uid, InstanceFailure::Lost),
        };
        let key = mesh.borrow().locals.get(&uid).cloned();
        if let Some(key) = key {
            agent.report_failure(&key, failure);
        }
    }
}
