//! Writes the transactions of a session, each on the condition that the lease still belongs to the session. If the
//! store does not answer, they are retried, and the lease is renewed meanwhile.

use std::{pin::pin, time::Duration};

use futures_util::future::join_all;
use heddle_pacing::Backoff;
use heddle_proto::store::v1::{AliveRecord, NodeRecord};
use prost::Message as _;

use super::{
    LeaseError, NodeLease,
    batch::{Transaction, Write, transactions},
};
use crate::{
    names::keys,
    store::{Compare, Op, Revision, StoreError, Txn, TxnResult},
};

/// Pauses before a store that does not answer is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);

impl NodeLease {
    /// Writes operations on different keys, in as many transactions as needed: store engines limit their size. Waits
    /// for a store that does not answer, so that the node does not have to send the write again.
    pub(super) async fn write(&mut self, writes: Vec<Write>) -> Result<Revision, LeaseError> {
        let mut left = transactions(writes, |event| self.registry.entry(event));
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        let mut lost = false;
        while !left.is_empty() {
            let results = self.try_write(&left).await;
            if results.iter().flatten().any(|result| !result.succeeded) {
                return Err(self.why_lost().await?);
            }
            let mut undone = Vec::new();
            for (transaction, result) in left.into_iter().zip(results) {
                self.registry.on_store_result(&result);
                match result {
                    Ok(result) => {
                        transaction.log();
                        self.last = self.last.max(result.revision);
                    }
                    // It may or may not be committed; committing it twice has the same result.
                    Err(StoreError::Unavailable { .. }) => undone.push(transaction),
                    Err(error) => return Err(error.into()),
                }
            }
            left = undone;
            if !left.is_empty() {
                lost = true;
                self.wait_for_store()?;
                // Without jitter: the sessions of this replica do not retry in step.
                tokio::time::sleep(backoff.fail_exact()).await;
            }
        }
        if lost {
            self.renew_fence().await?;
        }
        Ok(self.last)
    }

    /// After a lost answer, the request may still be pending in a frozen member of the store, and it must not be
    /// applied after later writes. So this rewrites the session's key, which makes the pending request's condition
    /// fail. If this answer is lost too, the session ends, and the node's next session writes the key again.
    async fn renew_fence(&mut self) -> Result<(), LeaseError> {
        let registry = self.registry.clone();
        let alive = keys::alive(&self.node);
        let here = AliveRecord {
            epoch: self.epoch,
            process_id: self.process_id.clone(),
            replica: registry.options().replica.clone(),
            attempt: self.attempt,
        };
        let then = vec![Op::put_leased(&alive, here.encode_to_vec(), self.lease)];
        let txn = registry.store().txn(self.fenced(then));
        let result = self.renewing_during(txn).await?;
        if !result.succeeded {
            return Err(self.why_lost().await?);
        }
        self.session = result.revision;
        self.last = self.last.max(result.revision);
        // Until the view includes it, this session would look replaced.
        self.renewing_during(registry.reached(result.revision))
            .await;
        Ok(())
    }

    async fn try_write(
        &mut self,
        transactions: &[Transaction],
    ) -> Vec<Result<TxnResult, StoreError>> {
        let registry = self.registry.clone();
        let txns = transactions.iter().map(|transaction| {
            let txn = self.fenced(transaction.ops.clone());
            registry.txn_with_entries(txn, &transaction.entries)
        });
        let all = join_all(txns);
        self.renewing_during(all).await
    }

    /// A transaction that is applied only while this session has the node.
    pub(super) fn fenced(&self, then: Vec<Op>) -> Txn {
        let alive = keys::alive(&self.node);
        Txn {
            compare: vec![Compare::unchanged(&alive, self.session)],
            then,
            ..Txn::default()
        }
    }

    /// Waits for the store and renews the lease meanwhile: the node's heartbeats are queued behind its write, so the
    /// node itself is not late.
    async fn renewing_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let every = self.registry.options().renew_interval;
        loop {
            if let Ok(done) = tokio::time::timeout(every, &mut work).await {
                return done;
            }
            // If the lease has expired, the writes fail and report it.
            let _ = self.renew().await;
        }
    }

    pub(super) async fn why_lost(&self) -> Result<LeaseError, StoreError> {
        let store = self.registry.store();
        let node = self.node.clone();
        let found = store.get(&keys::node(&node)).await?;
        let record = found.and_then(|found| NodeRecord::decode(found.value).ok());
        if let Some(record) = record
            && (record.epoch, &record.process_id) != (self.epoch, &self.process_id)
        {
            let NodeRecord {
                process_id, epoch, ..
            } = record;
            return Ok(LeaseError::Superseded {
                node,
                process_id,
                epoch,
            });
        }
        match store.get(&keys::alive(&node)).await? {
            Some(_) => Ok(LeaseError::Replaced { node }),
            None => Ok(LeaseError::Lapsed { node }),
        }
    }
}
