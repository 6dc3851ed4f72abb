//! One replica's way to the store: what becomes of a request and of the changes that are watched. In come the requests
//! of a registry, out go answers: late, lost, or of something that is done only after it was called failed.

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
        dice::{Dice, hash},
        laws,
        world::{Who, World, lock},
    },
    store::{
        Changes, KeyValue, LeaseId, Range, Revision, Store, StoreCounters, StoreError, StoreFuture,
        Txn, TxnResult, Watch,
    },
};

/// An engine gives up so long after it was asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// One replica's way to the store.
struct Client {
    world: World,
    me: Who,
    life: CancellationToken,
}

/// What becomes of one request.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Done,
    Lost,
    AnswerLost,
    /// Done only after the replica was told that it failed.
    Late,
}

impl Client {
    fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        content: &[u8],
        apply: impl FnOnce(&World, &mut Cluster) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<'_, T> {
        let (reply, answer) = oneshot::channel();
        let (world, me, life) = (self.world.clone(), self.me, self.life.clone());
        let now = world.now().as_millis();
        let order = hash(world.seed, format!("{now} {me} {what}").as_bytes());
        let request = Request {
            me,
            order: hash(order, content),
        };
        // A request that is under way is done even if nobody waits for it any more.
        tokio::spawn(async move {
            let done = request.run(&world, apply).await;
            if let Err(StoreError::Unavailable { cause }) = &done {
                world.say(format_args!("{me}: {what}: {cause}"));
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
        world: &World,
        apply: impl FnOnce(&World, &mut Cluster) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let me = self.me;
        let mut dice = Dice::new(self.order);
        let calm = world.calm.load(Ordering::Relaxed);
        let fate = if !calm && dice.chance(world.profile.lossy) {
            dice.pick(&[Fate::Lost, Fate::AnswerLost, Fate::Late])
                .unwrap_or(Fate::Done)
        } else {
            Fate::Done
        };
        let given_up = Instant::now() + PATIENCE;
        sleep(world.latency(&mut dice, me, Who::Store)).await;
        if fate == Fate::Lost || timeout_at(given_up, until_up(world, me)).await.is_err() {
            sleep_until(given_up).await;
            return Err(unavailable("no answer in time (not done)"));
        }
        if fate == Fate::Late {
            let (world, later) = (world.clone(), dice.millis(10..=4000));
            tokio::spawn(async move {
                sleep_until(given_up + later).await;
                let _ = self.done(&world, apply).await;
            });
            sleep_until(given_up).await;
            return Err(unavailable("no answer in time (done later)"));
        }
        let result = self.done(world, apply).await;
        sleep(world.latency(&mut dice, Who::Store, me)).await;
        if fate == Fate::AnswerLost || timeout_at(given_up, until_up(world, me)).await.is_err() {
            sleep_until(given_up).await;
            return Err(unavailable("no answer in time (done)"));
        }
        result
    }

    async fn done<T: Send + 'static>(
        &self,
        world: &World,
        apply: impl FnOnce(&World, &mut Cluster) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let job = Job {
            at: Instant::now(),
            order: self.order,
            apply: Box::new(move |world, cluster| {
                let _ = reply.send(apply(world, cluster));
            }),
        };
        {
            let mut cluster = lock(&world.store);
            cluster.jobs.push(job);
            cluster.asked.notify_one();
        }
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

async fn until_up(world: &World, me: Who) {
    loop {
        let change = world.net_change();
        if lock(&world.store).up && world.joined(me, Who::Store) {
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
        self.ask("get", key.clone().as_bytes(), move |_, cluster| {
            Ok(cluster.machine.get(&key))
        })
    }

    fn range<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        let prefix = prefix.to_owned();
        self.ask("range", prefix.clone().as_bytes(), move |_, cluster| {
            cluster.machine.range(&prefix, at, false)
        })
    }

    fn range_keys<'a>(&'a self, prefix: &'a str, at: Option<Revision>) -> StoreFuture<'a, Range> {
        let prefix = prefix.to_owned();
        self.ask(
            "range of keys",
            prefix.clone().as_bytes(),
            move |_, cluster| cluster.machine.range(&prefix, at, true),
        )
    }

    fn txn(&self, txn: Txn) -> StoreFuture<'_, TxnResult> {
        let me = self.me;
        self.ask(
            "transaction",
            format!("{txn:?}").as_bytes(),
            move |world, cluster| {
                let (result, changes) = cluster.machine.txn(&txn)?;
                laws::on_changes(world, me, &cluster.machine, changes.as_ref());
                Ok(result)
            },
        )
    }

    fn grant(&self, ttl: Duration) -> StoreFuture<'_, LeaseId> {
        self.ask("grant", &[], move |_, cluster| {
            let lease = cluster.machine.grant(ttl, Instant::now().into_std());
            cluster.granted.insert(lease);
            Ok(lease)
        })
    }

    fn keep_alive(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        self.ask("keep-alive", &lease.0.to_le_bytes(), move |_, cluster| {
            cluster.machine.keep_alive(lease, Instant::now().into_std())
        })
    }

    fn revoke(&self, lease: LeaseId) -> StoreFuture<'_, ()> {
        let me = self.me;
        self.ask(
            "revocation",
            &lease.0.to_le_bytes(),
            move |world, cluster| {
                let ended = cluster.machine.revoke(lease)?;
                for event in ended.iter().flat_map(|changes| changes.events.iter()) {
                    world.say(format_args!(
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
            world: self.world.clone(),
            me: self.me,
            life: self.life.clone(),
            prefix: prefix.to_owned(),
            next: from,
            ready: Vec::new().into_iter(),
            failed: false,
        };
        let prefix = prefix.to_owned();
        let checked = self.ask("watch", &from.0.to_le_bytes(), move |_, cluster| {
            cluster.machine.history().watch(&prefix, from, 0).map(drop)
        });
        Box::pin(async move {
            checked.await?;
            Ok(Watch::new(stream::unfold(cursor, Cursor::step)))
        })
    }

    fn counters(&self) -> StoreCounters {
        lock(&self.world.store).machine.counters()
    }
}

struct Cursor {
    world: World,
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
                let published = self.world.published.notified();
                if lock(&self.world.store).machine.history().published() >= self.next {
                    break;
                }
                published.await;
            }
            let order = hash(
                self.world.seed,
                format!("{} {}", self.me, self.next).as_bytes(),
            );
            sleep(
                self.world
                    .latency(&mut Dice::new(order), Who::Store, self.me),
            )
            .await;
            until_up(&self.world, self.me).await;
            let found = {
                let cluster = lock(&self.world.store);
                cluster.machine.history().watch(&self.prefix, self.next, 64)
            };
            match found {
                Ok((changes, next)) => {
                    self.ready = changes.into_iter();
                    self.next = next;
                }
                Err(error) => {
                    self.world
                        .say(format_args!("{}: its watch ends: {error}", self.me));
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// The store for one process of a replica.
pub(in crate::sim) fn client(
    world: &World,
    replica: usize,
    life: &CancellationToken,
) -> Arc<dyn Store> {
    Arc::new(Client {
        world: world.clone(),
        me: Who::Replica(replica),
        life: life.clone(),
    })
}
