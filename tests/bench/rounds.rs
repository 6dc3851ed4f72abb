//! The rounds: every peer once in every shape, one directly after the other, so that a ratio compares measurements of
//! the same moment. CPU time comes from the kernel's accounting.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::load::Load;
use crate::options::{Compare, Peer, Shape};
use crate::peers::{self, LOAD_CORE, Running};

/// The warm-up before each measurement, so that connections, tables and caches are in a steady state.
const WARM_UP: Duration = Duration::from_millis(60);

/// One measurement of one peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    pub(crate) calls_per_second: f64,
    /// CPU time of the peer per call, in µs; NaN for `direct`.
    pub(crate) cpu: f64,
    /// The part of its core that the peer used; NaN for `direct`.
    pub(crate) share: f64,
    /// In µs.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// All measurements of one shape, by round and peer.
pub(crate) struct Measured {
    pub(crate) shape: Shape,
    pub(crate) peers: Vec<Peer>,
    pub(crate) rounds: Vec<Vec<Measure>>,
}

const PINNED: &str = "BENCH_PINNED";

/// Pins this process, which makes the load, to its core by restarting it with taskset.
pub(crate) fn pin_self() -> anyhow::Result<()> {
    if std::env::var_os(PINNED).is_some() {
        return Ok(());
    }
    let cores = std::thread::available_parallelism()?;
    if cores.get() < 2 {
        bail!("the benchmark needs two cores: proxies on one, load and backends on the other");
    }
    let mut again = std::process::Command::new("taskset");
    again
        .args(["-c", LOAD_CORE])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1));
    Err(again.env(PINNED, "1").exec()).context("cannot start taskset (package util-linux)")
}

pub(crate) fn run(options: &Compare) -> anyhow::Result<Vec<Measured>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (_backends, addresses) = runtime.block_on(peers::backends())?;
    let mut running = Vec::new();
    for peer in &options.peers {
        running.push(runtime.block_on(peers::start(*peer, &addresses))?);
    }
    let mut measured: Vec<Measured> = options
        .shapes
        .iter()
        .map(|shape| Measured {
            shape: *shape,
            peers: options.peers.clone(),
            rounds: Vec::new(),
        })
        .collect();
    for round in 0..options.rounds {
        eprintln!("round {} of {}", round + 1, options.rounds);
        for shape in &mut measured {
            let mut row = Vec::new();
            for at in 0..running.len() {
                // The order rotates, so that another peer is first in each round.
                row.push((at + round) % running.len());
            }
            let mut measures = vec![None; running.len()];
            for at in row {
                let peer = &running[at];
                let measure = measure(peer, shape.shape, options.window);
                measures[at] =
                    Some(measure.with_context(|| format!("{} at {}", peer.peer, shape.shape))?);
            }
            shape.rounds.push(measures.into_iter().flatten().collect());
        }
    }
    Ok(measured)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "counts of calls and nanoseconds are far below 2^52"
)]
fn measure(running: &Running, shape: Shape, window: Duration) -> anyhow::Result<Measure> {
    let mut load = Load::start(running.address, shape)?;
    load.run_for(WARM_UP)?;
    let pid = running
        .process
        .as_ref()
        .map(heddle_tests::process::Process::pid);
    let before = pid.map(cpu_time).transpose()?;
    let sample = load.run_for(window)?;
    let after = pid.map(cpu_time).transpose()?;
    let used = match (before, after) {
        (Some(before), Some(after)) => after.saturating_sub(before).as_secs_f64(),
        _ => f64::NAN,
    };
    load.finish()?;
    let calls = sample.latencies.len();
    let at = |part: usize| {
        sample
            .latencies
            .get(calls * part / 100)
            .map_or(f64::NAN, |time| micros(*time))
    };
    Ok(Measure {
        calls_per_second: calls as f64 / sample.elapsed.as_secs_f64(),
        cpu: used * 1e6 / calls as f64,
        share: used / sample.elapsed.as_secs_f64(),
        p50: at(50),
        p99: at(99),
    })
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// The CPU time that all threads of a process have used.
pub(crate) fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanoseconds = 0;
    let tasks = format!("/proc/{pid}/task");
    for task in std::fs::read_dir(&tasks)
        .with_context(|| format!("cannot read {tasks}; has the peer died?"))?
    {
        // A thread may end between the two reads.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        let spent = text.split_whitespace().next().unwrap_or_default();
        nanoseconds += spent
            .parse::<u64>()
            .with_context(|| format!("schedstat of {pid} reads {text:?}"))?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}
