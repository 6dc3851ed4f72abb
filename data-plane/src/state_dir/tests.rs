use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::Command,
    time::Duration,
};

use super::{
    HEADER, MAX_BAD_FILES, MAX_BYTES, StateDir, StateDirError, StateWriter, entries, keep::Change,
};

fn asides(dir: &Path, name: &str) -> usize {
    entries(dir, &format!("{name}.bad-")).len()
}

#[test]
fn values_come_back() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("made/on/demand");
    let dir = StateDir::open(&path).unwrap();
    assert_eq!(dir.read("x"), None);
    dir.write("x", b"one").unwrap();
    dir.write("x", b"two").unwrap();
    assert_eq!(dir.read("x").unwrap(), "two");
    dir.write("empty", b"").unwrap();
    assert_eq!(dir.read("empty").unwrap(), "");
    assert_eq!(asides(&path, "") + asides(&path, "x"), 0);
}

/// Cut at every length, changed at every byte, lengthened: only the complete file is trusted, and the bad one is kept.
#[test]
fn a_file_mangled_at_any_byte_is_set_aside() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    dir.write("x", b"value").unwrap();
    let file = temp.path().join("x");
    let whole = fs::read(&file).unwrap();
    assert_eq!(whole.len(), HEADER + 5);
    let cut = (0..whole.len()).map(|at| whole[..at].to_vec());
    let flipped = (0..whole.len() * 8).map(|bit| {
        let mut bad = whole.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        bad
    });
    let longer = std::iter::once([&whole[..], b"!"].concat());
    for (index, bad) in cut.chain(flipped).chain(longer).enumerate() {
        fs::write(&file, bad).unwrap();
        assert_eq!(dir.read("x"), None, "case {index}");
        assert!(!file.exists(), "case {index} was left in place");
    }
    assert_eq!(
        asides(temp.path(), "x"),
        MAX_BAD_FILES,
        "the newest few are kept"
    );
    fs::write(&file, &whole).unwrap();
    assert_eq!(dir.read("x").unwrap(), "value");
}

#[test]
fn whatever_lies_in_a_files_place_is_set_aside_and_written_over() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let at = |name: &str| temp.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder/inside"), "somebody's").unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(at("pipe"))
            .status()
            .unwrap()
            .success()
    );
    symlink("/dev/zero", at("endless")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    fs::write(at("foreign"), "not ours").unwrap();
    fs::write(at("newer"), b"heddle\0\x02 and what a later version writes").unwrap();
    let sparse = fs::File::create(at("huge")).unwrap();
    std::io::Write::write_all(&mut &sparse, b"heddle\0\x01").unwrap();
    sparse.set_len(MAX_BYTES * 4).unwrap();
    for name in [
        "folder", "pipe", "endless", "dangling", "foreign", "newer", "huge",
    ] {
        assert_eq!(dir.read(name), None, "{name}");
        let aside = usize::from(name != "dangling");
        assert_eq!(asides(temp.path(), name), aside, "{name}");
        dir.write(name, b"ours").unwrap();
        assert_eq!(dir.read(name).unwrap(), "ours", "{name}");
    }
    // They may also appear at run time, even at the path of the temporary file.
    fs::create_dir(at("folder.tmp")).unwrap();
    fs::remove_file(at("folder")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    dir.write("folder", b"ours").unwrap();
    assert_eq!(dir.read("folder").unwrap(), "ours");
    let kept = entries(temp.path(), "folder.bad-");
    let inside = kept.iter().any(|kept| kept.join("inside").exists());
    assert!(inside, "somebody's file is deleted: {kept:?}");
}

#[test]
fn what_a_killed_process_left_is_cleared() {
    let temp = tempfile::tempdir().unwrap();
    fs::write(temp.path().join("x.tmp"), "half").unwrap();
    fs::create_dir(temp.path().join("y.tmp")).unwrap();
    fs::create_dir(temp.path().join("lock")).unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    assert!(!temp.path().join("x.tmp").exists() && !temp.path().join("y.tmp").exists());
    dir.write("x", b"1").unwrap();
    dir.write("y", b"2").unwrap();
    assert_eq!(
        (dir.read("x").unwrap(), dir.read("y").unwrap()),
        ("1".into(), "2".into())
    );
}

#[test]
fn a_write_that_fails_keeps_the_old_value_and_works_again_later() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("state");
    let dir = StateDir::open(&path).unwrap();
    dir.write("x", b"old").unwrap();
    // The folder is moved away or read-only; this has the same effect for root.
    let moved = temp.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    assert!(dir.write("x", b"new").is_err());
    assert_eq!(dir.read("x"), None);
    fs::rename(&moved, &path).unwrap();
    assert_eq!(dir.read("x").unwrap(), "old");
    fs::set_permissions(path.join("x"), fs::Permissions::from_mode(0o000)).unwrap();
    dir.write("x", b"new").unwrap();
    assert_eq!(dir.read("x").unwrap(), "new");
}

#[tokio::test]
async fn a_keeper_says_when_to_try_again_and_goes_on_when_it_can() {
    let temp = tempfile::tempdir().unwrap();
    let (path, moved) = (temp.path().join("state"), temp.path().join("moved"));
    let dir = StateDir::open(&path).unwrap();
    let mut keeper = StateWriter::new(dir.clone(), "x", Duration::ZERO, "a test begins anew");
    keeper.again = Duration::ZERO;
    assert!(keeper.write(|| b"old".to_vec()).await);
    fs::rename(&path, &moved).unwrap();
    assert!(!keeper.write(|| b"new".to_vec()).await);
    assert!(!keeper.write(|| b"newer".to_vec()).await);
    fs::rename(&moved, &path).unwrap();
    assert_eq!(dir.read("x").unwrap(), "old");
    assert!(keeper.write(|| b"newest".to_vec()).await);
    assert_eq!(dir.read("x").unwrap(), "newest");
}

/// Issue 10, D4: a proxy that stops on a full disk does not report that the disk has space again.
#[tokio::test]
async fn a_keeper_reports_that_it_can_write_again_only_after_it_has_written() {
    let temp = tempfile::tempdir().unwrap();
    let (path, moved) = (temp.path().join("state"), temp.path().join("moved"));
    let dir = StateDir::open(&path).unwrap();
    let mut keeper = StateWriter::new(dir.clone(), "x", Duration::ZERO, "a test begins anew");
    keeper.again = Duration::ZERO;
    assert_eq!(keeper.change(false), Some(Change::Failing));
    fs::rename(&path, &moved).unwrap();
    assert!(!keeper.write(|| b"new".to_vec()).await);
    assert_eq!(keeper.change(false), None, "it is logged once");
    assert_eq!(keeper.change(true), Some(Change::Restored));
    dir.release();
    assert_eq!(keeper.change(true), None, "nothing was written");
}

#[test]
fn a_value_too_large_and_a_device_for_a_temporary_file_do_no_harm() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    dir.write("x", b"old").unwrap();
    // A disk that stays full: every write to it fails.
    symlink("/dev/full", temp.path().join("y.tmp")).unwrap();
    dir.write("y", b"new").unwrap();
    assert_eq!(
        dir.read("y").unwrap(),
        "new",
        "a device is no temporary file"
    );
    let too_large = vec![0; usize::try_from(MAX_BYTES).unwrap() + 1];
    assert!(dir.write("x", &too_large).is_err());
    assert_eq!(dir.read("x").unwrap(), "old");
    assert!(entries(temp.path(), "x.tmp").is_empty());
}

#[test]
fn two_writers_of_one_name_leave_one_whole_value() {
    let temp = tempfile::tempdir().unwrap();
    let dir = StateDir::open(temp.path()).unwrap();
    let writers: Vec<_> = (0..4_u8)
        .map(|n| {
            let dir = dir.clone();
            std::thread::spawn(move || {
                for _ in 0..20 {
                    dir.write("x", &vec![n; 10_000 + usize::from(n)]).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    let value = dir.read("x").unwrap();
    assert!(value.iter().all(|b| *b == value[0]), "two values mixed");
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
fn a_released_dir_is_free_for_the_next_process() {
    let temp = tempfile::tempdir().unwrap();
    let first = StateDir::open(temp.path()).unwrap();
    first.release();
    assert!(StateDir::open(temp.path()).is_ok());
}

#[test]
fn an_unusable_dir_is_named_by_its_flag() {
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

/// Issue 10, D3.
#[test]
fn everything_in_it_is_this_users_alone() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("state");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    StateDir::open(&path).unwrap().write("x", b"1").unwrap();
    assert_eq!(mode(&path), 0o700);
    // As an earlier version left them.
    for (name, open) in [("", 0o755), ("lock", 0o644), ("x", 0o666)] {
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(open)).unwrap();
    }
    let dir = StateDir::open(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    for name in ["lock", "x"] {
        assert_eq!(mode(&path.join(name)), 0o600, "{name}");
    }
    dir.write("x", b"2").unwrap();
    assert_eq!(mode(&path.join("x")), 0o600);
}
