use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use heddle_proto::{BEHIND, ERROR_DOMAIN};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Broken, ClientIdentity, Demand, LONGEST_BEHIND, Resources, XdsClient};
use crate::xds::{demand::Prefetch, schemas::Schemas, tests::NoCallers};

#[tokio::test]
async fn only_a_store_that_stays_behind_is_taken_for_a_new_one() {
    let (_, wanted) = Schemas::new();
    let asker = ClientIdentity {
        node: "a".into(),
        process_id: "p1".into(),
        region: String::new(),
        zone: String::new(),
    };
    let urls = vec!["http://127.0.0.1:1".into()];
    let (client, _) = XdsClient::new(
        asker,
        urls,
        Resources::default(),
        Demand::new(Prefetch::None, LONGEST_BEHIND, Instant::now()),
        Arc::default(),
        wanted,
        Arc::new(NoCallers),
    );
    let seen = || client.revision.load(Ordering::Relaxed);
    client.revision.store(9, Ordering::Relaxed);
    let mut since = None;
    client.note_behind(true, &mut since);
    assert_eq!(seen(), 9, "another replica may be up to date");
    let long_ago = Instant::now().checked_sub(LONGEST_BEHIND);
    since = long_ago;
    client.note_behind(false, &mut since);
    assert_eq!((since, seen()), (None, 9), "that is another trouble");
    since = long_ago;
    client.note_behind(true, &mut since);
    assert_eq!(seen(), 0);
}

/// Issue 10, D2: it was derived from the message of any failure.
#[test]
fn a_replica_that_is_behind_says_so_by_a_reason() {
    let words = "this replica is at revision 3 and the client has seen 9: try another replica, or again later";
    let info = |reason: &str| {
        let details = ErrorDetails::with_error_info(reason, ERROR_DOMAIN, []);
        Status::with_error_details(Code::Unavailable, "in other words", details)
    };
    for (status, behind) in [
        (info(BEHIND), true),
        (info("STORE_AWAY"), false),
        (Status::unavailable(words), true),
        (
            Status::unavailable(
                "this replica lags: it is at revision 3, and replica c2 has seen 9; reconnect",
            ),
            false,
        ),
        (
            Status::internal("the proxy in between is at revision 7 of its configuration"),
            false,
        ),
    ] {
        assert_eq!(Broken::of(&status).behind, behind, "{status}");
    }
}
