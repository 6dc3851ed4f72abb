//! One clap definition, three layers that set an option: flag over environment over file. Input: the command line, the
//! environment and the file. Output: the typed struct, or every fault at once. The options of the programs are not
//! known here; the parsers of the definition check the values.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, Command,
    builder::{BoolishValueParser, Resettable},
    error::ErrorKind,
    parser::ValueSource,
};

use crate::{
    file,
    logging::{CHOSEN, check_filter},
    nearest::nearest,
    process::one_line,
};

/// The options, with the warnings from reading them.
#[derive(Debug)]
pub struct Parsed<T> {
    pub options: T,
    pub warnings: Vec<String>,
    pub log: Option<String>,
}

/// Why there are no options.
#[derive(Debug)]
pub enum Stop {
    /// `--help` or `--version`: the text to print; not a fault.
    Show(Box<clap::Error>),
    /// One line per fault.
    Faults(Vec<String>),
}

/// Reads the options of a program: flag over environment (`PREFIX_WORD`) over the YAML file of `--config`. Adds
/// `--config` and `--log`. The variable of a list option is split at commas, and a higher layer replaces the list of a
/// lower one. Switches accept `=false` too. Empty variables count as unset; unknown `PREFIX_*` variables warn. An
/// option that names a variable with clap's `env` reads that one after its own.
///
/// Ends the process: with code 0 after `--help` and `--version`, with code 2 after one line per fault.
#[must_use]
pub fn parse<T: clap::Parser>(prefix: &str, args: impl IntoIterator<Item = OsString>) -> T {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| name.into_string().ok().map(|name| (name, value)))
        .collect();
    match try_parse(prefix, args, &variables) {
        Ok(parsed) => {
            let mut err = io::stderr().lock();
            for warning in parsed.warnings {
                let _ = writeln!(err, "warning: {warning}");
            }
            if let Some(log) = parsed.log {
                let _ = CHOSEN.set(log);
            }
            parsed.options
        }
        Err(Stop::Show(text)) => text.exit(),
        Err(Stop::Faults(faults)) => {
            let mut err = io::stderr().lock();
            for fault in faults {
                let _ = writeln!(err, "error: {fault}");
            }
            std::process::exit(2)
        }
    }
}

/// [`parse`] without touching the process: the environment is given, and nothing is printed.
///
/// # Errors
/// [`Stop::Show`] for help and version, [`Stop::Faults`] with every fault found otherwise.
pub fn try_parse<T: clap::Parser>(
    prefix: &str,
    args: impl IntoIterator<Item = OsString>,
    variables: &BTreeMap<String, OsString>,
) -> Result<Parsed<T>, Stop> {
    let args: Vec<OsString> = args.into_iter().collect();
    let sheet = CommandOptions::new(T::command(), prefix);
    let mut faults = Vec::new();
    let typed = match sheet.probe().try_get_matches_from(&args) {
        Ok(matches) => Some(matches),
        Err(shown) if !shown.use_stderr() => {
            return Err(Stop::Show(Box::new(sheet.shown(&args).unwrap_or(shown))));
        }
        Err(fault) => {
            faults.push(clap_line(&fault));
            // What could be parsed still names the file, so that the file's faults are reported too.
            sheet
                .probe()
                .ignore_errors(true)
                .try_get_matches_from(&args)
                .ok()
        }
    };
    let given = |word: &str| {
        typed
            .as_ref()
            .is_some_and(|m| m.value_source(word) == Some(ValueSource::CommandLine))
    };

    let mut added: BTreeMap<String, Vec<OsString>> = BTreeMap::new();
    let warnings = sheet.unknown_variables(variables);
    for option in &sheet.options {
        if given(&option.id) {
            continue;
        }
        if let Some((name, values)) = option.in_environment(variables) {
            match sheet.check(option, &name, values) {
                Ok(flags) => {
                    added.insert(option.word.clone(), flags);
                }
                Err(fault) => faults.push(fault),
            }
        }
    }
    let config = typed
        .as_ref()
        .and_then(|m| m.get_one::<PathBuf>("config").cloned())
        .or_else(|| variable_path(variables, &format!("{prefix}_CONFIG")));
    if let Some(path) = config {
        for (option, flags) in sheet.in_file(&path, &mut faults) {
            if !given(&option.id) {
                added.entry(option.word.clone()).or_insert(flags);
            }
        }
    }
    if !faults.is_empty() {
        return Err(Stop::Faults(faults));
    }
    sheet.finish(args, added.into_values().flatten().collect(), warnings)
}

fn variable_path(variables: &BTreeMap<String, OsString>, name: &str) -> Option<PathBuf> {
    variables
        .get(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// One option that the environment and the file can set too.
struct Setting {
    id: String,
    word: String,
    /// Its own variable, then the one that its definition names.
    variables: Vec<String>,
    list: bool,
}

impl Setting {
    fn in_environment(
        &self,
        variables: &BTreeMap<String, OsString>,
    ) -> Option<(String, Vec<OsString>)> {
        let (name, value) = self.variables.iter().find_map(|name| {
            variables
                .get(name)
                .filter(|v| !v.is_empty())
                .map(|v| (name, v))
        })?;
        let values = match value.to_str() {
            Some(text) if self.list => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(OsString::from)
                .collect(),
            _ => vec![value.clone()],
        };
        Some((name.clone(), values))
    }
}

/// The command with the options that this module adds, and its options for the layers.
struct CommandOptions {
    command: Command,
    options: Vec<Setting>,
    prefix: String,
}

impl CommandOptions {
    fn new(command: Command, prefix: &str) -> Self {
        let command = command
            .arg(
                Arg::new("config")
                    .long("config")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .help(
                        "YAML file with the same options; flags and environment variables take \
                         precedence",
                    ),
            )
            .arg(
                Arg::new("log")
                    .long("log")
                    .value_name("FILTER")
                    .env("HEDDLE_LOG")
                    .value_parser(check_filter)
                    .help("What to log: a level, or target=level, separated by commas"),
            );
        let mut options = Vec::new();
        for arg in command.get_arguments() {
            let Some(word) = arg.get_long() else { continue };
            let own = format!("{prefix}_{}", word.replace('-', "_").to_uppercase());
            let mut variables = vec![own];
            variables.extend(
                arg.get_env()
                    .map(|name| name.to_string_lossy().into_owned()),
            );
            let list = matches!(arg.get_action(), ArgAction::Append);
            options.push(Setting {
                id: arg.get_id().to_string(),
                word: word.to_owned(),
                variables,
                list,
            });
        }
        let command = command.mut_args(|arg| {
            let names = options
                .iter()
                .find(|option| option.id == arg.get_id().as_str())
                .map(|option| option.variables.join(", "));
            annotate(arg, names.as_deref())
        });
        Self {
            command,
            options,
            prefix: prefix.to_owned(),
        }
    }

    /// The command for reading one layer alone: nothing is required, because another layer may set it.
    fn probe(&self) -> Command {
        self.command.clone().mut_args(|arg| arg.required(false))
    }

    fn shown(&self, args: &[OsString]) -> Option<clap::Error> {
        self.command
            .clone()
            .try_get_matches_from(args)
            .err()
            .filter(|error| !error.use_stderr())
    }

    /// The values as flags, if the definition accepts them; a fault names the variable or key.
    fn check(
        &self,
        option: &Setting,
        place: &str,
        values: Vec<OsString>,
    ) -> Result<Vec<OsString>, String> {
        if values.len() > 1 && !option.list {
            return Err(format!("{place}: takes one value, not {}", values.len()));
        }
        let flags: Vec<OsString> = values
            .into_iter()
            .map(|value| {
                let mut flag = OsString::from(format!("--{}=", option.word));
                flag.push(value);
                flag
            })
            .collect();
        let line = std::iter::once(OsString::from("heddle")).chain(flags.iter().cloned());
        match self.probe().try_get_matches_from(line) {
            Err(fault) if fault.kind() != ErrorKind::MissingRequiredArgument => {
                Err(format!("{place}: {}", clap_line(&fault)))
            }
            _ => Ok(flags),
        }
    }

    fn in_file(&self, path: &Path, faults: &mut Vec<String>) -> Vec<(&Setting, Vec<OsString>)> {
        let name = path.display();
        let text = match read_bounded(path) {
            Ok(text) => text,
            Err(why) => {
                faults.push(format!("--config {name}: {why}"));
                return Vec::new();
            }
        };
        let known: Vec<String> = self
            .options
            .iter()
            .filter(|option| option.id != "config")
            .map(|option| option.word.clone())
            .collect();
        let (entries, wrong) = file::read(&text, &known);
        faults.extend(
            wrong
                .into_iter()
                .map(|fault| one_line(&format!("{name}: {fault}"))),
        );
        let mut found = Vec::new();
        for entry in entries {
            let Some(option) = self.options.iter().find(|option| option.word == entry.word) else {
                continue;
            };
            let place = format!("{name}: {}", entry.word);
            match self.check(
                option,
                &place,
                entry.values.into_iter().map(OsString::from).collect(),
            ) {
                Ok(flags) => found.push((option, flags)),
                Err(fault) => faults.push(fault),
            }
        }
        found
    }

    fn unknown_variables(&self, variables: &BTreeMap<String, OsString>) -> Vec<String> {
        let known: Vec<&str> = self
            .options
            .iter()
            .flat_map(|option| option.variables.iter().map(String::as_str))
            .collect();
        let start = format!("{}_", self.prefix);
        variables
            .keys()
            .filter(|name| name.starts_with(&start) && !known.contains(&name.as_str()))
            .map(|name| {
                // Compared without the prefix, which makes all names similar.
                let own = known.iter().filter_map(|known| known.strip_prefix(&start));
                let word = name.strip_prefix(&start).unwrap_or(name);
                match nearest(word, own, 1).first() {
                    Some(near) => format!("{name} sets no option; did you mean {start}{near}?"),
                    None => format!("{name} sets no option; see --help for all of them"),
                }
            })
            .collect()
    }

    /// Parses all layers as one command line. The flags of the lower layers come first, so that a trailing command
    /// stays last.
    fn finish<T: clap::Parser>(
        &self,
        args: Vec<OsString>,
        added: Vec<OsString>,
        warnings: Vec<String>,
    ) -> Result<Parsed<T>, Stop> {
        let mut line = args.into_iter();
        let program = line.next().unwrap_or_else(|| OsString::from("heddle"));
        let whole = std::iter::once(program).chain(added).chain(line);
        let fault = |error: &clap::Error| Stop::Faults(vec![clap_line(error)]);
        let matches = self
            .command
            .clone()
            .try_get_matches_from(whole)
            .map_err(|e| fault(&e))?;
        let options = T::from_arg_matches(&matches).map_err(|e| fault(&e))?;
        let log = matches.get_one::<String>("log").cloned();
        Ok(Parsed {
            options,
            warnings,
            log,
        })
    }
}

/// Adds the variables to the help, disables clap's own reading of the environment (the layers do it), and lets switches
/// take a value, so that a higher layer can turn off what a lower one turned on.
fn annotate(arg: Arg, variables: Option<&str>) -> Arg {
    let arg = arg.env(Resettable::Reset);
    let Some(variables) = variables else {
        return arg;
    };
    let note = format!("[env: {variables}]");
    let with_note = |help: Option<&clap::builder::StyledStr>| match help {
        Some(help) => format!("{help} {note}"),
        None => note.clone(),
    };
    let short = with_note(arg.get_help());
    let long = arg.get_long_help().map(|help| with_note(Some(help)));
    let arg = match long {
        Some(long) => arg.help(short).long_help(long),
        None => arg.help(short),
    };
    if !matches!(arg.get_action(), ArgAction::SetTrue) {
        return arg;
    }
    arg.action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .value_name("true|false")
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
        .hide_possible_values(true)
        .value_parser(BoolishValueParser::new())
}

/// Clap's message in one line, with its tip and without the usage.
fn clap_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let summary = text.split("\nUsage:").next().unwrap_or_default();
    let summary = summary
        .split("\nFor more information")
        .next()
        .unwrap_or_default();
    let summary = summary
        .split("\n  tip: to pass ")
        .next()
        .unwrap_or_default();
    one_line(summary.trim_start_matches("error: "))
}

fn read_bounded(path: &Path) -> Result<String, String> {
    let about = fs::metadata(path).map_err(|why| why.to_string())?;
    if about.len() > file::MAX_FILE_BYTES {
        return Err(format!("is larger than {} bytes", file::MAX_FILE_BYTES));
    }
    fs::read_to_string(path).map_err(|why| why.to_string())
}
