//! Concurrent writers, through one client of the store and through two (invariants 2 and 3).

use super::{Compare, Engine, Op, Txn, get, put};

pub(super) async fn one_of_many_wins(engine: &Engine) {
    let at = put(&*engine.store, "rivals", "0").await;
    let rivals: Vec<_> = (0..50)
        .map(|rival| {
            let store = engine.by_turns(rival);
            tokio::spawn(async move {
                let compare = vec![Compare::unchanged("rivals", at)];
                let then = vec![Op::put("rivals", rival.to_string())];
                store
                    .txn(Txn {
                        compare,
                        then,
                        ..Txn::default()
                    })
                    .await
                    .unwrap()
                    .succeeded
            })
        })
        .collect();
    let mut winners = 0;
    for rival in rivals {
        winners += u32::from(rival.await.unwrap());
    }
    assert_eq!(winners, 1);
}

/// A counter that many writers increment by compare-and-set counts every success, whichever client they use.
pub(super) async fn take_turns(engine: &Engine) {
    const EACH: u32 = 10;
    put(&*engine.store, "turns", "0").await;
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let store = engine.by_turns(writer);
            tokio::spawn(async move {
                let mut raised = 0;
                while raised < EACH {
                    let held = get(&*store, "turns").await.unwrap();
                    let count: u32 = std::str::from_utf8(&held.value).unwrap().parse().unwrap();
                    let txn = Txn {
                        compare: vec![Compare::unchanged("turns", held.mod_revision)],
                        then: vec![Op::put("turns", (count + 1).to_string())],
                        ..Txn::default()
                    };
                    raised += u32::from(store.txn(txn).await.unwrap().succeeded);
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    for store in [&engine.store, &engine.other] {
        assert_eq!(get(&**store, "turns").await.unwrap().value, "40");
    }
}
