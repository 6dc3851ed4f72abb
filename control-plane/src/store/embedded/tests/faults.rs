//! The embedded store on a disk that fails, loses and tears what was not synced.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use redb::StorageBackend;

use crate::store::{Embedded, EmbeddedOptions, Op, Revision, Store, StoreError, Txn};

/// Bytes that survive a power cut, and what was written since.
#[derive(Debug, Default)]
struct Disk {
    durable: Vec<u8>,
    present: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Syncs until the power is cut.
    syncs_left: Option<u32>,
    /// Syncs fail, and nothing else does.
    full: bool,
}

impl Disk {
    /// What the next start finds: of the writes that were not synced any part may have reached the disk.
    fn cut_power(&mut self, rng: &mut StdRng) {
        let mut found = std::mem::take(&mut self.durable);
        for (offset, data) in self.unsynced.drain(..) {
            // Sectors are written whole or not at all.
            for (n, sector) in data.chunks(512).enumerate() {
                if rng.random_bool(0.5) {
                    put(&mut found, offset + n * 512, sector);
                }
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
        // The file system journals its sizes.
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
    then.push(Op::put(&format!("some/{}", n % 7), vec![7_u8; 700]));
    if n.is_multiple_of(3) {
        then.push(Op::delete(&format!("some/{}", (n + 3) % 7)));
    }
    Txn {
        then,
        ..Txn::default()
    }
}

/// Writes until the power goes. The number that was answered last.
async fn write_until_cut(store: &Embedded, from: u64) -> Option<u64> {
    let mut answered = None;
    for n in from..from + 40 {
        match store.txn(pair(n)).await {
            Ok(_) => answered = Some(n),
            Err(StoreError::Unavailable { .. }) => return answered,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the power was not cut");
}

#[tokio::test]
async fn at_every_sync_point_a_power_cut_loses_nothing_that_was_answered() {
    for cut in 1..=24 {
        for seed in 0..3 {
            let mut rng = StdRng::seed_from_u64(u64::from(cut) * 100 + seed);
            let handle = Handle::default();
            drop(Embedded::open(&handle.options()).unwrap());
            let (mut answered, mut revision) = (0, Revision(1));
            // Twice: a file that was recovered once must stand a second cut.
            for round in 0..2_u64 {
                let case = format!("cut {cut}, seed {seed}, round {round}");
                handle.0.lock().unwrap().syncs_left = Some(cut);
                if let Ok(store) = Embedded::open(&handle.options()) {
                    let last = write_until_cut(&store, 1 + round * 100).await;
                    answered = last.unwrap_or(answered);
                }
                handle.0.lock().unwrap().cut_power(&mut rng);

                let store = Embedded::open(&handle.options()).expect(&case);
                let left = store.get("left").await.unwrap();
                let right = store.get("right").await.unwrap();
                let value = |item: &Option<crate::store::KeyValue>| {
                    let text = item
                        .as_ref()
                        .map(|item| item.value.clone())
                        .unwrap_or_default();
                    std::str::from_utf8(&text)
                        .unwrap()
                        .parse::<u64>()
                        .unwrap_or(0)
                };
                assert_eq!(value(&left), value(&right), "{case}");
                let held = value(&left);
                assert!(
                    held >= answered,
                    "{case}: {answered} was answered, {held} is there"
                );
                let now = store.range("", None).await.unwrap().revision;
                assert!(now >= revision, "{case}: revisions never go back");
                revision = now;
                store.txn(pair(50)).await.expect(&case);
                answered = 50;
            }
        }
    }
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
    // A watcher sees the change, or is told that it has to read anew; it never sees what was lost.
    match watch.next().await.unwrap() {
        Ok(changes) => assert_eq!(changes.events[0].now.as_ref().unwrap().value, "after"),
        Err(error) => assert!(matches!(error, StoreError::Compacted { .. }), "{error}"),
    }
}
