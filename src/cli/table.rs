//! Tables as docker prints them: columns three blanks apart, no line longer than the terminal.

use std::io::{self, IsTerminal as _};

/// Blanks between columns.
const GAP: usize = 3;

/// Least width of a column, with its gap.
const NARROWEST: usize = 10;

/// A column that gives way keeps so much.
const KEPT: usize = 8;

/// Rows under titles.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these titles.
    pub fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(|title| (*title).to_owned()).collect()] }
    }

    /// A further row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A line end in a cell would be a row that is none.
        let cells = cells.into_iter().map(|cell| cell.replace(['\n', '\r', '\t'], " "));
        self.rows.push(cells.collect());
    }

    /// The lines, no longer than the terminal.
    pub fn text(&self) -> String {
        self.within(terminal_width())
    }

    /// The lines within a width; `None` is as wide as it takes.
    pub fn within(&self, width: Option<usize>) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        if let Some(most) = width {
            shrink(&mut widths, most);
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths.get(column).copied().unwrap_or(0);
                let cell = cut(cell, width);
                let padded = (width + GAP).max(NARROWEST);
                line.push_str(&format!("{cell:<padded$}"));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Prints it.
    pub fn print(&self) -> io::Result<()> {
        io::Write::write_all(&mut io::stdout(), self.text().as_bytes())
    }
}

/// Columns of the terminal that standard output is; `None` if it is none.
pub fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    let size = stdout.is_terminal().then(|| rustix::termios::tcgetwinsize(&stdout).ok()).flatten()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// The widest columns give way until the line fits.
fn shrink(widths: &mut [usize], most: usize) {
    let total = |widths: &[usize]| {
        let Some((last, others)) = widths.split_last() else { return 0 };
        others.iter().map(|width| (width + GAP).max(NARROWEST)).sum::<usize>() + last
    };
    while total(widths) > most {
        match widths.iter_mut().max() {
            Some(widest) if *widest > KEPT => *widest -= 1,
            _ => return,
        }
    }
}

fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let kept: String = cell.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_fit() {
        let mut table = Table::new(&["ID", "COMMAND", "NAMES"]);
        table.row(["0123456789ab".into(), format!("\"{}\"", "x".repeat(60)), "web".into()]);
        let wide = table.within(None);
        assert!(wide.starts_with("ID             COMMAND"), "{wide}");
        let narrow = table.within(Some(50));
        assert!(narrow.lines().all(|line| line.chars().count() <= 50), "{narrow}");
        assert!(narrow.contains('…') && narrow.contains("web"), "{narrow}");
    }
}
