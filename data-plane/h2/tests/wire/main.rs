//! heddle-h2 against the `h2` crate over a pipe, in both roles, under random legal traffic: what
//! one side sends is what the other side must receive, whatever the sizes of reads, windows and
//! frames. Each test runs many seeds; a failure names its seed, and `HEDDLE_WIRE_SEED=N` runs only
//! that one (`HEDDLE_WIRE_ROUNDS=N` sets the number). Malformed traffic is covered by the crate's
//! own tests.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly and at once"
)]

mod plan;
mod ours;
mod theirs;
mod mangle;

use std::fmt::Display;
use std::time::Duration;

use plan::{Plan, Role, Seen};

/// Seeds of each test; one takes some ten milliseconds.
const ROUNDS: u64 = 60;
/// Far more than any seed takes: a stall, not slowness, runs into it.
const STALLED: Duration = Duration::from_secs(60);

/// What the two sides saw of each call: the server's of the request, the client's of the response.
struct Seens {
    requests: Vec<Seen>,
    responses: Vec<Seen>,
}

async fn our_client(plan: &Plan) -> Seens {
    let (our_end, their_end) = mangle::pipe(plan);
    let server = tokio::spawn(theirs::serve(plan.clone(), their_end));
    let responses = ours::drive(plan, Role::Client, our_end).await;
    Seens {
        requests: server.await.expect("the h2 server ended"),
        responses,
    }
}

async fn our_server(plan: &Plan) -> Seens {
    let (our_end, their_end) = mangle::pipe(plan);
    let client = tokio::spawn(theirs::call(plan.clone(), their_end));
    let requests = ours::drive(plan, Role::Server, our_end).await;
    Seens {
        requests,
        responses: client.await.expect("the h2 client ended"),
    }
}

/// The control: what fails here too is a fault of the plan, not of heddle-h2.
async fn theirs_alone(plan: &Plan) -> Seens {
    let (client_end, server_end) = mangle::pipe(plan);
    let client = tokio::spawn(theirs::call(plan.clone(), client_end));
    let requests = theirs::serve(plan.clone(), server_end).await;
    Seens {
        requests,
        responses: client.await.expect("the h2 client ended"),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

/// Plays each seed's plan on a runtime of its own.
fn play(what: impl Display, ours: Option<Role>, make: impl Fn(u64) -> Plan) {
    let seeds = match number("HEDDLE_WIRE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HEDDLE_WIRE_ROUNDS").unwrap_or(ROUNDS),
    };
    for seed in seeds {
        let plan = make(seed);
        let again = format!("{what}: HEDDLE_WIRE_SEED={seed} plays this again");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.expect("a runtime").block_on(async {
                let both = async {
                    match ours {
                        Some(Role::Client) => our_client(&plan).await,
                        Some(Role::Server) => our_server(&plan).await,
                        None => theirs_alone(&plan).await,
                    }
                };
                tokio::time::timeout(STALLED, both)
                    .await
                    .expect("the connection stalled")
            })
        }));
        let Ok(seens) = played else { panic!("{again}") };
        for (nth, call) in plan.calls.iter().enumerate() {
            let faults = call.faults(&seens.requests[nth], &seens.responses[nth]);
            assert!(
                faults.is_empty(),
                "{again}\ncall {nth}: {faults:#?}\n{call:?}"
            );
        }
    }
}

#[test]
fn our_client_and_their_server_see_what_the_other_sent() {
    play("our client", Some(Role::Client), Plan::mixed);
}

#[test]
fn our_server_and_their_client_see_what_the_other_sent() {
    play("our server", Some(Role::Server), Plan::mixed);
}

#[test]
fn our_client_reads_padded_split_and_interspersed_frames() {
    play("our client, mangled", Some(Role::Client), Plan::mangled);
}

#[test]
fn our_server_reads_padded_split_and_interspersed_frames() {
    play("our server, mangled", Some(Role::Server), Plan::mangled);
}

#[test]
fn large_bodies_pass_through_small_windows() {
    play("our client, bulk", Some(Role::Client), |seed| {
        Plan::bulk(seed % 10)
    });
    play("our server, bulk", Some(Role::Server), |seed| {
        Plan::bulk(seed % 10)
    });
}

#[test]
fn the_h2_crate_agrees_with_itself() {
    play("control", None, Plan::mixed);
}
