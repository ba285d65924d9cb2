//! A parsed TOML file that remembers where everything stood, and what is wrong with it.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;
use super::keys::Section;

/// The file, from which the sections take their keys one after the other; what is left over is unknown.
pub(super) struct Document<'a> {
    name: &'a str,
    text: &'a str,
    table: DeTable<'a>,
    /// Where each key that was taken stood, for problems that only show later.
    taken: Vec<(&'static str, &'static str, Range<usize>)>,
    /// Everything found so far.
    pub problems: Vec<Problem>,
}

impl<'a> Document<'a> {
    /// A file without a line.
    pub fn empty() -> Document<'static> {
        Document::parse("", "")
    }

    /// Parses all of `text`; every syntax error becomes a problem.
    pub fn parse(name: &'a str, text: &'a str) -> Document<'a> {
        let (table, errors) = DeTable::parse_recoverable(text);
        // What was recovered from a broken file would only bring problems that nobody wrote.
        let table = if errors.is_empty() { table.into_inner() } else { DeTable::new() };
        let mut document = Document { name, text, table, taken: Vec::new(), problems: Vec::new() };
        for error in errors {
            document.problem_at(error.span().unwrap_or(0..0), error.message().to_owned());
        }
        document
    }

    /// The value of `[section] key` read by `parser`; `default` (TOML text) when the file does not have it or has it
    /// wrong, in which case there is a problem more.
    pub fn take<T>(
        &mut self,
        section: &'static str,
        key: &'static str,
        default: &str,
        parser: impl Fn(&DeValue<'_>) -> Result<T, String>,
    ) -> T {
        let found = match self.table.get_mut(section).map(Spanned::get_mut) {
            Some(DeValue::Table(table)) => table.remove(key),
            _ => None,
        };
        if let Some(value) = found {
            self.taken.push((section, key, value.span()));
            match parser(value.get_ref()) {
                Ok(value) => return value,
                Err(message) => self.problem_at(value.span(), format!("`{section}.{key}` {message}")),
            }
        }
        let default = DeValue::parse(default).map_err(|error| error.to_string());
        default
            .and_then(|value| parser(value.get_ref()))
            .expect("defaults are constants, and a test reads every one of them")
    }

    /// The tables `[group.NAME]`, each read by `parser` from its keys, of which there are no others than `keys`.
    pub fn take_named<T>(
        &mut self,
        group: &'static str,
        keys: &[&str],
        parser: impl Fn(&str, &DeTable<'_>) -> Result<T, String>,
    ) -> BTreeMap<String, T> {
        let mut found = BTreeMap::new();
        let Some((_, value)) = self.table.remove_entry(group) else { return found };
        let DeValue::Table(tables) = value.get_ref() else {
            self.problem_at(value.span(), format!("`{group}` is a group of sections: write [{group}.NAME]"));
            return found;
        };
        for (name, table) in tables {
            let place = format!("{group}.{}", name.get_ref());
            let DeValue::Table(entries) = table.get_ref() else {
                self.problem_at(name.span(), format!("`{place}` is a section: write [{place}]"));
                continue;
            };
            let unknown = entries.keys().find(|key| !keys.contains(&key.get_ref().as_ref()));
            if let Some(key) = unknown {
                let hint = did_you_mean(key.get_ref(), keys.iter().copied());
                self.problem_at(key.span(), format!("unknown key `{place}.{}`{hint}", key.get_ref()));
                continue;
            }
            match parser(name.get_ref(), entries) {
                Ok(value) => drop(found.insert(name.get_ref().to_string(), value)),
                Err(message) => self.problem_at(name.span(), format!("`{place}` {message}")),
            }
        }
        found
    }

    /// Every key that no section took is a problem.
    pub fn refuse_leftovers(&mut self, sections: &[Section]) {
        let mut found = Vec::new();
        for (name, value) in &self.table {
            let Some(section) = sections.iter().find(|section| section.name == name.get_ref().as_ref())
            else {
                let kind = if matches!(value.get_ref(), DeValue::Table(_)) { "section" } else { "key" };
                let hint = top_level_hint(name.get_ref(), kind, sections);
                found.push((name.span(), format!("unknown {kind} `{}`{hint}", name.get_ref())));
                continue;
            };
            let DeValue::Table(table) = value.get_ref() else {
                found.push((value.span(), format!("`{}` is a section: write [{0}]", section.name)));
                continue;
            };
            for key in table.keys() {
                let hint = key_hint(key.get_ref(), section, sections);
                found.push((key.span(), format!("unknown key `{}.{}`{hint}", section.name, key.get_ref())));
            }
        }
        found.sort_by_key(|(span, _)| span.start);
        for (span, message) in found {
            self.problem_at(span, message);
        }
    }

    /// A problem with `[section] key` that its parser could not see.
    pub fn problem(&mut self, section: &str, key: &str, message: String) {
        let span =
            self.taken.iter().find(|(s, k, _)| (*s, *k) == (section, key)).map(|(.., span)| span.clone());
        let message = format!("`{section}.{key}` {message}");
        match span {
            Some(span) => self.problem_at(span, message),
            None => self.problems.push(Problem { place: self.name.to_owned(), message }),
        }
    }

    fn problem_at(&mut self, span: Range<usize>, message: String) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        self.problems.push(Problem { place: format!("{}:{line}:{column}", self.name), message });
    }
}

/// `, did you mean …?` for something that stands outside of all known sections.
fn top_level_hint(name: &str, kind: &str, sections: &[Section]) -> String {
    if kind == "key"
        && let Some(section) = sections.iter().find(|section| section.keys.iter().any(|key| key.name == name))
    {
        return format!(", it belongs under [{}]", section.name);
    }
    did_you_mean(name, sections.iter().map(|section| section.name))
}

/// The same for a key within a section.
fn key_hint(name: &str, section: &Section, sections: &[Section]) -> String {
    if let Some(other) = sections.iter().find(|other| other.keys.iter().any(|key| key.name == name)) {
        return format!(", it belongs under [{}]", other.name);
    }
    did_you_mean(name, section.keys.iter().map(|key| key.name))
}

/// `, did you mean …?` when a candidate is near enough to be meant, else nothing.
pub(super) fn did_you_mean<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    let plain = word.to_ascii_lowercase().replace('-', "_");
    let nearest = candidates.map(|candidate| (distance(&plain, candidate), candidate)).min();
    match nearest {
        Some((edits, candidate)) if edits * 3 <= candidate.len().max(3) => {
            format!(", did you mean `{candidate}`?")
        }
        _ => String::new(),
    }
}

/// Edits (insert, delete, replace, swap of neighbours) from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=to.len()).collect()];
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let mut edits = (rows[i][j] + usize::from(a != b)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && from[i - 1] == *b && to[j - 1] == *a {
                edits = edits.min(rows[i - 1][j - 1] + 1);
            }
            row.push(edits);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}
