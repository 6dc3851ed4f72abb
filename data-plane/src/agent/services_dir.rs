//! Watches the folder of `--services-dir`, twice a second, and gives each file's last good content to the agent. A file
//! with a mistake keeps its last good content and costs one line in the log. An instance that cannot be taken is left
//! out alone, also with one line. The instances of a deleted file leave. The descriptor file that a file names is
//! watched too. `services_file` defines the format.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tracing::{error, info};

use super::{Agent, descriptor_file, removal::Remover, services_file};

/// Between two polls. Polling works on every kind of file system and with every way to replace a file.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The most files in the folder.
const MAX_FILES: usize = 1000;

/// Shows whether a file has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

/// See the module documentation.
pub struct ServicesDir {
    dir: PathBuf,
    agent: Agent,
    remover: Remover,
    is_own: fn(IpAddr) -> bool,
    files: BTreeMap<PathBuf, Known>,
    /// The last fault of the folder itself, so that it is logged once.
    dir_fault: Option<String>,
}

struct Known {
    /// Of the content that was read, good or bad.
    mark: Mark,
    text: String,
    /// The descriptor file that it names, and its mark when it was read.
    descriptors: Option<(PathBuf, Option<Mark>)>,
    /// The last fault, so that it is logged once. A file with a fault is read again at every poll, because its
    /// cause may lie elsewhere.
    fault: Option<Fault>,
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// The file's present content is not used.
    Mistake(String),
    /// These of its instances are left out, the others are used.
    LeftOut(Vec<String>),
}

impl ServicesDir {
    #[must_use]
    pub fn new(dir: &Path, agent: Agent, remover: Remover, is_own: fn(IpAddr) -> bool) -> Self {
        Self {
            dir: dir.to_owned(),
            agent,
            remover,
            is_own,
            files: BTreeMap::new(),
            dir_fault: None,
        }
    }

    /// Polls until the process ends.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            self.poll();
        }
    }

    /// Polls everything once. Reading small files from a local disk is not worth a thread.
    pub fn poll(&mut self) {
        let listed = match list(&self.dir) {
            Ok(listed) => {
                self.dir_fault = None;
                listed
            }
            Err(why) => {
                // A folder that cannot be read is no reason to drop its instances.
                let fault = format!(
                    "{}: {why}; its instances stay as they are",
                    self.dir.display()
                );
                if self.dir_fault.as_ref() != Some(&fault) {
                    error!("--services-dir {fault}");
                    self.dir_fault = Some(fault);
                }
                return;
            }
        };
        let gone: Vec<_> = self
            .files
            .keys()
            .filter(|path| !listed.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            info!(file = %path.display(), "the file is gone: its instances are drained");
            self.files.remove(&path);
            self.agent.set_file_fault(&path, None);
            self.remover.of_file(self.agent.file_gone(&path));
        }
        for (path, mark) in listed {
            let seen = self.files.get(&path);
            let same = |known: &Known| {
                let descriptors = known.descriptors.as_ref();
                known.mark == mark
                    && known.fault.is_none()
                    && descriptors.is_none_or(|(path, mark)| mark_of(path) == *mark)
            };
            if !seen.is_some_and(same) {
                self.read(&path, mark);
            }
        }
    }

    fn read(&mut self, path: &Path, mark: Mark) {
        let before = self.files.remove(path);
        let mut descriptors = None;
        let (text, fault) = match read_bounded(path, mark.bytes) {
            Ok(text) => {
                let fault = self.apply(path, &text, &mut descriptors).err();
                (text, fault)
            }
            Err(why) => (String::new(), Some(Fault::Mistake(why))),
        };
        if let Some(fault) = &fault {
            let again = before
                .as_ref()
                .is_some_and(|b| b.fault.as_ref() == Some(fault) && b.text == text);
            if !again {
                error!("{}: {}", path.display(), self.sentence(path, fault));
            }
        }
        let sentence = fault.as_ref().map(|fault| self.sentence(path, fault));
        self.agent.set_file_fault(path, sentence);
        let known = Known {
            mark,
            text,
            descriptors,
            fault,
        };
        self.files.insert(path.to_owned(), known);
    }

    fn sentence(&self, path: &Path, fault: &Fault) -> String {
        match fault {
            Fault::Mistake(why) => format!("{why}; {}", self.stays(path)),
            Fault::LeftOut(which) => {
                let others = if self.agent.has_file(path) {
                    "the other instances are in use"
                } else {
                    "none of its instances is in use"
                };
                format!("{}; {others}", which.join("; "))
            }
        }
    }

    fn apply(
        &self,
        path: &Path,
        text: &str,
        descriptors: &mut Option<(PathBuf, Option<Mark>)>,
    ) -> Result<(), Fault> {
        let mut read = |named: &str| {
            let file = path.parent().unwrap_or(&self.dir).join(named);
            // Marked before reading: the next poll then sees what is written meanwhile.
            *descriptors = Some((file.clone(), mark_of(&file)));
            descriptor_file::read(&file)
        };
        let parsed = services_file::parse(text, &self.is_own, &mut read).map_err(Fault::Mistake)?;
        let set = self
            .agent
            .set_file(path, parsed.instances)
            .map_err(|refused| Fault::Mistake(format!("instances: {refused}")))?;
        self.remover.of_file(set.leaving);
        let mut left_out = parsed.left_out;
        let own = set.left_out.iter();
        left_out.extend(own.map(|refused| format!("instances: {refused}")));
        if left_out.is_empty() {
            Ok(())
        } else {
            Err(Fault::LeftOut(left_out))
        }
    }

    fn stays(&self, path: &Path) -> &'static str {
        if self.agent.has_file(path) {
            "its last good content stays"
        } else {
            "none of its instances is in use"
        }
    }
}

fn list(dir: &Path) -> Result<BTreeMap<PathBuf, Mark>, String> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|e| e.to_string())? {
        let path = entry.map_err(|e| e.to_string())?.path();
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        // Editors keep half-written copies under hidden names.
        if !yaml || name.starts_with('.') {
            continue;
        }
        match mark(&path) {
            Ok(Some(mark)) => {
                out.insert(path, mark);
            }
            // Removed between the two calls.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(None) | Err(_) => {}
        }
        if out.len() > MAX_FILES {
            return Err(format!(
                "more than {MAX_FILES} files: use one file per service"
            ));
        }
    }
    Ok(out)
}

fn mark(path: &Path) -> io::Result<Option<Mark>> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::metadata(path)?;
    Ok(meta.is_file().then(|| Mark {
        modified: meta.modified().ok(),
        bytes: meta.len(),
        inode: meta.ino(),
    }))
}

/// `None`: there is no such file now.
fn mark_of(path: &Path) -> Option<Mark> {
    mark(path).ok().flatten()
}

fn read_bounded(path: &Path, bytes: u64) -> Result<String, String> {
    if bytes > services_file::MAX_FILE_BYTES {
        return Err(format!(
            "has {bytes} bytes, over the limit of 1 MiB: split it into several files"
        ));
    }
    fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))
}
