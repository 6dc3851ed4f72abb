//! `heddle events [--follow]`: what happened to nodes, instances, services and replicas, and why. Following, it prints
//! each event as it comes, and goes on with another replica when the one that tells them stops.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use heddle_proto::status::v1::{self as wire, WatchEventsRequest, WatchEventsResponse};
use serde::Serialize;
use tonic::Streaming;

use super::{ViewOptions, runtime, show};
use crate::{
    client::{ClientError, Control},
    output::{Format, Table, Tabular},
};

/// Pause before the next try when no control plane answers.
const AGAIN: Duration = Duration::from_secs(1);
/// Ids that are remembered, so that another replica's tale does not repeat them: a replica tells at most about 1,000.
const MAX_TOLD: usize = 10_000;

/// Show what happened to nodes, instances, services and replicas, and why
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle events", version)]
struct Options {
    /// Go on with what happens next; JSON is then one event a line, YAML one a document
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    view: ViewOptions,
}

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_EVENTS", args);
    heddle_options::init_logging("warn");
    if options.follow {
        return follow(&options.view);
    }
    show(&options.view, async |control| {
        let mut answers = watch(control).await?;
        let mut events = Vec::new();
        loop {
            let answer = control.next(&mut answers).await?;
            events.extend(answer.events.into_iter().map(Event::from));
            if answer.initial_done {
                return Ok(Events { events });
            }
        }
    })
}

async fn watch(control: &Control) -> Result<Streaming<WatchEventsResponse>, ClientError> {
    let mut mesh = control.mesh.clone();
    control
        .answer(mesh.watch_events(WatchEventsRequest {}))
        .await
}

/// Until it is interrupted, or nobody reads any more.
fn follow(options: &ViewOptions) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(why) => return heddle_options::fail(why),
    };
    let mut told = BTreeSet::new();
    runtime.block_on(async {
        // That there is nobody at all is told at once; later ones come back.
        let mut control = match Control::connect(&options.control).await {
            Ok(control) => control,
            Err(why) => return heddle_options::fail(why),
        };
        loop {
            let why = match tell(&control, options.output, &mut told).await {
                Ok(()) => return ExitCode::SUCCESS,
                Err(why) => why,
            };
            tracing::warn!("{why}; trying again");
            control = loop {
                tokio::time::sleep(AGAIN).await;
                if let Ok(control) = Control::connect(&options.control).await {
                    break control;
                }
            };
        }
    })
}

/// Ends well when nobody reads.
async fn tell(
    control: &Control,
    format: Format,
    told: &mut BTreeSet<String>,
) -> Result<(), ClientError> {
    let mut answers = watch(control).await?;
    loop {
        let answer = control.message(&mut answers).await?;
        for event in answer.events {
            if !told.insert(event.id.clone()) {
                continue;
            }
            while told.len() > MAX_TOLD {
                told.pop_first();
            }
            let text = Event::from(event).line(format);
            let mut out = io::stdout().lock();
            if out
                .write_all(text.as_bytes())
                .and_then(|()| out.flush())
                .is_err()
            {
                return Ok(());
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Events {
    events: Vec<Event>,
}

#[derive(Debug, Serialize)]
struct Event {
    time: String,
    kind: String,
    node: String,
    service: String,
    instance: String,
    cause: String,
    replica: String,
    id: String,
}

impl From<wire::Event> for Event {
    fn from(event: wire::Event) -> Self {
        Self {
            time: time(event.unix_ms),
            kind: event.kind,
            node: event.node,
            service: event.service,
            instance: event.instance,
            cause: event.cause,
            replica: event.replica,
            id: event.id,
        }
    }
}

const HEAD: &[&str] = &[
    "TIME", "EVENT", "NODE", "SERVICE", "INSTANCE", "REPLICA", "CAUSE",
];

impl Event {
    fn cells(&self) -> Vec<String> {
        [
            &self.time,
            &self.kind,
            &self.node,
            &self.service,
            &self.instance,
            &self.replica,
            &self.cause,
        ]
        .map(Clone::clone)
        .to_vec()
    }

    /// As it is told alone.
    fn line(&self, format: Format) -> String {
        match format {
            Format::Table => {
                let mut table = Table::headless(HEAD);
                table.row(self.cells());
                table.to_string()
            }
            // These values have no map and no float: they can always be written.
            Format::Json => serde_json::to_string(self).unwrap_or_default() + "\n",
            Format::Yaml => format!("---\n{}", serde_saphyr::to_string(self).unwrap_or_default()),
        }
    }
}

impl Tabular for Events {
    fn table(&self) -> String {
        let mut table = Table::new(HEAD);
        for event in &self.events {
            table.row(event.cells());
        }
        table.to_string()
    }
}

/// "2026-11-25T02:11:53.120Z". Days to a date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn time(unix_ms: u64) -> String {
    let (days, of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (second, ms) = (of_day / 1000, of_day % 1000);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::{Event, Events, time, wire};
    use crate::output::{Format, render};

    fn event() -> Event {
        Event::from(wire::Event {
            id: "0001".into(),
            kind: "node-expired".into(),
            node: "a".into(),
            cause: "silent for 10 s".into(),
            replica: "r1".into(),
            unix_ms: 1_764_036_713_120,
            ..wire::Event::default()
        })
    }

    #[test]
    fn an_event_says_when_what_where_and_why() {
        let events = Events {
            events: vec![event()],
        };
        assert_eq!(
            render(Format::Table, &events).unwrap(),
            "TIME                      EVENT         NODE  SERVICE  INSTANCE  REPLICA  CAUSE\n\
             2025-11-25T02:11:53.120Z  node-expired  a     -        -         r1       silent for 10 s\n"
        );
        assert_eq!(
            event().line(Format::Table),
            "2025-11-25T02:11:53.120Z  node-expired  a  -  -  r1  silent for 10 s\n"
        );
        let line = event().line(Format::Json);
        assert_eq!(line.lines().count(), 1);
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["cause"], "silent for 10 s");
        assert!(event().line(Format::Yaml).starts_with("---\ntime: "));
    }

    #[test]
    fn times_are_dates() {
        for (unix_ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(time(unix_ms), expected);
        }
    }
}
