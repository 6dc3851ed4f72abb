//! Keeps one part running: reports when it is ready, shows its last lines when it dies, restarts it with the same
//! addresses, and gives up when it dies before it was ready or dies too often. Input: a part. Output: events.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    process::ExitStatus,
    time::{Duration, Instant},
};

use heddle_pacing::Backoff;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    child::Process,
    plan::{Part, Ready},
};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// If a part dies this often within [`EXIT_WINDOW`], a restart does not help.
const MAX_EXITS: usize = 5;
const EXIT_WINDOW: Duration = Duration::from_secs(60);
/// How long the remaining output of a dead process is read.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_millis(500);

/// What happened to a part.
#[derive(Debug)]
pub(super) enum Event {
    Line {
        part: String,
        line: String,
    },
    Exited {
        part: String,
        how: String,
        last_lines: Vec<String>,
        again_in: Duration,
    },
    Back {
        part: String,
    },
    GaveUp {
        why: String,
    },
    Killed {
        part: String,
    },
}

/// The state of a part.
#[derive(Clone, Debug)]
pub(super) enum State {
    Starting,
    Ready(Ready),
    GaveUp(String),
}

/// What all parts share.
#[derive(Clone, Debug)]
pub(super) struct Environment {
    pub(super) program: PathBuf,
    pub(super) events: mpsc::Sender<Event>,
    /// The temporary folder, which an orphaned control plane removes.
    pub(super) leftover: Option<PathBuf>,
    /// Ends the wait between SIGTERM and SIGKILL.
    pub(super) hurry: CancellationToken,
}

pub(super) struct Supervised {
    readiness: Readiness,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Supervised {
    pub(super) fn start(part: Part, environment: Environment) -> Self {
        let (sender, state) = watch::channel(State::Starting);
        let stop = CancellationToken::new();
        let keeper = Supervisor {
            part,
            environment,
            state: sender,
            stop: stop.clone(),
            exits: VecDeque::new(),
        };
        let task = tokio::spawn(keeper.keep());
        Self {
            readiness: Readiness { state },
            stop,
            task,
        }
    }

    pub(super) fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Stops it; [`Supervised::stopped`] waits for the end.
    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) async fn stopped(self) {
        let _ = self.task.await;
    }
}

/// Waits for a part to be ready, independently of the part itself.
#[derive(Clone, Debug)]
pub(super) struct Readiness {
    state: watch::Receiver<State>,
}

impl Readiness {
    /// The part's addresses once it is ready, or why it never will be.
    pub(super) async fn ready(mut self) -> Result<Ready, String> {
        match self
            .state
            .wait_for(|state| !matches!(state, State::Starting))
            .await
            .as_deref()
        {
            Ok(State::Ready(ready)) => Ok(ready.clone()),
            Ok(State::GaveUp(why)) => Err(why.clone()),
            Ok(State::Starting) | Err(_) => {
                Err("a process was stopped before it was ready".to_owned())
            }
        }
    }
}

enum End {
    Stop,
    Exited(io::Result<ExitStatus>),
}

struct Supervisor {
    part: Part,
    environment: Environment,
    state: watch::Sender<State>,
    stop: CancellationToken,
    exits: VecDeque<Instant>,
}

impl Supervisor {
    async fn keep(mut self) {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            let mut process = match self.spawn() {
                Ok(process) => process,
                Err(why) => {
                    return self
                        .give_up(format!("cannot start {}: {why}", self.part.name))
                        .await;
                }
            };
            let end = self.handle_output(&mut process).await;
            let status = match end {
                End::Stop => return self.end(process).await,
                End::Exited(status) => status,
            };
            let _ = timeout(LAST_OUTPUT_TIMEOUT, async {
                while process.line().await.is_some() {}
            })
            .await;
            let how = match status {
                Ok(status) => status.to_string(),
                Err(why) => why.to_string(),
            };
            let last_lines = process.last_lines();
            if let Some(why) = self.gives_up(&how, &last_lines) {
                return self.give_up(why).await;
            }
            let part = self.part.name.clone();
            let pause = backoff.fail_exact();
            self.send(Event::Exited {
                part,
                how,
                last_lines,
                again_in: pause,
            })
            .await;
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn spawn(&self) -> io::Result<Process> {
        let settled = match &*self.state.borrow() {
            State::Ready(ready) => Some(ready.clone()),
            State::Starting | State::GaveUp(_) => None,
        };
        let line = self.part.line(settled.as_ref());
        Process::start(
            &self.environment.program,
            &line,
            self.environment.leftover.as_deref(),
        )
    }

    /// Handles the output until the process ends or is stopped.
    async fn handle_output(&mut self, process: &mut Process) -> End {
        loop {
            let line = tokio::select! {
                line = process.line() => line,
                () = self.stop.cancelled() => return End::Stop,
            };
            let Some(line) = line else {
                return tokio::select! {
                    status = process.ended() => End::Exited(status),
                    () = self.stop.cancelled() => End::Stop,
                };
            };
            if let Some(ready) = Ready::read(&line) {
                let first = matches!(*self.state.borrow(), State::Starting);
                self.state.send_replace(State::Ready(ready));
                if !first {
                    self.send(Event::Back {
                        part: self.part.name.clone(),
                    })
                    .await;
                }
            }
            self.send(Event::Line {
                part: self.part.name.clone(),
                line,
            })
            .await;
        }
    }

    async fn end(&self, process: Process) {
        if !process
            .stop(self.part.grace, self.environment.hurry.cancelled())
            .await
        {
            self.send(Event::Killed {
                part: self.part.name.clone(),
            })
            .await;
        }
    }

    /// The reason not to restart the part, if there is one.
    fn gives_up(&mut self, how: &str, last_lines: &[String]) -> Option<String> {
        let name = &self.part.name;
        let output = match last_lines {
            [] => "it printed nothing".to_owned(),
            lines => format!("it printed: {}", lines.join(" | ")),
        };
        if matches!(*self.state.borrow(), State::Starting) {
            return Some(format!(
                "{name} ended ({how}) before it was ready; {output}"
            ));
        }
        let now = Instant::now();
        self.exits.push_back(now);
        self.exits
            .retain(|&at| now.duration_since(at) < EXIT_WINDOW);
        (self.exits.len() >= MAX_EXITS).then(|| {
            format!(
                "{name} ended {MAX_EXITS} times within {} s, last with {how}; {output}",
                EXIT_WINDOW.as_secs()
            )
        })
    }

    async fn give_up(&self, why: String) {
        self.state.send_replace(State::GaveUp(why.clone()));
        self.send(Event::GaveUp { why }).await;
    }

    async fn send(&self, event: Event) {
        let _ = self.environment.events.send(event).await;
    }
}
