//! Results: a title, columns with units, rows; as text for people and as JSON with plain numbers.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// One value of a result.
#[derive(Clone, Debug)]
pub(crate) enum Cell {
    Text(String),
    Count(usize),
    Seconds(Duration),
    Milliseconds(Duration),
    Bytes(u64),
    /// Times as much as the tool that we are compared with.
    Ratio(f64),
    /// Whether the result was read and found right.
    Verified(bool),
    /// It was not measured, or there is no such thing.
    Nothing,
}

/// The result of one case.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    notes: Vec<String>,
    bars: Vec<Bar>,
}

/// What a picture shows of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    pub(crate) name: &'static str,
    pub(crate) time: Duration,
    /// The time with what comes after it, or the same.
    pub(crate) whole: Duration,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self {
            title: title.into(),
            columns: columns.to_vec(),
            rows: Vec::new(),
            notes: Vec::new(),
            bars: Vec::new(),
        }
    }

    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// In the order of the rows.
    pub(crate) fn bar(&mut self, bar: Bar) {
        self.bars.push(bar);
    }

    pub(crate) fn bars(&self) -> &[Bar] {
        &self.bars
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// Something that a reader of the numbers has to know.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Whether nothing was found wrong.
    pub(crate) fn is_verified(&self) -> bool {
        !self.rows.iter().flatten().any(|cell| matches!(cell, Cell::Verified(false)))
    }

    pub(crate) fn text(&self) -> String {
        let mut lines: Vec<Vec<String>> =
            vec![self.columns.iter().map(|name| (*name).to_string()).collect()];
        lines.extend(self.rows.iter().map(|row| row.iter().map(Cell::text).collect()));
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = format!("{}\n\n", self.title);
        for (number, line) in lines.iter().enumerate() {
            for (column, (cell, &width)) in line.iter().zip(&widths).enumerate() {
                // Names to the left, numbers to the right.
                let _ = if column == 0 {
                    write!(text, "| {cell:<width$} ")
                } else {
                    write!(text, "| {cell:>width$} ")
                };
            }
            text.push_str("|\n");
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let right = if column == 0 { "-" } else { ":" };
                    let _ = write!(text, "| {}{right} ", "-".repeat(width.saturating_sub(1)));
                }
                text.push_str("|\n");
            }
        }
        for note in &self.notes {
            let _ = writeln!(text, "\n{note}");
        }
        text
    }

    pub(crate) fn json(&self) -> String {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let pairs = self.columns.iter().zip(row);
                Value::Object(pairs.map(|(name, cell)| cell.json(name)).collect::<Map<_, _>>())
            })
            .collect();
        format!("{}\n", json!({ "title": self.title, "rows": rows, "notes": self.notes }))
    }
}

impl Cell {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(count) => count.to_string(),
            Self::Seconds(time) => format!("{:.2} s", time.as_secs_f64()),
            Self::Milliseconds(time) => format!("{:.1} ms", time.as_secs_f64() * 1e3),
            Self::Bytes(bytes) => bytes_text(*bytes),
            Self::Ratio(ratio) => format!("{ratio:.2}"),
            Self::Verified(true) => "yes".to_string(),
            Self::Verified(false) => "NO".to_string(),
            Self::Nothing => "-".to_string(),
        }
    }

    fn json(&self, column: &str) -> (String, Value) {
        let name = column.replace(' ', "_");
        match self {
            Self::Text(text) => (name, json!(text)),
            Self::Count(count) => (name, json!(count)),
            Self::Seconds(time) | Self::Milliseconds(time) => {
                (name + "_seconds", json!(time.as_secs_f64()))
            }
            Self::Bytes(bytes) => (name + "_bytes", json!(bytes)),
            Self::Ratio(ratio) => (name, json!(ratio)),
            Self::Verified(verified) => (name, json!(verified)),
            Self::Nothing => (name, Value::Null),
        }
    }
}

/// The middle one, or the lower of the two in the middle.
pub(crate) fn median<T: Ord + Copy>(values: impl IntoIterator<Item = T>) -> Option<T> {
    percentile(values, 50)
}

/// The smallest value that `percent` of all values do not exceed.
pub(crate) fn percentile<T: Ord + Copy>(
    values: impl IntoIterator<Item = T>,
    percent: usize,
) -> Option<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_unstable();
    values.get((values.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

fn bytes_text(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.2} GB", value / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_its_json_has_numbers() {
        let mut table = Table::new("what", &["tool", "wall", "wire", "verified"]);
        table.row(vec![
            Cell::Text("consort".into()),
            Cell::Seconds(Duration::from_millis(1500)),
            Cell::Bytes(2_500_000),
            Cell::Verified(true),
        ]);
        let nothing = vec![Cell::Text("x".into()), Cell::Nothing, Cell::Bytes(1), Cell::Nothing];
        table.row(nothing);
        let text = table.text();
        assert!(text.contains("| consort | 1.50 s | 2.5 MB |      yes |"), "{text}");
        let json: Value = serde_json::from_str(&table.json()).unwrap();
        assert_eq!(json["rows"][0]["wall_seconds"], 1.5);
        assert_eq!(json["rows"][0]["wire_bytes"], 2_500_000);
        assert!(table.is_verified());
    }

    #[test]
    fn medians_and_percentiles_are_values_that_were_measured() {
        assert_eq!(median([3, 1, 2]), Some(2));
        assert_eq!(median([4, 1, 2, 3]), Some(2));
        assert_eq!(median(Vec::<u8>::new()), None);
        assert_eq!(percentile(1..=100, 99), Some(99));
        assert_eq!(percentile(1..=1000, 99), Some(990));
        assert_eq!(percentile([7], 99), Some(7));
    }
}
