//! One run of the program. It has its own process group, so that Ctrl-C reaches it only after it has left the mesh, and
//! a signal also reaches its child processes. A watchdog ends it if this process is killed, and the kernel ends the program
//! itself if both are. Input: a port and signals. Output: how it ended.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{sleep, timeout},
};

#[cfg(target_os = "linux")]
use super::death_signal;
use super::options::Plan;
use crate::watchdog::{self, WatchedGroup};

/// How often a program that does not listen yet is probed.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// When a program that does not listen yet is logged (issue 10, E3: within 2 s of its start).
const HINT_AFTER: Duration = Duration::from_millis(1500);

pub(super) struct Program {
    child: Child,
    group: Option<Pid>,
    watchdog: Option<Watchdog>,
    pub(super) address: SocketAddr,
}

/// The process that ends the program's group if this one is killed. Dropping it ends the watch.
struct Watchdog(std::process::Child);

impl Watchdog {
    /// Started before the program, to keep the time without a watchdog short. Without one the program still runs.
    fn start() -> Option<Self> {
        let started = std::env::current_exe().and_then(|this| {
            std::process::Command::new(this)
                .arg(watchdog::FLAG)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // So that Ctrl-C does not reach it.
                .process_group(0)
                .spawn()
        });
        match started {
            Ok(child) => Some(Self(child)),
            Err(why) => {
                tracing::warn!(
                    "cannot make sure that the program ends if this process is killed: {why}"
                );
                None
            }
        }
    }

    fn guard(&mut self, ward: WatchedGroup) {
        if let Some(stdin) = &mut self.0.stdin
            && let Err(why) = stdin.write_all(ward.line().as_bytes())
        {
            tracing::warn!(
                "cannot make sure that the program ends if this process is killed: {why}"
            );
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    /// Starts the command with $PORT and the node's addresses set.
    pub(super) async fn start(plan: &Plan) -> Result<Self, String> {
        let port = match plan.port {
            0 => free_port()
                .await
                .map_err(|why| format!("no free port: {why}"))?,
            port => port,
        };
        let mut watchdog = Watchdog::start();
        let mut command = Command::new(&plan.program);
        #[cfg(target_os = "linux")]
        death_signal::ends_with_this_process(&mut command);
        let child = command
            .args(plan.args.iter().map(|arg| with_port(arg, port)))
            .env("PORT", port.to_string())
            .env("HEDDLE_OUTBOUND", &plan.outbound)
            .env("HEDDLE_OUTBOUND_ADDR", address_of(&plan.outbound))
            .env("HEDDLE_AGENT", &plan.agent)
            .env("HEDDLE_AGENT_ADDR", address_of(&plan.agent))
            .env("HEDDLE_SERVICE", &plan.instance.service)
            .env("HEDDLE_NAMESPACE", &plan.instance.namespace)
            .env("HEDDLE_INSTANCE", &plan.instance.id)
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|why| format!("cannot start {}: {why}", plan.program.to_string_lossy()))?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let (Some(watchdog), Some(group)) = (&mut watchdog, group) {
            watchdog.guard(WatchedGroup {
                group,
                grace: plan.stop_timeout,
            });
        }
        Ok(Self {
            child,
            group,
            watchdog,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        })
    }

    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Sends SIGTERM, then SIGKILL after `grace` or when `hurry` ends.
    pub(super) async fn stop(
        &mut self,
        grace: Duration,
        hurry: impl Future<Output = ()>,
    ) -> io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        tokio::select! {
            ended = self.child.wait() => return ended,
            () = sleep(grace) => tracing::warn!("the program did not end within {grace:?} of SIGTERM: killed"),
            () = hurry => {}
        }
        self.signal(Signal::KILL);
        self.child.wait().await
    }

    /// Ends the child processes that the program left behind.
    pub(super) fn sweep(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It is fine if the group has already ended.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.child.id().is_some() {
            self.sweep();
        }
        // Only after the group has ended: until then the watchdog may have to end it.
        drop(self.watchdog.take());
    }
}

/// Replaces `$PORT` and `${PORT}` in an argument, for programs that take their port only there; no shell is needed.
pub(super) fn with_port(arg: &OsStr, port: u16) -> OsString {
    let Some(text) = arg.to_str().filter(|text| text.contains("PORT")) else {
        return arg.to_owned();
    };
    let braced = text.replace("${PORT}", &port.to_string());
    let mut parts = braced.split("$PORT");
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        // `$PORTS` is another variable.
        if part.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_') {
            whole.push_str("$PORT");
        } else {
            whole.push_str(&port.to_string());
        }
        whole.push_str(part);
    }
    whole.into()
}

/// The `HOST:PORT` of a URL, which many clients take as their target. A `unix:` address is one already.
pub(super) fn address_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    match url.starts_with("unix:") {
        true => url,
        false => rest.split(['/', '?', '#']).next().unwrap_or(rest),
    }
}

/// Returns once something accepts connections on `address`; logs a hint if that takes long.
pub(super) async fn listening(address: SocketAddr) {
    let probe = async {
        while TcpStream::connect(address).await.is_err() {
            sleep(PROBE_EVERY).await;
        }
    };
    let mut probe = std::pin::pin!(probe);
    if timeout(HINT_AFTER, &mut probe).await.is_err() {
        tracing::warn!(
            "nothing listens on {address} yet, {HINT_AFTER:?} after the start: the program must \
             listen on the port in $PORT ({}), on 127.0.0.1 or on all addresses; if it takes its \
             port as an argument, write '$PORT' in the command; if its port is fixed, give it \
             with --port. It joins the mesh as soon as it listens",
            address.port()
        );
        probe.await;
    }
}

/// The exit code that a shell would give: the program's own, or 128 plus the signal.
pub(super) fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Fails if another process has the port: that process would pass every check and get this service's calls.
pub(super) async fn is_free(port: u16) -> Result<(), String> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Err(why) if why.kind() == io::ErrorKind::AddrInUse => Err(format!(
            "--port {port} is in use: stop the process that has it, or choose another port (0 takes a free one)"
        )),
        // The program itself reports any other problem with it.
        _ => Ok(()),
    }
}

async fn free_port() -> io::Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await?
        .local_addr()
        .map(|address| address.port())
}
