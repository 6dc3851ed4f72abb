//! Applies the instances that a file of `--services-dir` names to the agent: new ones join, changed ones are replaced,
//! missing ones drain. `services_dir` reads the files.

use std::{collections::BTreeMap, path::Path, time::Instant};

use tracing::info;

use super::{
    Agent,
    instance_table::{FileUpdateResult, Leaving, Refused},
    lock,
    validate::Checked,
};

/// The result of applying a file.
#[derive(Debug, Default)]
pub struct FileSet {
    pub leaving: Vec<Leaving>,
    pub left_out: Vec<Refused>,
}

impl Agent {
    /// Sets the instances of `file` to exactly these; instances that it no longer names drain. An instance whose
    /// address is that of one of the proxy's listeners is left out.
    ///
    /// # Errors
    /// Another file or a registration already has one of the instances, or the node is full.
    pub fn set_file(&self, file: &Path, wanted: Vec<Checked>) -> Result<FileSet, Refused> {
        let mut left_out = Vec::new();
        let mut named = Vec::new();
        for checked in wanted {
            match self.own_listener(&checked) {
                Some(refused) => left_out.push(refused),
                None => named.push((checked, uuid::Uuid::new_v4().to_string().into())),
            }
        }
        let FileUpdateResult {
            joined,
            unchanged,
            leaving,
        } = self.edit(|table| table.set_file(file, named, Instant::now()))?;
        for one in joined {
            info!(instance = %one.key, address = %one.address, file = %file.display(), "registered from its services file");
            self.start(one);
        }
        // Whoever rewrites a file may also have changed the programs that it names.
        for registration in unchanged {
            self.reflect_again(&registration);
        }
        Ok(FileSet { leaving, left_out })
    }

    /// The file was deleted: its instances drain.
    pub fn file_gone(&self, file: &Path) -> Vec<Leaving> {
        self.edit(|table| table.file_gone(file, Instant::now()))
    }

    /// What is wrong with a file, in one sentence; `None`: nothing.
    pub(super) fn set_file_fault(&self, file: &Path, fault: Option<String>) {
        let mut faults = lock(&self.inner.file_faults);
        match fault {
            Some(fault) => faults.insert(file.to_owned(), fault),
            None => faults.remove(file),
        };
    }

    /// The files with faults, and what is wrong with each.
    #[must_use]
    pub fn file_faults(&self) -> BTreeMap<String, String> {
        let faults = lock(&self.inner.file_faults);
        let shown = faults.iter();
        shown
            .map(|(file, fault)| (file.display().to_string(), fault.clone()))
            .collect()
    }

    /// Whether the agent has instances of this file.
    #[must_use]
    pub fn has_file(&self, file: &Path) -> bool {
        self.table().has_file(file)
    }
}
