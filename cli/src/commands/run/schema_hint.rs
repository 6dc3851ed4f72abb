//! Warns the user who started a program about what the mesh could not learn of it: missing server reflection is the
//! most common reason why a call by path finds no service. Input: the agent's view of the instance. Output: one log
//! line per reason.

use std::time::Duration;

use heddle_proto::registry::v1::{WatchInstancesRequest, registry_client::RegistryClient};
use heddle_sdk::{Registration, agent_channel};
use tokio::time::sleep;

use super::{options::Plan, sources};

/// Pause before the agent is watched again.
const PAUSE: Duration = Duration::from_secs(5);
/// The most proto services that a hint names.
const MAX_NAMES: usize = 5;

/// Runs until it is cancelled.
pub(super) async fn warn_about_unknown_schema(plan: &Plan, registration: &Registration) {
    registration.registered().await;
    let mut last_reason = String::new();
    loop {
        // The registration logs that the agent is away.
        let _ = watch(plan, &mut last_reason).await;
        sleep(PAUSE).await;
    }
}

async fn watch(plan: &Plan, last_reason: &mut String) -> Option<()> {
    let channel = agent_channel(&plan.agent).ok()?;
    let service = format!("{}.{}", plan.instance.service, plan.instance.namespace);
    let request = WatchInstancesRequest { service };
    let answer = RegistryClient::new(channel).watch_instances(request).await;
    let mut changes = answer.ok()?.into_inner();
    while let Some(change) = changes.message().await.ok()? {
        let own = change.changed.into_iter().find(|status| {
            let instance = status.instance.as_ref();
            instance.is_some_and(|instance| instance.id == plan.instance.id)
        });
        let Some(reason) = own.map(|status| status.schema_reason) else {
            continue;
        };
        if !reason.is_empty() && reason != *last_reason {
            let hint = if plan.instance.protos.is_empty() {
                hint(plan)
            } else {
                String::new()
            };
            tracing::warn!(
                "the mesh does not know all proto services of the program: {reason}{hint}"
            );
        }
        *last_reason = reason;
    }
    None
}

/// A hint for `--proto`: what the sources near the program define, or else an example.
fn hint(plan: &Plan) -> String {
    let Ok(current) = std::env::current_dir() else {
        return String::new();
    };
    let mut command = vec![plan.program.clone()];
    command.extend(plan.args.iter().cloned());
    let folders = sources::folders(&current, &command);
    let found = sources::proto_services(&folders, MAX_NAMES);
    if found.is_empty() {
        return "; for example --proto shop.v1.Users for \"package shop.v1; service Users\""
            .to_owned();
    }
    let options: Vec<String> = found.iter().map(|name| format!("--proto {name}")).collect();
    let folders: Vec<String> = folders.iter().map(|it| it.display().to_string()).collect();
    format!(
        "; the .proto files in {} define: {}",
        folders.join(" and "),
        options.join(", ")
    )
}
