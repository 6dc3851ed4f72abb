//! The YAML file of `--config`: option names as keys, with one value or a list each. Input: text. Output: names and
//! values in file order, or faults that name the key. The meaning of the values is not known here.

use serde_json::Value;

use crate::nearest::nearest;

/// The largest file, in bytes; options are a few lines.
pub(crate) const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// One key of the file with its values, in file order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) word: String,
    pub(crate) values: Vec<String>,
}

/// The entries and faults of `text`. Each key must be one of `known` (`state-dir`; `state_dir` is accepted too).
pub(crate) fn read(text: &str, known: &[String]) -> (Vec<Entry>, Vec<String>) {
    let mut entries = Vec::new();
    let mut faults = Vec::new();
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return (entries, faults);
    }
    let fields = match serde_saphyr::from_str::<Value>(text) {
        Ok(Value::Object(fields)) => fields,
        Ok(Value::Null) => return (entries, faults),
        Ok(_) => {
            faults.push(
                "must be a mapping of options to values, such as \"drain-timeout: 60s\"".into(),
            );
            return (entries, faults);
        }
        Err(why) => {
            faults.push(format!("is not valid YAML: {why}"));
            return (entries, faults);
        }
    };
    for (key, value) in fields {
        let word = key.replace('_', "-");
        if !known.contains(&word) {
            faults.push(unknown_key(&key, known));
            continue;
        }
        match scalars(&value) {
            Some(values) => entries.push(Entry { word, values }),
            None => faults.push(format!("{key}: must be one value or a list of values")),
        }
    }
    (entries, faults)
}

fn unknown_key(key: &str, known: &[String]) -> String {
    match nearest(&key.replace('_', "-"), known.iter().map(String::as_str), 1).first() {
        Some(near) => format!("{key}: no such option; did you mean \"{near}\"?"),
        None => format!("{key}: no such option; see --help for all of them"),
    }
}

fn scalars(value: &Value) -> Option<Vec<String>> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    match value {
        Value::Array(items) => items.iter().map(scalar).collect(),
        one => scalar(one).map(|text| vec![text]),
    }
}
