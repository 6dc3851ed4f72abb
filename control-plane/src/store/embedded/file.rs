//! The store's file: its tables, how it is opened, and how a batch of changes becomes durable. Only this file knows
//! redb's tables. Errors on opening name the path and the remedy.

use std::{
    fs,
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageBackend,
    StorageError, TableDefinition, backends::FileBackend,
};

use super::{EmbeddedOptions, backend::Counted};
use crate::store::{Changes, KeyValue, LeaseId, Revision, StoreError, machine::Saved};

/// Key → (create revision, modification revision, lease or 0, value).
const KEYS: TableDefinition<'_, &str, (u64, u64, u64, &[u8])> = TableDefinition::new("keys");
/// Lease → TTL in milliseconds. The remaining time is not stored: after a restart a lease has a full TTL.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("heddle-control");
const FORMAT: u64 = 1;
/// All values are in memory anyway: redb's own cache only needs the inner pages of its tree.
const CACHE_BYTES: usize = 32 << 20;

/// What one commit makes durable, in order.
#[derive(Debug, Default)]
pub(super) struct Commit {
    pub(super) changes: Vec<Changes>,
    pub(super) granted: Vec<(LeaseId, Duration)>,
    pub(super) ended: Vec<LeaseId>,
    pub(super) last_lease: u64,
}

impl Commit {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.granted.is_empty() && self.ended.is_empty()
    }
}

pub(super) struct File {
    database: Database,
    fsyncs: Arc<AtomicU64>,
}

impl File {
    /// Opens or creates the file and reads everything in it.
    pub(super) fn open(options: &EmbeddedOptions) -> Result<(Self, Saved), StoreError> {
        // A damaged file must result in an error message, even if redb panics over it.
        catch_unwind(AssertUnwindSafe(|| Self::try_open(options))).unwrap_or_else(|_| {
            let cause = "reading it caused a panic".to_owned();
            Err(StoreError::Corrupt {
                path: name(&options.path),
                cause,
            })
        })
    }

    fn try_open(options: &EmbeddedOptions) -> Result<(Self, Saved), StoreError> {
        let path = &options.path;
        let fsyncs = Arc::new(AtomicU64::new(0));
        let inner = match &options.disk {
            Some(disk) => disk(),
            None => {
                prepare(path)?;
                on_path(path)
            }
        };
        let database = inner
            .and_then(|inner| {
                let backend = Counted {
                    inner,
                    fsyncs: Arc::clone(&fsyncs),
                };
                Builder::new()
                    .set_cache_size(CACHE_BYTES)
                    .create_with_backend(backend)
            })
            .map_err(|error| open_error(path, error))?;
        let file = Self { database, fsyncs };
        let foreign = |cause: String| StoreError::Foreign {
            path: name(path),
            cause,
        };
        let read = || {
            if file.database.begin_read()?.list_tables()?.next().is_none() {
                write_tables(&file.database)?;
            }
            file.load()
        };
        match read() {
            Ok((FORMAT, saved)) => Ok((file, saved)),
            Ok((format, _)) => Err(foreign(format!(
                "its format is {format}, this version reads {FORMAT}"
            ))),
            Err(redb::Error::TableDoesNotExist(_) | redb::Error::TableTypeMismatch { .. }) => {
                Err(foreign("a database of another program".to_owned()))
            }
            Err(error) => Err(StoreError::Corrupt {
                path: name(path),
                cause: error.to_string(),
            }),
        }
    }

    fn load(&self) -> Result<(u64, Saved), redb::Error> {
        let read = self.database.begin_read()?;
        let meta = read.open_table(META)?;
        let number = |key: &str| -> Result<u64, redb::Error> {
            Ok(meta.get(key)?.map_or(0, |found| found.value()))
        };
        let mut saved = Saved {
            revision: Revision(number("revision")?),
            last_lease: number("last_lease")?,
            ..Saved::default()
        };
        let format = number("format")?;
        for entry in read.open_table(KEYS)?.iter()? {
            let (key, found) = entry?;
            let (create, modified, lease, value) = found.value();
            saved.items.push(KeyValue {
                key: key.value().into(),
                value: Bytes::copy_from_slice(value),
                create_revision: Revision(create),
                mod_revision: Revision(modified),
                lease: (lease != 0).then_some(LeaseId(lease)),
            });
        }
        for entry in read.open_table(LEASES)?.iter()? {
            let (lease, ttl) = entry?;
            saved
                .leases
                .push((LeaseId(lease.value()), Duration::from_millis(ttl.value())));
        }
        Ok((format, saved))
    }

    /// The number of syncs since the file was opened.
    pub(super) fn fsyncs(&self) -> u64 {
        self.fsyncs.load(Ordering::Relaxed)
    }

    /// Makes a batch durable, completely or not at all.
    pub(super) fn commit(&self, commit: &Commit) -> Result<(), String> {
        catch_unwind(AssertUnwindSafe(|| self.try_commit(commit)))
            .map_err(|_| "cannot write the file".to_owned())?
            .map_err(|error| error.to_string())
    }

    fn try_commit(&self, commit: &Commit) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut keys = write.open_table(KEYS)?;
            for event in commit
                .changes
                .iter()
                .flat_map(|changes| changes.events.iter())
            {
                match &event.now {
                    Some(now) => {
                        let lease = now.lease.map_or(0, |lease| lease.0);
                        let (create, modified) = (now.create_revision.0, now.mod_revision.0);
                        keys.insert(&*event.key, (create, modified, lease, &*now.value))?;
                    }
                    None => {
                        keys.remove(&*event.key)?;
                    }
                }
            }
            let mut leases = write.open_table(LEASES)?;
            for (lease, ttl) in &commit.granted {
                leases.insert(lease.0, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
            }
            for lease in &commit.ended {
                leases.remove(lease.0)?;
            }
            let mut meta = write.open_table(META)?;
            if let Some(last) = commit.changes.last() {
                meta.insert("revision", last.revision.0)?;
            }
            meta.insert("last_lease", commit.last_lease)?;
        }
        write.commit()?;
        Ok(())
    }
}

fn on_path(path: &Path) -> Result<Box<dyn StorageBackend>, DatabaseError> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    // An earlier version created it with the umask's permissions.
    heddle_options::make_private(path)?;
    Ok(Box::new(FileBackend::new(file)?))
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    let (path, cause) = (name(path), error.to_string());
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            StoreError::InUse { path }
        }
        DatabaseError::Storage(StorageError::Io(io)) => match io.kind() {
            ErrorKind::InvalidData => StoreError::Foreign { path, cause },
            ErrorKind::UnexpectedEof => StoreError::Corrupt { path, cause },
            _ => StoreError::Open { path, cause },
        },
        DatabaseError::UpgradeRequired(_) => StoreError::Foreign { path, cause },
        _ => StoreError::Corrupt { path, cause },
    }
}

/// Creates the file if it does not exist.
fn prepare(path: &Path) -> Result<(), StoreError> {
    let failed = |cause: String| StoreError::Open {
        path: name(path),
        cause,
    };
    if path.is_dir() {
        return Err(failed("it is a directory; name a file in it".to_owned()));
    }
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => create(path).map_err(|error| failed(error.to_string())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Creates a new, empty store in a file beside the path and links it to the path when it is complete: a crash in
/// between leaves nothing that looks like a damaged store, and if two processes do this, one wins.
fn create(path: &Path) -> Result<(), redb::Error> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    heddle_options::create_private_dir(parent)?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
    let draft = Path::new(&draft);
    let write = || -> Result<(), redb::Error> {
        let mut private = heddle_options::private_file();
        let file = private
            .create_new(true)
            .read(true)
            .write(true)
            .open(draft)?;
        let file = FileBackend::new(file)?;
        write_tables(&Builder::new().create_with_backend(file)?)
    };
    let made = write().and_then(|()| match fs::hard_link(draft, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(fs::File::open(parent)?.sync_all()?),
    });
    // The draft is not needed any more, whether this succeeded or not.
    let _ = fs::remove_file(draft);
    made
}

fn write_tables(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(KEYS)?;
    write.open_table(LEASES)?;
    write.open_table(META)?.insert("format", FORMAT)?;
    write.commit()?;
    Ok(())
}

fn name(path: &Path) -> String {
    path.display().to_string()
}
