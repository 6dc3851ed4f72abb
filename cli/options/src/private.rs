//! Files and folders that only the user who runs the process can access, whatever the umask: nobody else may read or
//! change the state of a mesh. Input: paths. The content is not known here.

use std::{
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io,
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::Path,
};

const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// The permission bits of the group and of others.
const OTHERS_MODE: u32 = 0o077;
/// A folder with this bit (/tmp) is shared on purpose.
const STICKY: u32 = 0o1000;

/// Options to open or create a file; a created file is private.
#[must_use]
pub fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(FILE_MODE);
    options
}

/// Creates a folder and its missing parents. Created folders are private, existing ones are not changed.
///
/// # Errors
/// Those of the file system.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(path)
}

/// Removes the access of others from a file or folder of this user. Shared folders and those of other users are not
/// changed.
///
/// # Errors
/// Those of the file system.
pub fn make_private(path: &Path) -> io::Result<()> {
    let found = fs::metadata(path)?;
    let is_own = found.uid() == rustix::process::geteuid().as_raw();
    let mode = found.mode();
    if !is_own || mode & STICKY != 0 || mode & OTHERS_MODE == 0 {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 & !OTHERS_MODE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    /// Issue 10, D3.
    #[test]
    fn what_others_may_read_is_tightened_unless_it_is_shared() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("a/b");
        create_private_dir(&made).unwrap();
        assert_eq!((mode(&made), mode(made.parent().unwrap())), (0o700, 0o700));
        let file = made.join("file");
        let mut options = private_file();
        options.create(true).write(true).open(&file).unwrap();
        assert_eq!(mode(&file), 0o600);
        for (path, before, after) in [
            (&file, 0o666, 0o600),
            (&file, 0o400, 0o400),
            (&made, 0o755, 0o700),
            (&made, 0o1777, 0o1777),
        ] {
            fs::set_permissions(path, Permissions::from_mode(before)).unwrap();
            make_private(path).unwrap();
            assert_eq!(mode(path), after, "{before:o}");
        }
    }
}
