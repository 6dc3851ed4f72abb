use std::{fs, io::Write as _, process, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{Embedded, EmbeddedOptions};
use crate::store::{Op, Revision, Store, StoreError, Txn, conformance};

mod faults;

fn options(folder: &tempfile::TempDir) -> EmbeddedOptions {
    EmbeddedOptions::new(folder.path().join("data/control.redb"))
}

fn value(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn error_of(options: &EmbeddedOptions) -> StoreError {
    Embedded::open(options).err().expect("it must not open")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_invariants() {
    // Long enough for the suite's reads at earlier revisions, and short enough to be compacted soon.
    const HISTORY: u64 = 2000;
    let folder = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions {
        max_history: Some(usize::try_from(HISTORY).unwrap()),
        ..options(&folder)
    };
    let store = Arc::new(Embedded::open(&options).unwrap());
    let shortest_ttl = Duration::from_secs(2);
    conformance::all(&conformance::Engine {
        other: store.clone(),
        store,
        forget: conformance::Forget::After(HISTORY),
        shortest_ttl,
    })
    .await;
}

#[tokio::test]
async fn a_new_store_is_empty_at_revision_1() {
    let folder = tempfile::tempdir().unwrap();
    let store = Embedded::open(&options(&folder)).unwrap();
    let range = store.range("", None).await.unwrap();
    assert_eq!((range.revision, range.items.len()), (Revision(1), 0));
    let names: Vec<_> = fs::read_dir(folder.path().join("data")).unwrap().collect();
    assert_eq!(names.len(), 1, "the draft of the file is gone: {names:?}");
}

#[tokio::test]
async fn reopened_it_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let store = Embedded::open(&options).unwrap();
    let lease = store.grant(Duration::from_secs(600)).await.unwrap();
    store.put("a", value("1")).await.unwrap();
    store.put("b", value("2")).await.unwrap();
    store.delete("a").await.unwrap();
    let then = vec![Op::put_leased("c", "3", lease)];
    let last = store
        .txn(Txn {
            then,
            ..Txn::default()
        })
        .await
        .unwrap()
        .revision;
    let before = store.range("", None).await.unwrap();
    drop(store);

    let store = Embedded::open(&options).unwrap();
    assert_eq!(store.range("", None).await.unwrap(), before);
    let mut watch = store.watch("", last.next()).await.unwrap();
    let error = store.watch("", last).await.err().unwrap();
    assert_eq!(
        error,
        StoreError::Compacted {
            requested: last,
            first: last.next()
        }
    );
    store.keep_alive(lease).await.unwrap();
    assert_ne!(store.grant(Duration::from_secs(1)).await.unwrap(), lease);
    store.revoke(lease).await.unwrap();
    assert_eq!(&*watch.next().await.unwrap().unwrap().events[0].key, "c");
    assert_eq!(store.range("", None).await.unwrap().revision, last.next());
}

#[tokio::test]
async fn a_lease_that_ran_out_while_it_was_closed_has_its_ttl_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let store = Embedded::open(&options).unwrap();
    let ttl = Duration::from_secs(2);
    let lease = store.grant(ttl).await.unwrap();
    let then = vec![Op::put_leased("a", "", lease)];
    let at = store
        .txn(Txn {
            then,
            ..Txn::default()
        })
        .await
        .unwrap()
        .revision;
    drop(store);
    std::thread::sleep(ttl + ttl / 10); // time itself is what is tested
    let store = Embedded::open(&options).unwrap();
    let mut watch = store.watch("a", at.next()).await.unwrap();
    let back = store.get("a").await.unwrap();
    assert!(
        back.is_some(),
        "it must not be gone before anybody could renew it"
    );
    assert!(watch.next().await.unwrap().unwrap().events[0].now.is_none());
}

#[tokio::test]
async fn a_second_writer_gets_the_place_of_the_clash() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let store = Embedded::open(&options).unwrap();
    let text = error_of(&options).to_string();
    let path = options.path.display().to_string();
    assert!(
        text.contains(&path) && text.contains("in use by another process"),
        "{text}"
    );
    assert!(
        text.contains("--store embedded:PATH") && !text.contains('\n'),
        "{text}"
    );
    store.put("a", value("still works")).await.unwrap();
    drop(store);
    Embedded::open(&options).unwrap();
}

#[test]
fn what_is_no_store_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions::new(folder.path().join("file"));
    let text = "this is a letter, not a store\n".repeat(1000);
    fs::write(&options.path, &text).unwrap();
    assert!(matches!(error_of(&options), StoreError::Foreign { .. }));
    assert_eq!(fs::read_to_string(&options.path).unwrap(), text);

    fs::remove_file(&options.path).unwrap();
    let other = redb::Database::create(&options.path).unwrap();
    let write = other.begin_write().unwrap();
    let table = redb::TableDefinition::<u64, u64>::new("somebody else's");
    write.open_table(table).unwrap().insert(1, 1).unwrap();
    write.commit().unwrap();
    drop(other);
    let error = error_of(&options);
    assert!(matches!(error, StoreError::Foreign { .. }), "{error}");

    let error = error_of(&EmbeddedOptions::new(folder.path()));
    assert!(error.to_string().contains("it is a directory"), "{error}");
    let error = error_of(&EmbeddedOptions::new("/proc/heddle/control.redb"));
    assert!(matches!(error, StoreError::Open { .. }), "{error}");
}

#[test]
fn a_damaged_file_ends_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    drop(Embedded::open(&options).unwrap());
    let whole = fs::read(&options.path).unwrap();
    fs::write(&options.path, &whole[..whole.len() / 3]).unwrap();
    let error = error_of(&options);
    assert!(
        matches!(
            error,
            StoreError::Corrupt { .. } | StoreError::Foreign { .. }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("move"), "{error}");

    let mut torn = whole;
    torn[16..].fill(0xa5);
    fs::write(&options.path, &torn).unwrap();
    let error = error_of(&options);
    assert!(
        matches!(
            error,
            StoreError::Corrupt { .. } | StoreError::Foreign { .. }
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_who_wait_share_a_commit() {
    const WRITERS: u64 = 64;
    const EACH: u64 = 50;
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(&options(&folder)).unwrap());
    let before = store.counters();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for n in 0..EACH {
                    let at = store
                        .put(&format!("k/{writer}"), value(&n.to_string()))
                        .await
                        .unwrap();
                    let read = store.get(&format!("k/{writer}")).await.unwrap().unwrap();
                    assert_eq!((read.mod_revision, read.value), (at, value(&n.to_string())));
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let after = store.counters();
    assert_eq!(after.changes - before.changes, WRITERS * EACH);
    let commits = after.commits - before.commits;
    assert!(commits >= EACH, "each writer waits for its own: {commits}");
    assert!(commits <= WRITERS * EACH / 4, "they share: {commits}");
    assert!(after.fsyncs - before.fsyncs >= commits, "{after:?}");
    assert!(after.fsyncs - before.fsyncs <= commits * 2 + 2, "{after:?}");
}

/// The child of the test below: writes until it is killed, and prints what was answered.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(path) = std::env::var_os("HEDDLE_TEST_STORE") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let store = Embedded::open(&EmbeddedOptions::new(path)).unwrap();
    runtime.block_on(async {
        for n in 0_u64.. {
            let text = n.to_string();
            let then = vec![
                Op::put("left", text.clone()),
                Op::put("right", text.clone()),
            ];
            store
                .txn(Txn {
                    then,
                    ..Txn::default()
                })
                .await
                .unwrap();
            let mut stdout = std::io::stdout().lock();
            writeln!(stdout, "\nanswered {n}").unwrap();
            stdout.flush().unwrap();
        }
    });
}

#[tokio::test]
async fn killed_in_the_middle_of_writes_it_has_every_answered_one() {
    use std::io::{BufRead as _, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let mut revision = Revision(0);
    for round in 0..5_u64 {
        let mut child = process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("store::embedded::tests::child_that_writes_until_it_is_killed")
            .env("HEDDLE_TEST_STORE", &options.path)
            .stdout(process::Stdio::piped())
            .stderr(process::Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut answered = None;
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("answered ") {
                let n: u64 = n.parse().unwrap();
                answered = Some(n);
                if n == 5 + 7 * round {
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        let answered = answered.expect("the child wrote nothing");
        let store = Embedded::open(&options).unwrap();
        let left = store.get("left").await.unwrap().unwrap();
        let right = store.get("right").await.unwrap().unwrap();
        assert_eq!(
            (&left.value, left.mod_revision),
            (&right.value, right.mod_revision)
        );
        let held: u64 = std::str::from_utf8(&left.value).unwrap().parse().unwrap();
        assert!(held >= answered, "{answered} was answered, {held} is there");
        assert!(left.mod_revision > revision, "revisions go on");
        revision = left.mod_revision;
    }
}

/// Issue 10, D3.
#[test]
fn the_store_is_this_users_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let options = options(&folder);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    drop(Embedded::open(&options).unwrap());
    assert_eq!(mode(&options.path), 0o600);
    assert_eq!(mode(options.path.parent().unwrap()), 0o700);
    // With the permissions that an earlier version gave it.
    fs::set_permissions(&options.path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(Embedded::open(&options).unwrap());
    assert_eq!(mode(&options.path), 0o600);
}
