//! The event loop of one worker. One turn handles the events of sockets and the commands of other threads, runs the
//! timers that are due, then flushes each connection that has output once. Each connection is handled under
//! `catch_unwind`, so that a bug closes one connection and does not stop the proxy.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::calls_watch::CallsWatch;
use super::drain::Drain;
use super::mailbox::{Command, Shared, WorkerInit};
use super::workers::WAKER;
use super::{ConnectionInfo, Role};
use crate::arena::Key;
use crate::connection::Conn;
use crate::exchange::{Exchange, ExchangeInit};
use crate::listener::sockets::{LISTENERS, Listeners};
use crate::observe::Counter;
use crate::timers::Timer;

/// Bytes read at once: what the kernel has for a busy connection in one turn.
pub(super) const READ_BUFFER: usize = 128 * 1024;
/// Delay before work that panicked is repeated: repeated panics must not keep the worker busy.
const PANIC_PAUSE: Duration = Duration::from_secs(1);

/// Runs one worker until it gets `Command::Stop`.
pub(super) fn run(init: WorkerInit) {
    let mut worker = Worker::new(init);
    let mut events = mio::Events::with_capacity(1024);
    loop {
        match catch_unwind(AssertUnwindSafe(|| worker.turn(&mut events))) {
            Ok(true) => {}
            Ok(false) => return,
            Err(_) => worker.recover(),
        }
    }
}

/// One worker: its event loop around its calls and connections.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) shared: Arc<Shared>,
    poll: mio::Poll,
    commands: Receiver<Command>,
    pub(super) listeners: Listeners,
    pub(super) exchange: Exchange,
    pub(super) drain: Drain,
    /// Endpoints for whose last call somebody waits.
    pub(super) calls_watched: Vec<CallsWatch>,
    buffer: Vec<u8>,
}

impl Worker {
    pub(super) fn new(init: WorkerInit) -> Self {
        let WorkerInit {
            index,
            poll,
            registries: [of_connections, of_listeners],
            commands,
            shared,
        } = init;
        let metrics = match shared.handles.get(index) {
            Some(handle) => Arc::clone(&handle.metrics),
            None => Arc::default(),
        };
        let exchange = Exchange::new(ExchangeInit {
            registry: of_connections,
            options: Arc::clone(&shared.options),
            workers: shared.handles.len(),
            metrics,
            reports: shared.reports.clone(),
            internal: shared.internal.clone(),
        });
        Self {
            index,
            shared,
            poll,
            commands,
            listeners: Listeners::new(of_listeners),
            exchange,
            drain: Drain::default(),
            calls_watched: Vec::new(),
            buffer: vec![0; READ_BUFFER],
        }
    }

    /// False after `Command::Stop`.
    fn turn(&mut self, events: &mut mio::Events) -> bool {
        let wait = self.exchange.longest_wait();
        if let Err(error) = self.poll.poll(events, wait)
            && error.kind() != io::ErrorKind::Interrupted
        {
            tracing::error!(worker = self.index, %error, "cannot wait for events");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.exchange.begin_turn(Instant::now(), &mut self.buffer);
        for event in events.iter() {
            match event.token() {
                WAKER => {
                    if !self.handle_commands() {
                        return false;
                    }
                }
                token if token.0 >= LISTENERS => self.accept_from(token),
                token => {
                    let key = Key::unpack(token.0 as u64);
                    self.exchange.on_socket(key, event, &mut self.buffer);
                }
            }
        }
        while let Some(timer) = self.exchange.next_timer() {
            self.on_timer(timer);
        }
        self.exchange.flush_all();
        if !self.calls_watched.is_empty() {
            self.report_calls_watched();
        }
        if self.drain.is_on() {
            self.check_drained();
        }
        self.exchange.end_turn();
        self.publish_load();
        true
    }

    fn handle_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::ListenTcp(role, socket) => self.listen_tcp(role, socket),
                Command::ListenUnix(role, socket) => self.listen_unix(role, socket),
                Command::AcceptedTcp(role, socket) => self.take_tcp(role, socket),
                Command::AcceptedUnix(role, socket) => self.take_unix(role, socket),
                Command::Table => self.swap_table(),
                Command::Forget(services) => self.exchange.forget(&services),
                Command::WatchCalls(watch) => self.calls_watched.push(watch),
                Command::Drain => self.begin_drain(),
                Command::EndCalls => self.exchange.end_calls("received a second stop signal"),
                Command::Connections(reply) => drop(reply.try_send(self.list_connections())),
                Command::Stop => return false,
            }
        }
        true
    }

    pub(super) fn swap_table(&mut self) {
        if let Some(handle) = self.shared.handles.get(self.index) {
            self.exchange.set_table(handle.table.load_full());
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        self.exchange.on_timer(timer);
        match timer {
            Timer::Sweep => self.accept_again(),
            Timer::Drain => self.drain.on_check(),
            Timer::DrainOver => self.exchange.end_calls("its drain timeout has passed"),
            _ => {}
        }
    }

    /// Accepts what could not be accepted when the kernel reported it.
    fn accept_again(&mut self) {
        if catch_unwind(AssertUnwindSafe(|| self.accept_all())).is_err() {
            self.exchange.count(Counter::Panics);
        }
    }

    /// After a panic outside of any connection: the events of the turn are lost, and the kernel reports them only once.
    /// So everything is checked again.
    pub(super) fn recover(&mut self) {
        self.exchange.recover(PANIC_PAUSE);
        let now = self.exchange.now();
        if self.drain.is_overdue(now) {
            self.exchange.set_timer(now + PANIC_PAUSE, Timer::DrainOver);
        }
        for token in self.listeners.tokens() {
            self.listeners.watch_again(token);
        }
        self.wake();
    }

    /// Makes the next turn start at once.
    pub(super) fn wake(&self) {
        if let Some(handle) = self.shared.handles.get(self.index) {
            let _ = handle.waker.wake();
        }
    }

    fn list_connections(&self) -> Vec<ConnectionInfo> {
        let info = |conn: &Conn| ConnectionInfo {
            worker: self.index,
            kind: conn.role().map_or("upstream", Role::name),
            peer: conn.peer().to_string(),
            streams: conn.live_streams(),
        };
        self.exchange.connections().map(info).collect()
    }

    /// For the workers that choose who gets an accepted socket.
    fn publish_load(&self) {
        if let Some(handle) = self.shared.handles.get(self.index) {
            let accepted = self.exchange.accepted();
            handle.load.store(accepted, Ordering::Relaxed);
        }
    }
}
