//! The commands, one file (or folder) each. Input: the arguments after `heddle`. Output: an exit code. A part of the
//! mesh is started by its own library's `run`, with the same options as its separate binary.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Command;
use serde::Serialize;

use crate::{
    client::{ClientError, Control, ControlOptions},
    exit::{self, Exit, fail},
    output::{Format, Tabular, render},
};

mod demo;
mod run;
mod status;
mod services;
mod proxies;
mod edges;
mod events;

struct Entry {
    name: &'static str,
    about: &'static str,
    run: fn(Vec<OsString>) -> ExitCode,
}

const COMMANDS: &[Entry] = &[
    Entry {
        name: "demo",
        about: "Start a mesh on this host: control plane, three nodes with the echo \
            service, and calls",
        run: demo::run,
    },
    Entry {
        name: "run",
        about: "Run any program as an instance of a service",
        run: run::run,
    },
    Entry {
        name: "status",
        about: "Show the state of the mesh and its problems",
        run: status::run,
    },
    Entry {
        name: "services",
        about: "List the services, or show one",
        run: services::run,
    },
    Entry {
        name: "proxies",
        about: "List proxies and xDS clients with what each has acknowledged or rejected",
        run: proxies::run,
    },
    Entry {
        name: "edges",
        about: "Show which service calls which: rate, success, latency",
        run: edges::run,
    },
    Entry {
        name: "events",
        about: "Show what happened to nodes, instances, services and replicas, and why",
        run: events::run,
    },
    Entry {
        name: "control",
        about: "Run the control plane (heddle-control)",
        run: heddle_control::run,
    },
    Entry {
        name: "proxy",
        about: "Run the proxy of a node (heddle-proxy)",
        run: heddle_proxy::run,
    },
    Entry {
        name: "echo",
        about: "Run the echo service (heddle-echo)",
        run: heddle_echo::run,
    },
];

/// Runs the command named by `args[1]`, which sees `heddle NAME` as its own name.
pub(crate) fn dispatch(mut args: Vec<OsString>) -> ExitCode {
    // `heddle help NAME` is `heddle NAME --help`.
    if args.len() == 3 && args.get(1).is_some_and(|word| word == "help") {
        args.remove(1);
        args.push("--help".into());
    }
    let entry = COMMANDS
        .iter()
        .find(|entry| args.get(1).is_some_and(|word| word == entry.name));
    if let Some(entry) = entry {
        let rest = args.into_iter().skip(2);
        let own = OsString::from(format!("heddle {}", entry.name));
        return (entry.run)(std::iter::once(own).chain(rest).collect());
    }
    match overview().try_get_matches_from(args) {
        Err(shown) if !shown.use_stderr() => shown.exit(),
        Err(fault)
            if fault.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            fault.exit()
        }
        Err(fault) => {
            let text = fault.to_string();
            let message = text.split("\nUsage:").next().unwrap_or_default();
            heddle_options::fail(format!(
                "{}; see heddle --help",
                message.trim_start_matches("error: ").trim_end()
            ))
        }
        Ok(_) => heddle_options::fail("no such command; see heddle --help"),
    }
}

fn overview() -> Command {
    let subcommands = COMMANDS
        .iter()
        .map(|entry| Command::new(entry.name).about(entry.about));
    Command::new("heddle")
        .about("A gRPC service mesh: one proxy per node carries the calls of all its services")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(format!("Each command has its own --help. {}.", exit::HELP))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(subcommands)
}

/// Options of every command that queries the mesh.
#[derive(Clone, Debug, clap::Args)]
struct ViewOptions {
    #[command(flatten)]
    control: ControlOptions,
    /// Output format
    #[arg(
        long,
        short,
        value_name = "FORMAT",
        value_enum,
        default_value = "table"
    )]
    output: Format,
}

/// Connects, sends the query, prints the answer. [`Exit::Yes`] if that succeeds.
fn show<A: Serialize + Tabular>(
    options: &ViewOptions,
    query: impl AsyncFnOnce(&Control) -> Result<A, ClientError>,
) -> ExitCode {
    show_with_exit(options, query, |_| Exit::Yes)
}

/// Connects, sends the query, prints the answer, and derives the exit code from the answer.
fn show_with_exit<A: Serialize + Tabular>(
    options: &ViewOptions,
    query: impl AsyncFnOnce(&Control) -> Result<A, ClientError>,
    exit: impl FnOnce(&A) -> Exit,
) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(why) => return fail(why, Exit::Unreachable),
    };
    let answer = runtime.block_on(async {
        let control = Control::connect(&options.control).await?;
        query(&control).await
    });
    let answer = match answer {
        Ok(answer) => answer,
        Err(why) => return fail(&why, why.exit()),
    };
    let text = match render(options.output, &answer) {
        Ok(text) => text,
        Err(why) => return fail(why, Exit::No),
    };
    match print(&text) {
        Ok(_) => exit(&answer).into(),
        Err(why) => fail(format!("cannot write the output: {why}"), Exit::No),
    }
}

/// Writes to standard output. False if the reader is gone (`| head`), which is no failure.
fn print(text: &str) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(why) => Err(why),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|why| format!("cannot start the runtime: {why}"))
}

/// The line below a table that names the replicas whose data is missing.
fn missing(unanswered: &[String], what: &str) -> String {
    if unanswered.is_empty() {
        return String::new();
    }
    let names = unanswered.join(", ");
    format!("\ndid not answer: {names} (their {what} are missing here)\n")
}

/// `HEALTH_HEALTHY` in a readable form.
fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_lowercase()
        .replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::{COMMANDS, overview, word};

    #[test]
    fn every_command_stands_in_the_overview() {
        let help = overview().render_long_help().to_string();
        for entry in COMMANDS {
            assert!(
                help.contains(entry.name) && help.contains(entry.about),
                "{}",
                entry.name
            );
        }
        overview().debug_assert();
    }

    #[test]
    fn enum_names_are_read_by_people() {
        assert_eq!(word("HEALTH_UNHEALTHY", "HEALTH_"), "unhealthy");
    }
}
