//! The lifecycle of the program under `heddle run`: start, wait until it listens, register, watch, restart with
//! backoff when it fails. On a signal: deregister, wait for its calls in flight, stop. One program runs at a time,
//! and it is registered only while it listens.

use std::{
    io,
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    pin::{Pin, pin},
    process::ExitStatus,
    time::{Duration, Instant},
};

use heddle_pacing::Backoff;
use heddle_proto::registry::v1::Instance;
use heddle_sdk::{Registration, RegistrationOptions};
use tokio::time::sleep;

use super::{
    options::{Plan, Restart},
    program::{Program, code, is_free, listening},
    schema_hint::warn_about_unknown_schema,
};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// After a run of this length the backoff starts again at its first pause.
const BACKOFF_RESET: Duration = Duration::from_secs(30);

/// How a run ended.
enum End {
    Itself(ExitStatus),
    Stopped(u8),
}

/// Runs the program until it ends for good or until `stop`. Returns the exit code to pass on.
pub(super) async fn run_program(plan: &Plan, stop: impl Future<Output = ()>) -> Result<u8, String> {
    let mut stop = pin!(stop);
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    is_free(plan.port).await?;
    loop {
        let began = Instant::now();
        let end = once(plan, stop.as_mut()).await?;
        let status = match end {
            End::Stopped(code) => return Ok(code),
            End::Itself(status) => status,
        };
        let again = match plan.restart {
            Restart::Always => true,
            Restart::OnFailure => !status.success(),
            Restart::Never => false,
        };
        if !again {
            return Ok(code(status));
        }
        if began.elapsed() >= BACKOFF_RESET {
            backoff.reset();
        }
        let pause = backoff.fail_exact();
        tracing::warn!("the program ended ({status}); restarting it in {pause:?}");
        tokio::select! {
            () = sleep(pause) => {}
            () = stop.as_mut() => return Ok(code(status)),
        }
    }
}

async fn once<S: Future<Output = ()>>(plan: &Plan, mut stop: Pin<&mut S>) -> Result<End, String> {
    let mut program = Program::start(plan).await?;
    let address = program.address;
    tokio::select! {
        () = listening(address) => {}
        () = stop.as_mut() => return drain(plan, &mut program, None).await.map(End::Stopped),
        ended = program.ended() => return itself(&program, ended),
    }
    let registration = register(plan, address)?;
    let mut registered = pin!(log_when_registered(plan, address, &registration));
    let mut unknown = pin!(warn_about_unknown_schema(plan, &registration));
    let mut logged = false;
    loop {
        tokio::select! {
            biased;
            () = stop.as_mut() => {
                return drain(plan, &mut program, Some(&registration)).await.map(End::Stopped);
            }
            ended = program.ended() => {
                registration.report_end(&why(&ended)).await;
                return itself(&program, ended);
            }
            () = &mut registered, if !logged => logged = true,
            () = &mut unknown => {}
        }
    }
}

/// The cause of the removal, for the mesh.
fn why(ended: &io::Result<ExitStatus>) -> String {
    match ended {
        Ok(status) => format!("its process ended by itself ({status})"),
        Err(error) => unwaited(error),
    }
}

fn itself(program: &Program, ended: io::Result<ExitStatus>) -> Result<End, String> {
    program.sweep();
    ended.map(End::Itself).map_err(|why| unwaited(&why))
}

fn register(plan: &Plan, address: SocketAddr) -> Result<Registration, String> {
    let instance = Instance {
        address: address.to_string(),
        ..plan.instance.clone()
    };
    let registration_options = RegistrationOptions {
        instance,
        file_descriptor_set: plan.descriptors.clone(),
        agent: plan.agent.clone(),
    };
    Registration::start(registration_options).map_err(|why| format!("--agent: {why}"))
}

/// Prints the ready line once the agent knows the instance.
async fn log_when_registered(plan: &Plan, address: SocketAddr, registration: &Registration) {
    let node = registration.registered().await;
    let Instance {
        service,
        namespace,
        id,
        ..
    } = &plan.instance;
    heddle_options::ready(&format!(
        "heddle-run ready: listen {address}, service {service}.{namespace}, instance {id}, node {node}"
    ));
}

/// Leaves the mesh, waits for calls in flight to end, then stops the program. A second signal ends the waiting.
async fn drain(
    plan: &Plan,
    program: &mut Program,
    registration: Option<&Registration>,
) -> Result<u8, String> {
    if let Some(registration) = registration {
        tracing::info!(
            "leaving the mesh; the program is stopped when its calls in flight have ended, at the latest in {:?} \
             (--stop-timeout); a second signal skips the wait",
            plan.stop_timeout
        );
        tokio::select! {
            outcome = registration.leave_finished(plan.stop_timeout) => {
                if !outcome.unacknowledged.is_empty() {
                    tracing::warn!(unacknowledged = ?outcome.unacknowledged, "stopping before every client has acknowledged the removal");
                }
                if outcome.in_flight > 0 {
                    tracing::warn!(
                        "calls in flight after {1:?} (--stop-timeout): {0}; the program is \
                         stopped and they are cut off",
                        outcome.in_flight, plan.stop_timeout
                    );
                }
            }
            // It may end by itself meanwhile; then there is nothing to stop.
            ended = program.ended() => {
                program.sweep();
                return passed(ended);
            }
            () = heddle_options::terminated_again() => {
                tracing::warn!("a second signal: the program is stopped without waiting for its calls");
            }
        }
    }
    let ended = program
        .stop(plan.stop_timeout, heddle_options::terminated_again())
        .await;
    program.sweep();
    passed(ended)
}

/// A program that ended by our SIGTERM has stopped as requested: exit code 0.
fn passed(ended: io::Result<ExitStatus>) -> Result<u8, String> {
    const BY_SIGTERM: i32 = 15;
    let status = ended.map_err(|why| unwaited(&why))?;
    Ok(if status.signal() == Some(BY_SIGTERM) {
        0
    } else {
        code(status)
    })
}

fn unwaited(why: &io::Error) -> String {
    format!("cannot wait for the program: {why}")
}
