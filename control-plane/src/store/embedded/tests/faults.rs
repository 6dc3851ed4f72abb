//! The embedded store on a disk that fails, and that loses and tears unsynced writes.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use redb::StorageBackend;

use crate::store::{Embedded, EmbeddedOptions, LeaseId, Op, Revision, Store, StoreError, Txn};

/// The bytes that survive a power cut, and the writes since the last sync.
#[derive(Debug, Default)]
struct Disk {
    durable: Vec<u8>,
    present: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Syncs until the power is cut.
    syncs_left: Option<u32>,
    /// Syncs fail; everything else works.
    full: bool,
}

/// What happens to unsynced writes at a power cut.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lost,
    Kept,
    /// Random sectors are kept.
    Some,
    /// Random sectors are kept, some of them only in part.
    Torn,
}

impl Disk {
    /// Leaves what the next start finds.
    fn cut_power(&mut self, fate: Fate, rng: &mut StdRng) {
        let mut found = std::mem::take(&mut self.durable);
        for (offset, data) in self.unsynced.drain(..) {
            for (n, sector) in data.chunks(512).enumerate() {
                let kept = match fate {
                    Fate::Lost => 0,
                    Fate::Kept => sector.len(),
                    Fate::Some => sector.len() * usize::from(rng.random_bool(0.5)),
                    Fate::Torn if rng.random_bool(0.3) => rng.random_range(0..sector.len()),
                    Fate::Torn => sector.len() * usize::from(rng.random_bool(0.5)),
                };
                put(&mut found, offset + n * 512, &sector[..kept]);
            }
        }
        *self = Self {
            present: found.clone(),
            durable: found,
            ..Self::default()
        };
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(data);
}

#[derive(Clone, Debug, Default)]
struct Handle(Arc<Mutex<Disk>>);

impl Handle {
    fn options(&self) -> EmbeddedOptions {
        let handle = self.clone();
        let disk = move || Ok(Box::new(handle.clone()) as Box<dyn StorageBackend>);
        EmbeddedOptions {
            disk: Some(Arc::new(disk)),
            ..EmbeddedOptions::new("simulated")
        }
    }

    fn alive(&self) -> io::Result<std::sync::MutexGuard<'_, Disk>> {
        let disk = self.0.lock().unwrap();
        if disk.syncs_left == Some(0) {
            return Err(io::Error::other("the power is cut"));
        }
        Ok(disk)
    }
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.alive()?.present.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = place(offset);
        let disk = self.alive()?;
        let found = disk.present.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.alive()?;
        disk.present.resize(place(len), 0);
        // The file system journals file sizes.
        disk.durable.resize(place(len), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.alive()?;
        if disk.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(left) = &mut disk.syncs_left {
            *left -= 1;
            if *left == 0 {
                return Err(io::Error::other("the power is cut"));
            }
        }
        disk.unsynced.clear();
        disk.durable = disk.present.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.alive()?;
        put(&mut disk.present, place(offset), data);
        disk.unsynced.push((place(offset), data.to_vec()));
        Ok(())
    }
}

fn pair(n: u64) -> Txn {
    let text = n.to_string();
    let mut then = vec![Op::put("left", text.clone()), Op::put("right", text)];
    // Sometimes more than one page, so that the file grows.
    let bytes = if n.is_multiple_of(5) { 20_000 } else { 700 };
    then.push(Op::put(&format!("some/{}", n % 7), vec![7_u8; bytes]));
    if n.is_multiple_of(3) {
        then.push(Op::delete(&format!("some/{}", (n + 3) % 7)));
    }
    Txn {
        then,
        ..Txn::default()
    }
}

const WRITES: u64 = 40;

/// The requests that were answered before the power was cut.
#[derive(Default)]
struct Answered {
    last: u64,
    leases: Vec<LeaseId>,
    /// All writes were answered: the power was not cut before.
    all: bool,
}

impl Answered {
    async fn write(&mut self, store: &Embedded, from: u64) {
        for n in from..from + WRITES {
            let result = async {
                store.txn(pair(n)).await?;
                self.last = n;
                if n.is_multiple_of(4) {
                    self.leases
                        .push(store.grant(Duration::from_secs(600)).await?);
                }
                Ok(())
            };
            match result.await {
                Ok(()) => {}
                Err(StoreError::Unavailable { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
        self.all = true;
    }

    /// Asserts that everything that was answered is in the store, and nothing that was not requested.
    async fn check(&self, store: &Embedded, case: &str) {
        let mut held = Vec::new();
        for key in ["left", "right"] {
            let found = store.get(key).await.unwrap();
            let text = found.map(|item| item.value).unwrap_or_default();
            let text = std::str::from_utf8(&text).unwrap();
            held.push(text.parse::<u64>().unwrap_or(0));
        }
        assert_eq!(held[0], held[1], "{case}: half a transaction");
        let answered = self.last;
        assert!(
            held[0] == answered || held[0] == answered + 1 || held[0] % 100 == 1,
            "{case}: {answered} was answered, {} is there",
            held[0]
        );
        assert!(held[0] >= answered, "{case}: {answered} was answered");
        for lease in &self.leases {
            store.keep_alive(*lease).await.expect(case);
        }
    }
}

/// False if all writes finished before the power was cut.
async fn cut_at(sync: u32, fate: Fate, seed: u64) -> bool {
    let mut rng = StdRng::seed_from_u64(u64::from(sync) * 100 + seed);
    let handle = Handle::default();
    drop(Embedded::open(&handle.options()).unwrap());
    let (mut answered, mut revision) = (Answered::default(), Revision(1));
    // Twice: a recovered file must survive another power cut.
    for round in 0..2_u64 {
        let case = format!("cut at sync {sync}, {fate:?}, seed {seed}, round {round}");
        handle.0.lock().unwrap().syncs_left = Some(sync);
        if let Ok(store) = Embedded::open(&handle.options()) {
            answered.write(&store, 1 + round * 100).await;
        }
        if answered.all {
            return false;
        }
        handle.0.lock().unwrap().cut_power(fate, &mut rng);
        let store = Embedded::open(&handle.options()).expect(&case);
        answered.check(&store, &case).await;
        let now = store.range("", None).await.unwrap().revision;
        assert!(now >= revision, "{case}: revisions never go back");
        store.txn(pair(50)).await.expect(&case);
        answered.last = 50;
        revision = now.next();
    }
    true
}

#[tokio::test]
async fn at_every_sync_point_a_power_cut_loses_nothing_that_was_answered() {
    let mut sync = 1;
    let mut cut = true;
    while cut {
        cut = cut_at(sync, Fate::Lost, 0).await && cut_at(sync, Fate::Kept, 0).await;
        for seed in 0..2 {
            cut = cut && cut_at(sync, Fate::Some, seed).await;
            cut = cut && cut_at(sync, Fate::Torn, seed).await;
        }
        sync += 1;
    }
    assert!(u64::from(sync) > WRITES, "each write has its sync: {sync}");
}

#[tokio::test]
async fn a_full_disk_refuses_writes_shows_none_of_them_and_goes_on_when_there_is_room() {
    let handle = Handle::default();
    let store = Embedded::open(&handle.options()).unwrap();
    let lease = store.grant(Duration::from_secs(600)).await.unwrap();
    store.put("a", "before".into()).await.unwrap();
    let before = store.range("", None).await.unwrap();
    let mut watch = store.watch("a", before.revision.next()).await.unwrap();
    handle.0.lock().unwrap().full = true;
    for _ in 0..3 {
        let error = store.put("a", "lost".into()).await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert_eq!(
            store.range("", None).await.unwrap(),
            before,
            "nothing of it is seen"
        );
        let read = store.get("a").await.unwrap();
        assert_eq!(read.as_ref(), before.items.first(), "nor by its key");
    }
    store.keep_alive(lease).await.unwrap();
    handle.0.lock().unwrap().full = false;
    let again = async {
        while store.put("a", "after".into()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again)
        .await
        .unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().value, "after");
    store.keep_alive(lease).await.unwrap();
    // A watch returns the change, or an error after which it must be read again; it never returns what was lost.
    match watch.next().await.unwrap() {
        Ok(changes) => assert_eq!(changes.events[0].now.as_ref().unwrap().value, "after"),
        Err(error) => assert!(matches!(error, StoreError::Compacted { .. }), "{error}"),
    }
}
