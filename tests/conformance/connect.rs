//! The Connect project's gRPC conformance suite through an outbound listener: its reference clients (Connect's and
//! grpc-go's) call its reference server behind a proxy. No case is skipped or known to fail.

use std::time::Duration;

use heddle_tests::process::{Start, run_within};
use heddle_tests::tools::{binary, go_peer, root};

/// All cases of `connect/config.yaml`.
const CASES: usize = 1182;

#[tokio::test(flavor = "multi_thread")]
async fn every_case_of_the_grpc_suite_passes() {
    let suite = go_peer("connectconformance");
    let start = Start::new("connect", &root().join("tests/conformance/connect/run"))
        .env("CONNECT_BIN", suite.parent().unwrap())
        .env("HEDDLE_PROXY", binary("heddle-proxy"));
    let ran = run_within(Duration::from_secs(500), start).await;
    assert_eq!(ran.code, Some(0), "{}", ran.all());
    let result = format!("{CASES} passed, 0 failed");
    assert!(ran.all().contains(&result), "{}", ran.all());
}
