//! What is wrong with a Dockerfile, and where.

use std::fmt::Write as _;

/// Lines of the file that are shown around the ones that are meant.
const AROUND: usize = 2;

/// Something is wrong with a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// First line, counted from 1; 0 for the file as a whole.
    pub first: usize,
    /// Last line.
    pub last: usize,
    /// What is wrong.
    pub message: String,
}

impl Error {
    /// About these lines.
    pub fn at((first, last): (usize, usize), message: impl Into<String>) -> Self {
        Self { first, last, message: message.into() }
    }

    /// About the file.
    pub fn of_file(message: impl Into<String>) -> Self {
        Self::at((0, 0), message)
    }

    /// The lines in their surroundings, with an arrow, and what is wrong.
    pub fn shown(&self, name: &str, text: &str) -> String {
        format!("{}{}", excerpt(name, text, (self.first, self.last)), self.message)
    }
}

/// The lines of a file in their surroundings.
pub fn excerpt(name: &str, text: &str, (first, last): (usize, usize)) -> String {
    let mut shown = String::new();
    if first == 0 {
        return shown;
    }
    let _ = writeln!(shown, "{name}:{first}");
    shown.push_str("--------------------\n");
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line)) {
        if number + AROUND >= first && number <= last + AROUND {
            let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
            let _ = writeln!(shown, "{number:4} | {mark} {line}");
        }
    }
    shown.push_str("--------------------\n");
    shown
}
