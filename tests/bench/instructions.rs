//! Instructions per call, which unlike times do not vary on a virtual machine. heddle-proxy runs under callgrind twice
//! with different numbers of calls; the difference excludes start-up and shutdown.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::load::Load;
use crate::options::{Instructions, Shape};
use crate::peers;

/// Under callgrind everything takes about fifty times as long.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn run(options: &Instructions) -> anyhow::Result<()> {
    ensure!(
        options.long > options.short,
        "--long must be more than --short"
    );
    println!("{:<12} {:>20}", "shape", "instructions/call");
    for shape in &options.shapes {
        let short = count(*shape, options.short, None)?;
        let profile = options
            .profiles
            .as_ref()
            .map(|folder| folder.join(format!("callgrind.{shape}")));
        let long = count(*shape, options.long, profile.as_deref())?;
        let calls = (options.long - options.short) as u64;
        println!("{:<12} {:>20}", shape.to_string(), (long - short) / calls);
    }
    Ok(())
}

/// All user instructions of a heddle-proxy that serves this many calls.
fn count(shape: Shape, calls: usize, profile: Option<&Path>) -> anyhow::Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (_backends, addresses) = peers::backends().await?;
        let out = profile.unwrap_or(Path::new("/dev/null")).display();
        let valgrind = [
            "valgrind".to_string(),
            "--tool=callgrind".to_string(),
            format!("--callgrind-out-file={out}"),
        ];
        let mut running = peers::heddle(&valgrind, &addresses).await?;
        let mut load = Load::start(running.address, shape)?;
        load.run_calls(calls)?;
        load.finish()?;
        let mut process = running.process.take().context("it is a process")?;
        process.signal("TERM");
        process.exit_within(STOP_TIMEOUT).await;
        let output = process.output();
        let line = output.lines().find(|line| line.contains("Collected"));
        let number = line.and_then(|line| line.rsplit(':').next()).map(str::trim);
        number
            .and_then(|text| text.parse().ok())
            .with_context(|| format!("callgrind counted nothing:\n{output}"))
    })
}
