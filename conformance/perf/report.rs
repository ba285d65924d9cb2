//! Samples, and the table that is made of them.

use std::fmt::Write as _;
use std::time::Duration;

use crate::runtime::Kind;

/// What a number counts; decides how it is printed and which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Less is better.
    Milliseconds,
    /// Less is better.
    Kilobytes,
    /// More is better.
    PerSecond,
    /// Less is better.
    Percent,
}

/// All samples of one measurement.
#[derive(Debug)]
struct Row {
    what: String,
    unit: Unit,
    /// Kind, round, value.
    samples: Vec<(Kind, usize, f64)>,
}

/// All measurements in the order in which they first came.
#[derive(Debug, Default)]
pub struct Report {
    /// The round that samples belong to now.
    pub round: usize,
    rows: Vec<Row>,
    /// What no runtime is measured by: name, wall-clock and CPU times in ms.
    floors: Vec<(String, Vec<(f64, f64)>)>,
}

impl Report {
    /// Adds a sample.
    pub fn add(&mut self, kind: Kind, what: &str, unit: Unit, value: f64) {
        let sample = (kind, self.round, value);
        match self.rows.iter_mut().find(|row| row.what == what) {
            Some(row) => row.samples.push(sample),
            None => self.rows.push(Row { what: what.to_owned(), unit, samples: vec![sample] }),
        }
    }

    /// Adds a duration.
    pub fn time(&mut self, kind: Kind, what: &str, duration: Duration) {
        self.add(kind, what, Unit::Milliseconds, duration.as_secs_f64() * 1e3);
    }

    /// Adds a measurement of what the work costs at least.
    pub fn floor(&mut self, what: &str, wall: Duration, cpu: Duration) {
        let sample = (wall.as_secs_f64() * 1e3, cpu.as_secs_f64() * 1e3);
        match self.floors.iter_mut().find(|(name, _)| name == what) {
            Some((_, samples)) => samples.push(sample),
            None => self.floors.push((what.to_owned(), vec![sample])),
        }
    }

    /// A Markdown table of the floors, if there are any: medians [min-max] of all rounds.
    pub fn floors(&self) -> String {
        if self.floors.is_empty() {
            return String::new();
        }
        let mut text = String::from("\n| floor | wall, ms | CPU, ms |\n| --- | --- | --- |\n");
        for (what, samples) in &self.floors {
            let (wall, cpu): (Vec<f64>, Vec<f64>) = samples.iter().copied().unzip();
            let show = |value| Unit::Milliseconds.show(value);
            let _ = writeln!(text, "| {what} | {} | {} |", spread(&wall, show), spread(&cpu, show));
        }
        text
    }

    /// A Markdown table: for each kind the median [min-max] of all samples; how many times better each kind is than the
    /// last, as the median of the rounds' ratios of medians [min-max].
    pub fn table(&self, kinds: &[Kind]) -> String {
        let mut text = String::from("| |");
        kinds.iter().for_each(|kind| _ = write!(text, " {} |", kind.name()));
        let (last, others) = kinds.split_last().map_or((None, kinds), |(last, others)| (Some(*last), others));
        for kind in others {
            match others {
                [_] => text.push_str(" better by |"),
                _ => _ = write!(text, " {} better by |", kind.name()),
            }
        }
        let columns = kinds.len() + 1 + others.len();
        let _ = write!(text, "\n|{}\n", " --- |".repeat(columns));
        for row in &self.rows {
            let _ = write!(text, "| {}, {} |", row.what, row.unit.name());
            for &kind in kinds {
                let values = row.values(kind, None);
                let cell = spread(&values, |value| row.unit.show(value));
                let _ = write!(text, " {cell} |");
            }
            for (&ours, theirs) in others.iter().flat_map(|ours| Some((ours, last?))) {
                let ratios = spread(&row.ratios(ours, theirs), |ratio| format!("{ratio:.1}x"));
                let _ = write!(text, " {ratios} |");
            }
            text.push('\n');
        }
        text
    }
}

impl Row {
    fn values(&self, kind: Kind, round: Option<usize>) -> Vec<f64> {
        let wanted =
            |sample: &&(Kind, usize, f64)| sample.0 == kind && round.is_none_or(|round| sample.1 == round);
        self.samples.iter().filter(wanted).map(|sample| sample.2).collect()
    }

    fn ratios(&self, ours: Kind, theirs: Kind) -> Vec<f64> {
        let rounds = self.samples.iter().map(|sample| sample.1).max().map_or(0, |last| last + 1);
        (0..rounds)
            .filter_map(|round| {
                let ours = median(&self.values(ours, Some(round)))?;
                let theirs = median(&self.values(theirs, Some(round)))?;
                Some(if self.unit == Unit::PerSecond { ours / theirs } else { theirs / ours })
            })
            .collect()
    }
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Milliseconds => "ms",
            Unit::Kilobytes => "kB",
            Unit::PerSecond => "per s",
            Unit::Percent => "%",
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Unit::Kilobytes => format!("{value:.0}"),
            _ if value >= 100.0 => format!("{value:.0}"),
            _ if value >= 10.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        }
    }
}

fn spread(values: &[f64], show: impl Fn(f64) -> String) -> String {
    let Some(middle) = median(values) else { return "-".into() };
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.len() == 1 {
        show(middle)
    } else {
        format!("{} [{}-{}]", show(middle), show(least), show(most))
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[half]),
        _ => Some((sorted[half - 1] + sorted[half]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_spreads_and_ratios() {
        let mut report = Report::default();
        for (round, ours, theirs) in [(0, [1.0, 3.0], [20.0, 20.0]), (1, [2.0, 2.0], [30.0, 50.0])] {
            report.round = round;
            ours.iter().for_each(|&v| report.add(Kind::Pinnace, "x", Unit::Milliseconds, v));
            theirs.iter().for_each(|&v| report.add(Kind::Containerd, "x", Unit::Milliseconds, v));
        }
        report.add(Kind::Pinnace, "rate", Unit::PerSecond, 100.0);
        report.add(Kind::Containerd, "rate", Unit::PerSecond, 10.0);
        let table = report.table(&[Kind::Pinnace, Kind::Containerd]);
        assert!(
            table.contains("| x, ms | 2.00 [1.00-3.00] | 25.0 [20.0-50.0] | 15.0x [10.0x-20.0x] |"),
            "{table}"
        );
        assert!(table.contains("| rate, per s | 100 | 10.0 | 10.0x |"), "{table}");
        let table = report.table(&[Kind::Pinnace, Kind::Native, Kind::Containerd]);
        assert!(table.contains("| rate, per s | 100 | - | 10.0 | 10.0x | - |"), "{table}");
        assert!(!report.table(&[Kind::Pinnace]).contains("better"));
    }
}
