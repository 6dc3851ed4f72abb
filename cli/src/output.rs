//! Prints answers as tables, JSON or YAML. Input: one value that supports all three. JSON and YAML have the same shape,
//! and a table shows the same facts in the same order. Knows nothing of the mesh.

use std::fmt::{self, Write as _};

use serde::Serialize;

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
}

/// What can be shown as a table.
pub(crate) trait Tabular {
    fn table(&self) -> String;
}

/// The text, ending with a newline.
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
    /// The minimum widths of the columns; once the head is printed, their widths.
    widths: Vec<usize>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &'static [&'static str]) -> Self {
        Self {
            head,
            shows_head: true,
            widths: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// For a table that is printed in parts: columns of at least these widths, because longer cells may come later.
    pub(crate) fn in_parts(head: &'static [&'static str], widths: &[usize]) -> Self {
        let widths = widths.to_vec();
        Self {
            widths,
            ..Self::new(head)
        }
    }

    /// The table so far. It then continues empty: without a head, and with the same columns. A cell that is longer than its
    /// column moves the rest of its own row only.
    pub(crate) fn printed(&mut self) -> String {
        let text = self.to_string();
        self.widths = self.widths();
        self.shows_head = false;
        self.rows.clear();
        text
    }

    fn widths(&self) -> Vec<usize> {
        if !self.shows_head {
            return self.widths.clone();
        }
        let of = |column: usize| {
            let head = self.head.get(column).map_or(0, |cell| cell.len());
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            let before = self.widths.get(column).copied().unwrap_or(0);
            head.max(widest).max(before)
        };
        (0..self.head.len()).map(of).collect()
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
        let widths = self.widths();
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

/// One cell: never empty, and with control characters escaped, so that foreign text cannot control the terminal.
pub(crate) fn clean(cell: &str) -> String {
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

    #[test]
    fn rows_that_come_later_keep_to_the_columns() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["a-long-one".into(), "healthy".into()]);
        assert_eq!(table.printed(), "NAME        STATE\na-long-one  healthy\n");
        table.row(vec!["b".into(), "gone".into()]);
        assert_eq!(table.printed(), "b           gone\n");
        table.row(vec!["one-that-is-longer".into(), "gone".into()]);
        table.row(vec!["c".into(), "gone".into()]);
        let kept = "one-that-is-longer  gone\nc           gone\n";
        assert_eq!(table.printed(), kept);
    }
}
