//! Simulated connections: in order and without loss while they last, like TCP, with random latency. They stall while
//! the two ends are partitioned, and each end notices later that the connection is broken. The content of messages is
//! not used here.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    random::Random,
    replica::Replica,
    simulation::{Simulation, Who, lock},
};

/// The connect timeout of `data-plane/src/xds/mod.rs`.
const CONNECT: Duration = Duration::from_secs(2);
/// With HTTP/2 keep-alive a proxy notices a silent replica within this time, ...
const DIALER_NOTICES: Duration = Duration::from_secs(5);
/// ... and a replica notices a silent proxy (`grpc.rs`).
const REPLICA_NOTICES: Duration = Duration::from_secs(20);

/// The dialer's end.
pub(super) struct Socket<Q, A> {
    pub(super) out: mpsc::Sender<Result<Q, Status>>,
    pub(super) inn: mpsc::Receiver<Result<A, Status>>,
    /// The replica has noticed that the connection is lost.
    pub(super) lost_there: CancellationToken,
}

/// Requests as a replica takes them.
pub(super) type Requests<Q> = ReceiverStream<Result<Q, Status>>;

/// Connects `me` to a replica, which answers with `accept`.
pub(super) async fn dial<Q, A>(
    simulation: &Simulation,
    random: &mut Random,
    me: Who,
    life: &CancellationToken,
    replica: usize,
    accept: impl FnOnce(&Replica, Requests<Q>) -> ReceiverStream<Result<A, Status>>,
) -> Result<Socket<Q, A>, &'static str>
where
    Q: Send + 'static,
    A: Send + 'static,
{
    let there = Who::Replica(replica);
    sleep(simulation.latency(random, me, there)).await;
    if timeout(CONNECT, simulation.until_joined(me, there))
        .await
        .is_err()
    {
        return Err("it does not answer");
    }
    let found = lock(&simulation.replicas).get(&replica).cloned();
    let Some(found) = found else {
        return Err("connection refused");
    };
    let (out, sent) = mpsc::channel(16);
    let (deliver, inn) = mpsc::channel(16);
    let (offer, requests) = mpsc::channel(16);
    let answers = accept(&found, ReceiverStream::new(requests));
    let (here, yonder) = (CancellationToken::new(), CancellationToken::new());
    let lost_there = yonder.clone();
    let forth = Carrier {
        simulation: simulation.clone(),
        random: random.fork(),
        from: me,
        to: there,
        lost_here: yonder.clone(),
        lost_there: here.clone(),
    };
    let back = Carrier {
        simulation: simulation.clone(),
        random: random.fork(),
        from: there,
        to: me,
        lost_here: here.clone(),
        lost_there: yonder.clone(),
    };
    let carriers = [
        tokio::spawn(forth.carry(ReceiverStream::new(sent), offer)),
        tokio::spawn(back.carry(answers, deliver)),
    ];
    let [a, b] = [
        End {
            who: me,
            life: life.clone(),
            lost: here,
            notices: DIALER_NOTICES,
        },
        End {
            who: there,
            life: found.life.clone(),
            lost: yonder,
            notices: REPLICA_NOTICES,
        },
    ];
    tokio::spawn(keep_watch(
        simulation.clone(),
        [random.fork(), random.fork()],
        [a, b],
        carriers,
    ));
    Ok(Socket {
        out,
        inn,
        lost_there,
    })
}

/// One direction of a connection.
struct Carrier {
    simulation: Simulation,
    random: Random,
    from: Who,
    to: Who,
    /// The receiving end has noticed that the connection is lost.
    lost_here: CancellationToken,
    lost_there: CancellationToken,
}

impl Carrier {
    async fn carry<T: Send>(
        mut self,
        mut input: impl Stream<Item = Result<T, Status>> + Unpin,
        out: mpsc::Sender<Result<T, Status>>,
    ) {
        let moved = async {
            loop {
                let item = tokio::select! {
                    biased;
                    () = out.closed() => return,
                    item = input.next() => item,
                };
                // The end of the stream has latency too.
                sleep(
                    self.simulation
                        .latency(&mut self.random, self.from, self.to),
                )
                .await;
                self.simulation.until_passable(self.from, self.to).await;
                let Some(item) = item else { return };
                if out.send(item).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = self.lost_here.cancelled() => {
                let _ = out.try_send(Err(Status::unavailable("the connection is lost")));
            }
            () = moved => {}
        }
        drop(out);
        // That nothing reads any more takes time to reach the sender as well.
        let notice = async {
            sleep(
                self.simulation
                    .latency(&mut self.random, self.to, self.from),
            )
            .await;
            self.simulation.until_joined(self.from, self.to).await;
        };
        tokio::select! {
            biased;
            () = self.lost_there.cancelled() => {}
            () = notice => {}
        }
    }
}

/// One end of a connection.
struct End {
    who: Who,
    life: CancellationToken,
    lost: CancellationToken,
    notices: Duration,
}

/// Lets each end notice that the connection is lost: the other end died, or was silent for too long.
async fn keep_watch(
    simulation: Simulation,
    [one, two]: [Random; 2],
    [a, b]: [End; 2],
    carriers: [JoinHandle<()>; 2],
) {
    let both = async {
        tokio::join!(
            end_watch(&simulation, one, &a, &b),
            end_watch(&simulation, two, &b, &a)
        );
    };
    let [forth, back] = carriers;
    tokio::select! {
        biased;
        () = both => {}
        _ = async { tokio::join!(forth, back) } => {}
    }
}

async fn end_watch(simulation: &Simulation, mut random: Random, mine: &End, other: &End) {
    let mut silent_since = None;
    let mut dead = false;
    loop {
        let change = simulation.net_change();
        let joined = simulation.joined(mine.who, other.who);
        silent_since = match (joined, silent_since) {
            (true, _) => None,
            (false, None) => Some(Instant::now()),
            (false, since) => since,
        };
        if mine.life.is_cancelled() || (dead && joined) {
            break;
        }
        let notices = async {
            match silent_since {
                Some(since) => sleep_until(since + mine.notices).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = mine.life.cancelled() => break,
            () = other.life.cancelled(), if !dead => {
                sleep(simulation.latency(&mut random, other.who, mine.who)).await;
                dead = true;
            }
            () = change => {}
            () = notices => break,
        }
    }
    mine.lost.cancel();
}
