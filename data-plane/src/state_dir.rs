//! The state dir: what a proxy keeps for its next start. Whole values go in and come out; each is written to a
//! temporary file, synced and renamed, with a checksum, so that a power loss leaves the old or the new one. A torn or
//! foreign file is set aside and told, never trusted. What the values mean is the rooms' that keep them.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tracing::warn;

/// Begins every file; the last byte is the version of this layout.
const MAGIC: &[u8; 8] = b"heddle\0\x01";
const HEADER: usize = 8 + 8 + 32;
/// The most that is read back; nothing that is written comes near.
const MAX_BYTES: u64 = 512 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error("--state-dir {}: cannot be created: {source}; give a folder that this process may write", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("--state-dir {}: cannot be written: {source}; give a folder that this process may write", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("--state-dir {}: another proxy uses it: give each proxy its own", path.display())]
    InUse { path: PathBuf },
}

/// An open state dir, locked for this process. Clones are one.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: Arc<Path>,
    _lock: Arc<File>,
}

impl StateDir {
    /// Creates it if need be, and makes sure that it can be written and is nobody else's.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        fs::create_dir_all(path).map_err(|source| StateDirError::Create {
            path: path.to_owned(),
            source,
        })?;
        let write = |source| StateDirError::Write {
            path: path.to_owned(),
            source,
        };
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(write)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateDirError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(write(source)),
        }
        let dir = Self {
            path: path.into(),
            _lock: Arc::new(lock),
        };
        dir.write("probe", b"").map_err(write)?;
        fs::remove_file(path.join("probe")).map_err(write)?;
        Ok(dir)
    }

    /// Writes a value whole: after this returns it survives a power loss.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let target = self.path.join(name);
        let temporary = self.path.join(format!("{name}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(MAGIC)?;
        file.write_all(&(value.len() as u64).to_le_bytes())?;
        file.write_all(&Sha256::digest(value))?;
        file.write_all(value)?;
        file.sync_all()?;
        fs::rename(&temporary, &target)?;
        File::open(&self.path)?.sync_all()
    }

    /// The value as last written; `None` if there is none, or if it is not fit to be trusted (then it is set aside).
    #[must_use]
    pub fn read(&self, name: &str) -> Option<Bytes> {
        let path = self.path.join(name);
        match read_checked(&path) {
            Ok(value) => Some(value),
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.set_aside(name, &error.to_string());
                None
            }
        }
    }

    /// Renames a file that cannot be used, so that a person can look at it and the next write does not cover it.
    pub fn set_aside(&self, name: &str, why: &str) {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let path = self.path.join(name);
        let aside = self.path.join(format!("{name}.bad-{seconds}"));
        match fs::rename(&path, &aside) {
            Ok(()) => warn!(
                "{}: {why}; set aside as {} and going on without it",
                path.display(),
                aside.display()
            ),
            Err(error) => warn!("{}: {why}; going on without it ({error})", path.display()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("is not a state file of this version of Heddle")]
    Foreign,
    #[error("is torn: its length or checksum is wrong")]
    Torn,
}

fn read_checked(path: &Path) -> Result<Bytes, ReadError> {
    let file = File::open(path)?;
    let mut content = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut content)?;
    if !content.starts_with(MAGIC) {
        return Err(ReadError::Foreign);
    }
    let content = Bytes::from(content);
    let length: [u8; 8] = content
        .get(8..16)
        .and_then(|b| b.try_into().ok())
        .ok_or(ReadError::Torn)?;
    let sum = content.get(16..HEADER).ok_or(ReadError::Torn)?;
    let value = content.slice(HEADER..);
    if value.len() as u64 != u64::from_le_bytes(length) || Sha256::digest(&value).as_slice() != sum
    {
        return Err(ReadError::Torn);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::{StateDir, StateDirError};
    use std::fs;

    #[test]
    fn values_come_back_and_torn_ones_are_set_aside() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("made/on/demand");
        let dir = StateDir::open(&path).unwrap();
        assert_eq!(dir.read("x"), None);
        dir.write("x", b"one").unwrap();
        dir.write("x", b"two").unwrap();
        assert_eq!(dir.read("x").unwrap(), "two");

        let whole = fs::read(path.join("x")).unwrap();
        for (name, content) in [
            ("cut", whole[..whole.len() - 1].to_vec()),
            ("long", [&whole[..], b"!"].concat()),
            ("flipped", {
                let mut w = whole.clone();
                *w.last_mut().unwrap() ^= 1;
                w
            }),
            ("short", whole[..20].to_vec()),
            ("foreign", b"not ours".to_vec()),
            ("empty", Vec::new()),
        ] {
            fs::write(path.join(name), content).unwrap();
            assert_eq!(dir.read(name), None, "{name}");
            assert!(!path.join(name).exists(), "{name} was left in place");
            let aside = fs::read_dir(&path).unwrap().filter_map(Result::ok);
            let kept = aside
                .filter(|e| {
                    e.file_name()
                        .to_string_lossy()
                        .starts_with(&format!("{name}.bad-"))
                })
                .count();
            assert_eq!(kept, 1, "{name} was not kept for a person to look at");
        }
        assert_eq!(dir.read("x").unwrap(), "two");
    }

    #[test]
    fn one_proxy_per_dir() {
        let temp = tempfile::tempdir().unwrap();
        let first = StateDir::open(temp.path()).unwrap();
        assert!(matches!(
            StateDir::open(temp.path()),
            Err(StateDirError::InUse { .. })
        ));
        drop(first);
        assert!(StateDir::open(temp.path()).is_ok());
    }

    #[test]
    fn an_unusable_dir_is_told_by_its_flag() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateDir::open(&file.join("below")).unwrap_err().to_string();
        assert!(
            error.contains("--state-dir") && error.contains("file/below"),
            "{error}"
        );
        assert!(!error.contains('\n'));
    }
}
