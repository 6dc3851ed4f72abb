//! `heddle events [--follow]`: what happened to nodes, instances, services and replicas, and why. With `--follow` it
//! prints each event as it comes, and moves to another replica when the connected one stops.

use std::{collections::BTreeSet, ffi::OsString, process::ExitCode, time::Duration};

use heddle_proto::{
    EVENT_KINDS,
    status::v1::{self as wire, WatchEventsRequest, WatchEventsResponse},
};
use serde::Serialize;
use tonic::Streaming;

use super::{ViewOptions, print, runtime, show};
use crate::{
    client::{ClientError, Control},
    exit::{Exit, fail},
    output::{Format, Table, Tabular},
};

/// Pause before the next attempt when no control plane answers.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How many ids are remembered, so that an event sent by another replica is not printed again. Each replica keeps at
/// most about 1,000 events.
const MAX_PRINTED: usize = 10_000;

/// Show what happened to nodes, instances, services and replicas, and why
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "heddle events", version, after_help = crate::exit::HELP)]
struct Options {
    /// Continue with new events; JSON then has one event per line, YAML one per document
    #[arg(long, short)]
    follow: bool,
    /// Only events of the last DURATION, for example 10m or 1h [default: all that are kept, about an hour]
    #[arg(long, value_name = "DURATION", value_parser = since)]
    since: Option<Duration>,
    /// Only events of this kind, for example node-expired; repeatable, or separated by commas
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = kind)]
    kind: Vec<String>,
    /// Only events of this service: users, or users.shop with its namespace
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    #[command(flatten)]
    view: ViewOptions,
}

impl Options {
    fn question(&self) -> WatchEventsRequest {
        WatchEventsRequest {
            since: self.since.and_then(|since| since.try_into().ok()),
            until_now: !self.follow,
            kinds: self.kind.clone(),
            service: self.service.clone().unwrap_or_default(),
        }
    }
}

fn since(word: &str) -> Result<Duration, String> {
    heddle_options::parse_duration(word)
        .ok_or_else(|| "must be a duration such as 10m (units: ms, s, m, h)".to_owned())
}

fn kind(word: &str) -> Result<String, String> {
    match EVENT_KINDS.contains(&word) {
        true => Ok(word.to_owned()),
        false => Err(format!(
            "not a kind of event; the kinds are {}",
            EVENT_KINDS.join(", ")
        )),
    }
}

pub(crate) fn run(args: Vec<OsString>) -> ExitCode {
    let options: Options = heddle_options::parse("HEDDLE_EVENTS", args);
    heddle_options::init_logging("warn");
    let question = options.question();
    if options.follow {
        return follow(&options.view, &question);
    }
    show(&options.view, async |control| {
        let mut answers = watch(control, &question).await?;
        let mut events = Vec::new();
        loop {
            let answer = control.next(&mut answers).await?;
            events.extend(answer.events.into_iter().map(Event::from));
            if answer.initial_done {
                break;
            }
        }
        if events.is_empty() {
            // Events of a service outlive it.
            control.knows(&question.service).await?;
        }
        Ok(Events { events })
    })
}

async fn watch(
    control: &Control,
    question: &WatchEventsRequest,
) -> Result<Streaming<WatchEventsResponse>, ClientError> {
    let mut mesh = control.mesh.clone();
    control.answer(mesh.watch_events(question.clone())).await
}

/// Prints events until it is interrupted or its reader is gone.
fn follow(options: &ViewOptions, question: &WatchEventsRequest) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(why) => return fail(why, Exit::Unreachable),
    };
    let mut printer = Printer::new(options.output);
    runtime.block_on(async {
        // Only the first connection fails at once if nobody answers; later ones are retried.
        let mut control = match Control::connect(&options.control).await {
            Ok(control) => control,
            Err(why) => return fail(&why, why.exit()),
        };
        match control.knows(&question.service).await {
            Ok(()) => {}
            // It may come later, so this is no failure.
            Err(why) if why.exit() == Exit::No => {
                tracing::warn!("{why}; its events are shown when they come");
            }
            Err(why) => return fail(&why, why.exit()),
        }
        loop {
            let why = match follow_one(&control, question, &mut printer).await {
                Ok(code) => return code,
                // The next answer would be the same, or there has never been one.
                Err(why) if why.exit() == Exit::No || !printer.answered => {
                    return fail(&why, why.exit());
                }
                Err(why) => why,
            };
            tracing::warn!("{why}; trying again");
            control = loop {
                tokio::time::sleep(RETRY_PAUSE).await;
                if let Ok(control) = Control::connect(&options.control).await {
                    break control;
                }
            };
        }
    })
}

/// Prints the events of one replica until it stops. Returns an exit code if the reader is gone or the output fails.
async fn follow_one(
    control: &Control,
    question: &WatchEventsRequest,
    printer: &mut Printer,
) -> Result<ExitCode, ClientError> {
    let mut answers = watch(control, question).await?;
    loop {
        let answer = control.message(&mut answers).await?;
        printer.answered = true;
        match print(&printer.text(answer.events)) {
            Ok(true) => {}
            Ok(false) => return Ok(ExitCode::SUCCESS),
            Err(why) => {
                let why = format!("cannot write the events: {why}");
                return Ok(fail(why, Exit::No));
            }
        }
    }
}

/// Prints each event once, whichever replica sends it.
struct Printer {
    format: Format,
    table: Table,
    printed: BTreeSet<String>,
    /// A control plane has answered.
    answered: bool,
}

impl Printer {
    fn new(format: Format) -> Self {
        Self {
            format,
            table: Table::in_parts(HEAD, &least_widths()),
            printed: BTreeSet::new(),
            answered: false,
        }
    }

    /// The text for the new events. The first table has a head, even without events.
    fn text(&mut self, events: Vec<wire::Event>) -> String {
        let mut text = String::new();
        for event in events {
            if !self.printed.insert(event.id.clone()) {
                continue;
            }
            while self.printed.len() > MAX_PRINTED {
                self.printed.pop_first();
            }
            let event = Event::from(event);
            match self.format {
                Format::Table => self.table.row(event.cells()),
                // These values have no map and no float, so they can always be serialized.
                Format::Json => text += &(serde_json::to_string(&event).unwrap_or_default() + "\n"),
                Format::Yaml => {
                    let event = serde_saphyr::to_string(&event).unwrap_or_default();
                    text += &format!("---\n{event}");
                }
            }
        }
        if self.format == Format::Table {
            text = self.table.printed();
        }
        text
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
    /// The services of the instances of the node that it is about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
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
            services: event.services,
        }
    }
}

const HEAD: &[&str] = &[
    "TIME", "EVENT", "NODE", "SERVICE", "INSTANCE", "REPLICA", "CAUSE",
];

/// The least widths of columns of events that come one by one: the time, the longest kind, and usual names.
fn least_widths() -> [usize; 6] {
    let kind = EVENT_KINDS.iter().map(|kind| kind.len()).max();
    [time(0).len(), kind.unwrap_or(0), 12, 24, 16, 12]
}

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

/// Formats as "2026-11-25T02:11:53.120Z". Days to a date after Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms".
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
    use super::{Event, Events, Printer, time, wire};
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
    }

    #[test]
    fn followed_events_have_a_head_and_keep_to_their_columns() {
        let of = |id: &str, kind: &str| wire::Event {
            id: id.into(),
            kind: kind.into(),
            node: "a".into(),
            replica: "r1".into(),
            ..wire::Event::default()
        };
        let mut printer = Printer::new(Format::Table);
        let first = printer.text(vec![of("1", "node-expired")]);
        assert!(first.starts_with("TIME  "), "{first}");
        let second = printer.text(vec![of("1", "node-expired"), of("2", "node-left")]);
        let column = |text: &str| text.lines().last().unwrap().find(" a ");
        assert_eq!(second.lines().count(), 1, "{second}");
        assert_eq!(column(&first), column(&second), "{first}{second}");

        let mut json = Printer::new(Format::Json);
        let lines = json.text(vec![of("1", "node-expired"), of("2", "node-left")]);
        let kinds: Vec<_> = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["kind"].clone())
            .collect();
        assert_eq!(kinds, ["node-expired", "node-left"]);
        let yaml = Printer::new(Format::Yaml).text(vec![of("1", "node-left")]);
        assert!(yaml.starts_with("---\ntime: "), "{yaml}");
    }

    /// Issue 10, E1: without an event to begin with, the head did not match the rows, and each longer word moved the
    /// columns.
    #[test]
    fn followed_events_have_the_columns_of_the_head_from_the_first_to_the_last() {
        let of = |id: &str, kind: &str, service: &str| wire::Event {
            id: id.into(),
            kind: kind.into(),
            node: "node-b".into(),
            service: service.into(),
            replica: "r1".into(),
            cause: "why".into(),
            ..wire::Event::default()
        };
        let mut printer = Printer::new(Format::Table);
        let mut text = printer.text(Vec::new());
        let long = "a-service-whose-name-is-longer-than-its-column.default";
        for (id, kind, service) in [
            ("1", "node-left", ""),
            ("2", "instance-unhealthy", "users.default"),
            ("3", "instance-left", long),
            ("4", "service-forgotten", "web.default"),
        ] {
            text += &printer.text(vec![of(id, kind, service)]);
        }
        let column = |line: &str, word: &str| line.find(word).unwrap();
        let (head, rows) = text.split_once('\n').unwrap();
        for row in rows.lines() {
            assert_eq!(column(row, "node-b"), column(head, "NODE"), "{text}");
            let is_long = row.contains(long);
            let matches = column(row, "why") == column(head, "CAUSE");
            assert_eq!(matches, !is_long, "{text}");
        }
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
