//! One replica's connection to the simulated store: requests may be late or lost, or be executed only after they were
//! reported as failed.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::stream;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{Cluster, Job, MAX_VALUE_BYTES};
use crate::{
    sim::{
        invariants,
        random::{Random, hash},
        simulation::{Simulation, Who, lock},
    },
    store::{
        Changes, KeyValue, LeaseId, Range, Revision, Store, StoreCounters, StoreError, StoreFuture,
        Txn, TxnResult, Watch,
    },
};

/// The timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// One replica's connection to the store.
struct Client {
    simulation: Simulation,
    me: Who,
    life: CancellationToken,
}

/// The fate of one request.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Done,
    Lost,
    AnswerLost,
    /// Executed only after the replica got the error.
    Late,
}

impl Client {
    fn request<T: Send + 'static>(
        &self,
        what: &'static str,
        content: &[u8],
        apply: impl FnOnce(&Simulation, &mut Cluster) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let (reply, answer) = oneshot::channel();
        let (simulation, me, life) = (self.simulation.clone(), self.me, self.life.clone());
        let now = simulation.now().as_millis();
        let order = hash(simulation.seed, format!("{now} {me} {what}").as_bytes());
        let request = Request {
            me,
            order: hash(order, content),
        };
        // A request that was sent is executed even if nothing waits for it any more.
        tokio::spawn(async move {
            let done = request.run(&simulation, apply).await;
            if let Err(StoreError::Unavailable { cause }) = &done {
                simulation.log(format_args!("{me}: {what}: {cause}"));
            }
            if !life.is_cancelled() {
                let _ = reply.send(done);
            }
        });
        Box::pin(async move { answer.await.map_err(|_| StoreError::Closed)? })
    }
}

struct Request {
    me: Who,
    order: u64,
}

impl Request {
    async fn run<T: Send + 'static>(
        self,
        simulation: &Simulation,
        apply: impl FnOnce(&Simulation, &mut Cluster) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let me = self.me;
        let mut random = Random::new(self.order);
        let calm = simulation.calm.load(Ordering::Relaxed);
        let fate = if !calm && random.chance(simulation.profile.lossy) {
            random
                .pick(&[Fate::Lost, Fate::AnswerLost, Fate::Late])
                .unwrap_or(Fate::Done)
        } else {
            Fate::Done
        };
        let given_up = Instant::now() + REQUEST_TIMEOUT;
        sleep(simulation.latency(&mut random, me, Who::Store)).await;
        if fate == Fate::Lost
            || timeout_at(given_up, until_up(simulation, me))
                .await
                .is_err()
        {
            sleep_until(given_up).await;
            return Err(unavailable("no answer in time (not done)"));
        }
        if fate == Fate::Late {
            let (simulation, later) = (simulation.clone(), random.millis(10..=4000));
            tokio::spawn(async move {
                sleep_until(given_up + later).await;
                let _ = self.done(&simulation, apply).await;
            });
            sleep_until(given_up).await;
            return Err(unavailable("no answer in time (done later)"));
        }
        let result = self.done(simulation, apply).await;
        sleep(simulation.latency(&mut random, Who::Store, me)).await;
        if fate == Fate::AnswerLost
            || timeout_at(given_up, until_up(simulation, me))
                .await
                .is_err()
        {
            sleep_until(given_up).await;
            return Err(unavailable("no answer in time (done)"));
        }
        result
    }

    async fn done<T: Send + 'static>(
        &self,
        simulation: &Simulation,
        apply: impl FnOnce(&Simulation, &mut Cluster) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            at: Instant::now(),
            order: self.order,
            apply: Box::new(move |simulation, cluster| {
                let _ = reply.send(apply(simulation, cluster));
            }),
        };
        {
            let mut cluster = lock(&simulation.store);
            cluster.jobs.push(job);
            cluster.requested.notify_one();
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

async fn until_up(simulation: &Simulation, me: Who) {
    loop {
        let change = simulation.net_change();
        if lock(&simulation.store).up && simulation.joined(me, Who::Store) {
            return;
        }
        change.await;
    }
}

fn unavailable(cause: &str) -> StoreError {
    StoreError::Unavailable {
        cause: cause.to_owned(),
    }
}

impl Store for Client {
    fn engine(&self) -> &'static str {
        "simulated"
    }

    fn max_value_bytes(&self) -> usize {
        MAX_VALUE_BYTES
    }

    fn get<'a>(&'a self, key: &'a str) -> StoreFuture<'a, Option<KeyValue>> {
        let key = key.to_owned();
        self.request("get", key.clone().as_bytes(), move |_, cluster| {
            Ok(cluster.machine.get(&key))
        })
    }

    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        let prefix = prefix.to_owned();
        self.request("range", prefix.clone().as_bytes(), move |_, cluster| {
            cluster.machine.range(&prefix, at, false)
        })
    }

    fn range_keys<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        let prefix = prefix.to_owned();
        self.request(
            "range of keys",
            prefix.clone().as_bytes(),
            move |_, cluster| cluster.machine.range(&prefix, at, true),
        )
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnResult> {
        let me = self.me;
        self.request(
            "transaction",
            format!("{txn:?}").as_bytes(),
            move |simulation, cluster| {
                let (result, changes) = cluster.machine.txn(&txn)?;
                invariants::on_changes(simulation, me, &cluster.machine, changes.as_ref());
                Ok(result)
            },
        )
    }

    fn grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        self.request("grant", &[], move |_, cluster| {
            let lease = cluster.machine.grant(ttl, Instant::now().into_std());
            cluster.granted.insert(lease);
            Ok(lease)
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.request("keep-alive", &lease.0.to_le_bytes(), move |_, cluster| {
            cluster.machine.keep_alive(lease, Instant::now().into_std())
        })
    }

    fn revoke(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        let me = self.me;
        self.request(
            "revocation",
            &lease.0.to_le_bytes(),
            move |simulation, cluster| {
                let ended = cluster.machine.revoke(lease)?;
                for event in ended.iter().flat_map(|changes| changes.events.iter()) {
                    simulation.log(format_args!(
                        "store: {me} revokes lease {lease}: {}",
                        event.key
                    ));
                }
                Ok(())
            },
        )
    }

    fn watch<'a>(&'a self, prefix: &'a str, from: Revision) -> StoreFuture<'a, Watch> {
        let cursor = Cursor {
            simulation: self.simulation.clone(),
            me: self.me,
            life: self.life.clone(),
            prefix: prefix.to_owned(),
            next: from,
            ready: Vec::new().into_iter(),
            failed: false,
        };
        let prefix = prefix.to_owned();
        let checked = self.request("watch", &from.0.to_le_bytes(), move |_, cluster| {
            cluster.machine.history().watch(&prefix, from, 0).map(drop)
        });
        Box::pin(async move {
            checked.await?;
            Ok(Watch::new(stream::unfold(cursor, Cursor::step)))
        })
    }

    fn counters(&self) -> StoreCounters {
        lock(&self.simulation.store).machine.counters()
    }
}

struct Cursor {
    simulation: Simulation,
    me: Who,
    life: CancellationToken,
    prefix: String,
    next: Revision,
    ready: std::vec::IntoIter<Changes>,
    failed: bool,
}

impl Cursor {
    async fn step(mut self) -> Option<(Result<Changes, StoreError>, Self)> {
        let life = self.life.clone();
        tokio::select! {
            biased;
            () = life.cancelled() => None,
            stepped = self.advance() => stepped.map(|found| (found, self)),
        }
    }

    async fn advance(&mut self) -> Option<Result<Changes, StoreError>> {
        loop {
            if let Some(changes) = self.ready.next() {
                return Some(Ok(changes));
            }
            if self.failed {
                return None;
            }
            loop {
                let published = self.simulation.published.notified();
                if lock(&self.simulation.store).machine.history().published() >= self.next {
                    break;
                }
                published.await;
            }
            let order = hash(
                self.simulation.seed,
                format!("{} {}", self.me, self.next).as_bytes(),
            );
            sleep(
                self.simulation
                    .latency(&mut Random::new(order), Who::Store, self.me),
            )
            .await;
            until_up(&self.simulation, self.me).await;
            let found = {
                let cluster = lock(&self.simulation.store);
                cluster.machine.history().watch(&self.prefix, self.next, 64)
            };
            match found {
                Ok((changes, next)) => {
                    self.ready = changes.into_iter();
                    self.next = next;
                }
                Err(error) => {
                    self.simulation
                        .log(format_args!("{}: its watch ends: {error}", self.me));
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// The store for one process of a replica.
pub(in crate::sim) fn client(
    simulation: &Simulation,
    replica: usize,
    life: &CancellationToken,
) -> Arc<dyn Store> {
    Arc::new(Client {
        simulation: simulation.clone(),
        me: Who::Replica(replica),
        life: life.clone(),
    })
}
