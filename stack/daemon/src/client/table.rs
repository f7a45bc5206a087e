//! Tables for people: aligned columns, cut at the width of the terminal.

use crate::stdout;

/// Spaces between two columns.
const GAP: &str = "  ";

/// Rows of text, the first of which is the head.
#[derive(Debug)]
pub(super) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(super) fn new(head: &[&str; COLUMNS]) -> Self {
        Self { rows: vec![head.map(str::to_owned)] }
    }

    /// Adds a row below the others.
    pub(super) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells);
    }

    /// The table as text. On a terminal no line is longer than the terminal is wide.
    pub(super) fn render(&self) -> String {
        self.with_width(stdout::width())
    }

    fn with_width(&self, width: Option<usize>) -> String {
        let mut widths = [0; COLUMNS];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = cells.collect::<Vec<_>>().join(GAP);
            let line: String = match width {
                Some(width) => line.chars().take(width).collect(),
                None => line,
            };
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number of bytes with three digits, such as `12.3M`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["", "K", "M", "G", "T", "P"];
    let (mut value, mut unit) = (bytes as f64, 0);
    // Rounding may reach the next unit: 1023.6 KiB is shown as 1.0M.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0}{}", UNITS[unit])
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_are_cut() {
        let mut table = Table::new(&["NAME", "HARD"]);
        table.row(["web-1".to_owned(), "64MiB".to_owned()]);
        table.row(["b".to_owned(), "-".to_owned()]);
        assert_eq!(table.with_width(None), "NAME   HARD\nweb-1  64MiB\nb      -\n");
        assert_eq!(table.with_width(Some(8)), "NAME   H\nweb-1  6\nb      -\n");
    }

    #[test]
    fn bytes_have_three_digits() {
        for (n, expected) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0K"),
            (2048, "2.0K"),
            (102_400, "100K"),
            (1_048_000, "1.0M"),
            (16 << 20, "16.0M"),
            (1 << 40, "1.0T"),
        ] {
            assert_eq!(bytes(n), expected);
        }
    }
}
