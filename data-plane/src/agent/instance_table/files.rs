//! Instances that files of `--services-dir` name: they join with their file, change with it, and drain when the file no
//! longer names them or is deleted. Input: the current content of a file. `services_dir` reads the files.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Entry, FileUpdateResult, InstanceTable, Leaving, MAX_INSTANCES, Refused, Source};
use crate::agent::{key::InstanceKey, removal_log::Cause, validate::Checked};

impl InstanceTable {
    /// Sets the instances of `file` to exactly these. Unchanged ones stay as they are; those that it no longer names
    /// drain.
    ///
    /// # Errors
    /// Another file or a registration has one of them, or the node is full: nothing is changed.
    pub fn set_file(
        &mut self,
        file: &Path,
        wanted: Vec<(Checked, Arc<str>)>,
        now: Instant,
    ) -> Result<FileUpdateResult, Refused> {
        let keys: BTreeSet<_> = wanted
            .iter()
            .map(|(checked, _)| InstanceKey::of(&checked.instance))
            .collect();
        for key in &keys {
            match self.entries.get(key).map(|entry| &entry.source) {
                Some(Source::File(other)) if other != file => {
                    return Err(Refused::OwnedByFile {
                        key: key.clone(),
                        file: other.clone(),
                    });
                }
                Some(Source::Registered) => {
                    return Err(Refused::OwnedByRegistration { key: key.clone() });
                }
                _ => {}
            }
        }
        let others = self
            .entries
            .values()
            .filter(|entry| !is_of(entry, file))
            .count();
        if others + keys.len() > MAX_INSTANCES {
            return Err(Refused::Full);
        }
        let gone: Vec<_> = self
            .entries
            .iter()
            .filter(|(k, e)| is_of(e, file) && !keys.contains(*k))
            .map(|(k, _)| k.clone())
            .collect();
        let mut filed = FileUpdateResult {
            leaving: gone
                .iter()
                .filter_map(|key| self.drain_key(key, None, now, Duration::ZERO))
                .collect(),
            ..FileUpdateResult::default()
        };
        for (checked, registration) in wanted {
            let key = InstanceKey::of(&checked.instance);
            let same = self.entries.get(&key).filter(|entry| {
                is_of(entry, file)
                    && entry.view.instance == checked.instance
                    && entry.declared.schema == checked.schema
            });
            if let Some(same) = same {
                filed.unchanged.push(Arc::clone(&same.view.registration));
                continue;
            }
            let source = Source::File(file.to_owned());
            let joined = self.insert(key, checked, source, &registration, None);
            filed.joined.push(joined);
        }
        Ok(filed)
    }

    /// The file was deleted: its instances drain, with the file as the cause because nobody edited them out.
    pub fn file_gone(&mut self, file: &Path, now: Instant) -> Vec<Leaving> {
        let gone = self.entries.iter().filter(|(_, entry)| is_of(entry, file));
        let gone: Vec<_> = gone.map(|(key, _)| key.clone()).collect();
        let cause = Cause::FileGone(file.to_owned());
        gone.iter()
            .filter_map(|key| self.drain_key(key, Some(cause.clone()), now, Duration::ZERO))
            .collect()
    }

    /// Whether the table has instances of this file.
    #[must_use]
    pub fn has_file(&self, file: &Path) -> bool {
        self.entries.values().any(|entry| is_of(entry, file))
    }
}

fn is_of(entry: &Entry, file: &Path) -> bool {
    matches!(&entry.source, Source::File(it) if it == file)
}
