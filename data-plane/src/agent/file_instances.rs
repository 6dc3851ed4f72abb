//! The instances that files of `--services-dir` name, as the agent takes them: a file's content comes in, instances join,
//! change and drain. Reading the files is `services_dir`'s.

use std::{path::Path, time::Instant};

use tracing::info;

use super::{
    Agent,
    instance_table::{Filed, Leaving, Refused},
    validate::Checked,
};

/// What became of the instances that a file names.
#[derive(Debug, Default)]
pub struct FileSet {
    pub leaving: Vec<Leaving>,
    pub left_out: Vec<Refused>,
}

impl Agent {
    /// The file now names exactly these; what it does not name any more drains. Those whose address is that of one of the
    /// proxy's listeners are left out.
    ///
    /// # Errors
    /// One of them is somebody else's.
    pub fn set_file(&self, file: &Path, wanted: Vec<Checked>) -> Result<FileSet, Refused> {
        let mut left_out = Vec::new();
        let mut named = Vec::new();
        for checked in wanted {
            match self.own_listener(&checked) {
                Some(refused) => left_out.push(refused),
                None => named.push((checked, uuid::Uuid::new_v4().to_string().into())),
            }
        }
        let Filed {
            joined,
            unchanged,
            leaving,
        } = self.edit(|table| table.set_file(file, named, Instant::now()))?;
        for one in joined {
            info!(instance = %one.key, address = %one.address, file = %file.display(), "taken from file");
            self.start(one);
        }
        // Who writes a file anew may have changed the programs that it names as well.
        for registration in unchanged {
            self.ask_again(&registration);
        }
        Ok(FileSet { leaving, left_out })
    }

    /// The file is no longer there: its instances drain.
    pub fn file_gone(&self, file: &Path) -> Vec<Leaving> {
        self.edit(|table| table.file_gone(file, Instant::now()))
    }

    /// Whether instances of this file are in.
    #[must_use]
    pub fn has_file(&self, file: &Path) -> bool {
        self.table().has_file(file)
    }
}
