//! The state dir: what a proxy keeps for its next start. Values are written and read as a whole. Each is written to a
//! temporary file, synced and renamed, with a checksum, so that a power loss leaves the old or the new value. Anything
//! else at a file's path is set aside and logged; it is never trusted and never fatal. Files and folder are accessible
//! to this user only. A disk that is full at start does not prevent the start. The modules that keep values know what
//! they mean.

mod keep;

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tracing::warn;

pub use keep::StateWriter;

/// Every file begins with this and one byte for the version of this layout.
const MAGIC: &[u8; 7] = b"heddle\0";
const LAYOUT: u8 = 1;
const HEADER: usize = 8 + 8 + 32;
/// The largest value that is written or read; real ones are far smaller.
const MAX_BYTES: u64 = 512 * 1024 * 1024;
/// The most values of other processes that are read.
const MOST_BESIDE: usize = 64;
/// How many files that were set aside are kept per name, the newest ones: for a person to look at, without filling the
/// disk.
const MAX_BAD_FILES: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error("--state-dir {}: cannot be created: {source}; give a folder that this process may write", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("--state-dir {}: cannot be written: {source}; give a folder that this process may write", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(
        "--state-dir {}: another proxy uses it: stop that proxy, or give each its own",
        path.display()
    )]
    InUse { path: PathBuf },
}

/// An open state dir, locked for this process. Clones share it.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: Arc<Path>,
    /// Locked while a file is written: writers of the same name share its temporary file.
    writing: Arc<Mutex<Lock>>,
}

/// The lock on the folder.
#[derive(Debug, Default)]
enum Lock {
    /// Not taken yet, because the disk was full.
    #[default]
    Missing,
    /// The lock lasts as long as the file is open.
    Taken(#[allow(dead_code)] File),
    /// The folder belongs to another process now.
    Released,
}

impl StateDir {
    /// Creates the folder if needed, and checks that it is writable and that no other process uses it. On a full disk
    /// it still opens; values are written once there is space again.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let dir = Self {
            path: path.into(),
            writing: Arc::default(),
        };
        match dir.probe() {
            Ok(()) => {}
            Err(StateDirError::Create { source, .. } | StateDirError::Write { source, .. })
                if is_full(&source) =>
            {
                warn!(
                    "--state-dir {}: the disk is full ({source}): this proxy starts, but its \
                     state is not kept across restarts until there is space",
                    path.display()
                );
            }
            Err(error) => return Err(error),
        }
        Ok(dir)
    }

    fn probe(&self) -> Result<(), StateDirError> {
        *self.writing() = Lock::Taken(lock(&self.path)?);
        let write = |source| StateDirError::Write {
            path: self.path.to_path_buf(),
            source,
        };
        self.write("probe", b"").map_err(write)?;
        fs::remove_file(self.path.join("probe")).map_err(write)
    }

    /// Releases the folder to the next process: later writes do nothing. Waits for a write in progress.
    pub fn release(&self) {
        *self.writing() = Lock::Released;
    }

    /// Whether the folder belongs to the next process, so that writes do nothing.
    #[must_use]
    pub fn is_released(&self) -> bool {
        matches!(*self.writing(), Lock::Released)
    }

    fn writing(&self) -> MutexGuard<'_, Lock> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a value durably: after this returns it survives a power loss. If it fails, the old value is kept. After
    /// `release` it does nothing.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, name: &str, value: &[u8]) -> io::Result<()> {
        if value.len() as u64 > MAX_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!(
                    "{name} has {} bytes, over the limit of {MAX_BYTES}",
                    value.len()
                ),
            ));
        }
        let mut writing = self.writing();
        match &*writing {
            Lock::Missing => {
                *writing = Lock::Taken(lock(&self.path).map_err(io::Error::other)?);
            }
            Lock::Taken(_) => {}
            Lock::Released => return Ok(()),
        }
        let temporary = self.path.join(format!("{name}.tmp"));
        let written = self.replace(name, &temporary, value);
        if written.is_err() {
            // A partial file would only take space on a full disk.
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// Like `write`, for a task: makes and writes the value on a thread that may block.
    ///
    /// # Errors
    /// The message of the file system.
    pub async fn write_off_thread(
        &self,
        name: &'static str,
        value: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<(), String> {
        let dir = self.clone();
        let written = tokio::task::spawn_blocking(move || dir.write(name, &value())).await;
        written
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())
    }

    fn replace(&self, name: &str, temporary: &Path, value: &[u8]) -> io::Result<()> {
        for name in [name, &format!("{name}.tmp")] {
            if let Some(what) = not_a_file(&self.path.join(name)) {
                set_aside(&self.path, name, what);
            }
        }
        let mut private = heddle_options::private_file();
        let mut file = private
            .create(true)
            .truncate(true)
            .write(true)
            .open(temporary)?;
        file.write_all(MAGIC)?;
        file.write_all(&[LAYOUT])?;
        file.write_all(&(value.len() as u64).to_le_bytes())?;
        file.write_all(&Sha256::digest(value))?;
        file.write_all(value)?;
        file.sync_all()?;
        fs::rename(temporary, self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    /// Writes a value whose name no other process uses, also after `release`. The other processes read such values by
    /// the beginning of their names.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_beside(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let _writing = self.writing();
        let temporary = self.path.join(format!("{name}.tmp"));
        let written = self.replace(name, &temporary, value);
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }

    /// The values whose names begin so, at most 64; damaged ones are left out.
    #[must_use]
    pub fn read_beside(&self, begin: &str) -> Vec<Bytes> {
        let files = entries(&self.path, begin).into_iter().take(MOST_BESIDE);
        files.filter_map(|path| read_checked(&path).ok()).collect()
    }

    /// Removes the values whose names begin so.
    pub fn remove_beside(&self, begin: &str) {
        for path in entries(&self.path, begin) {
            remove(&path);
        }
    }

    /// The value as last written; `None` if there is none, or if it is damaged or foreign (then it is set aside).
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Bytes> {
        match read_checked(&self.path.join(name)) {
            Ok(value) => Some(value),
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.set_aside(name, &error.to_string());
                None
            }
        }
    }

    /// Renames an unusable file, so that a person can look at it and the next write does not replace it.
    pub fn set_aside(&self, name: &str, why: &str) {
        if self.is_released() {
            return;
        }
        set_aside(&self.path, name, why);
    }
}

/// Creates the folder if needed, removes access that an earlier version left to others, and takes the lock.
fn lock(path: &Path) -> Result<File, StateDirError> {
    let create = |source| StateDirError::Create {
        path: path.to_owned(),
        source,
    };
    let write = |source| StateDirError::Write {
        path: path.to_owned(),
        source,
    };
    heddle_options::create_private_dir(path).map_err(create)?;
    heddle_options::make_private(path).map_err(write)?;
    let lock_file = path.join("lock");
    if not_a_file(&lock_file).is_some() {
        set_aside(path, "lock", "is not a file");
    }
    let mut private = heddle_options::private_file();
    let lock = private
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock_file)
        .map_err(write)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StateDirError::InUse {
            path: path.to_owned(),
        },
        TryLockError::Error(source) => write(source),
    })?;
    remove_leftovers(path);
    for file in entries(path, "") {
        if not_a_file(&file).is_none()
            && let Err(error) = heddle_options::make_private(&file)
        {
            warn!(
                "{}: other users may read it, and its mode cannot be changed: {error}",
                file.display()
            );
        }
    }
    Ok(lock)
}

/// Whether the error ends without a change of options, once there is space.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

fn set_aside(dir: &Path, name: &str, why: &str) {
    let path = dir.join(name);
    let aside = dir.join(aside_name(dir, name));
    match fs::rename(&path, &aside) {
        Ok(()) => warn!(
            "{}: {why}; set aside as {} and continuing without it",
            path.display(),
            aside.display()
        ),
        Err(error) => warn!("{}: {why}; continuing without it ({error})", path.display()),
    }
    let mut kept = entries(dir, &format!("{name}.bad-"));
    kept.sort();
    let too_many = kept.len().saturating_sub(MAX_BAD_FILES);
    for old in kept.into_iter().take(too_many) {
        remove(&old);
    }
}

/// A name that sorts after all files set aside before, even within the same second or after the clock was set back.
fn aside_name(dir: &Path, name: &str) -> String {
    let begin = format!("{name}.bad-");
    let taken = entries(dir, &begin).into_iter().filter_map(|path| {
        let (seconds, number) = path
            .file_name()?
            .to_str()?
            .strip_prefix(&begin)?
            .split_once('-')?;
        Some((seconds.parse::<u64>().ok()?, number.parse::<u32>().ok()?))
    });
    let now: u64 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let (seconds, number) = match taken.max() {
        Some((last, 999..)) if last >= now => (last.saturating_add(1), 0),
        Some((last, number)) if last >= now => (last, number + 1),
        _ => (now, 0),
    };
    format!("{begin}{seconds:010}-{number:03}")
}

/// Removes what a process left that was killed during a write.
fn remove_leftovers(dir: &Path) {
    for path in entries(dir, "").into_iter().filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.ends_with(".tmp"))
    }) {
        remove(&path);
    }
}

fn entries(dir: &Path, begin: &str) -> Vec<PathBuf> {
    let Ok(listed) = fs::read_dir(dir) else {
        return Vec::new();
    };
    listed
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(begin))
        .map(|entry| entry.path())
        .collect()
}

/// Removes a file or a link; a folder only if it is empty, because its content is not ours to delete.
fn remove(path: &Path) {
    if fs::remove_file(path).is_err() {
        let _ = fs::remove_dir(path);
    }
}

/// What is at the path, if something other than a file: opening a pipe would block, and reading a device never ends.
fn not_a_file(path: &Path) -> Option<&'static str> {
    let kind = fs::metadata(path).ok()?.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => None,
        (_, true) => Some("is a folder"),
        _ => Some("is not a file"),
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    NoFile(&'static str),
    #[error("has {0} bytes, over the limit of {MAX_BYTES}")]
    TooLarge(u64),
    #[error("is not a state file of Heddle")]
    Foreign,
    #[error("has layout {0}, and this version of Heddle reads {LAYOUT}")]
    Layout(u8),
    #[error("is damaged: its length or checksum is wrong")]
    Torn,
}

fn read_checked(path: &Path) -> Result<Bytes, ReadError> {
    if let Some(what) = not_a_file(path) {
        return Err(ReadError::NoFile(what));
    }
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    // The first bytes are checked before the size, so that a foreign file of any size is reported as such and not read.
    let mut header = Vec::with_capacity(HEADER);
    (&mut file).take(HEADER as u64).read_to_end(&mut header)?;
    match header.strip_prefix(MAGIC).map(<[u8]>::first) {
        None => return Err(ReadError::Foreign),
        Some(None) => return Err(ReadError::Torn),
        Some(Some(&LAYOUT)) => {}
        Some(Some(other)) => return Err(ReadError::Layout(*other)),
    }
    if bytes > MAX_BYTES + HEADER as u64 {
        return Err(ReadError::TooLarge(bytes));
    }
    let length: [u8; 8] = header
        .get(8..16)
        .and_then(|b| b.try_into().ok())
        .ok_or(ReadError::Torn)?;
    let sum = header.get(16..HEADER).ok_or(ReadError::Torn)?;
    let length = u64::from_le_bytes(length);
    if length.checked_add(HEADER as u64) != Some(bytes) {
        return Err(ReadError::Torn);
    }
    let mut value = Vec::new();
    file.take(length + 1).read_to_end(&mut value)?;
    if value.len() as u64 != length || Sha256::digest(&value).as_slice() != sum {
        return Err(ReadError::Torn);
    }
    Ok(value.into())
}

#[cfg(test)]
mod tests;
