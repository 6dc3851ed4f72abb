//! Answers as tables, JSON or YAML. In comes one value that can be all three, out goes text; JSON and YAML have the
//! same shape, and a table shows the same facts in the same order. Knows nothing of the mesh.

use std::fmt::{self, Write as _};

use serde::Serialize;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

/// What can be shown to people.
pub(crate) trait Tabular {
    fn table(&self) -> String;
}

/// The text with its final newline.
pub(crate) fn render(
    format: Format,
    answer: &(impl Serialize + Tabular),
) -> Result<String, String> {
    let mut text = match format {
        Format::Table => answer.table(),
        Format::Json => serde_json::to_string_pretty(answer).map_err(|why| why.to_string())?,
        Format::Yaml => serde_saphyr::to_string(answer).map_err(|why| why.to_string())?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Left-aligned columns, two spaces apart, under a head in capitals. An empty cell is "-".
#[derive(Debug)]
pub(crate) struct Table {
    head: &'static [&'static str],
    shows_head: bool,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &'static [&'static str]) -> Self {
        Self {
            head,
            shows_head: true,
            rows: Vec::new(),
        }
    }

    /// For rows that are told one by one.
    pub(crate) fn headless(head: &'static [&'static str]) -> Self {
        Self {
            shows_head: false,
            ..Self::new(head)
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows
            .push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: Vec<String> = self.head.iter().map(|&cell| cell.to_owned()).collect();
        let shown = self.shows_head.then_some(&head);
        let lines: Vec<&Vec<String>> = shown.into_iter().chain(&self.rows).collect();
        let widths: Vec<usize> = (0..head.len())
            .map(|column| {
                lines
                    .iter()
                    .filter_map(|line| line.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
            })
            .map(Option::unwrap_or_default)
            .collect();
        for line in lines {
            let mut text = String::new();
            for (cell, &width) in line.iter().zip(&widths) {
                write!(text, "{cell:width$}  ")?;
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// One cell: never empty, and no control character of a stranger's text reaches the terminal.
fn clean(cell: &str) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    let mut text = String::with_capacity(cell.len());
    for character in cell.chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn columns_line_up_and_control_characters_do_not_pass() {
        let mut table = Table::new(&["NAME", "STATE", "WHY"]);
        table.row(vec!["müller".into(), "healthy".into(), String::new()]);
        table.row(vec!["b".into(), String::new(), "\u{1b}[31mred\n".into()]);
        assert_eq!(
            table.to_string(),
            "NAME    STATE    WHY\n\
             müller  healthy  -\n\
             b       -        \\u{1b}[31mred\\n\n"
        );
    }
}
