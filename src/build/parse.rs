//! From text to instructions: directives, comments, continuations, heredocs, flags.

use crate::error::Error;

/// Longest file that is read.
pub const TEXT_MAX: usize = 1 << 20;

/// A Dockerfile, instruction by instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dockerfile {
    /// In order.
    pub instructions: Vec<Instruction>,
    /// The character that continues lines and takes meaning away.
    pub escape: char,
    /// `# syntax=`, which is not looked at: there is one frontend.
    pub syntax: Option<String>,
    /// What may not be meant.
    pub warnings: Vec<Error>,
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// In capitals.
    pub keyword: String,
    /// `--name` or `--name=value`, in order.
    pub flags: Vec<(String, Option<String>)>,
    /// What follows, on one line.
    pub rest: String,
    /// Documents that follow the line.
    pub heredocs: Vec<Heredoc>,
    /// First and last line in the file, from 1.
    pub lines: (usize, usize),
}

/// A document in a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it.
    pub name: String,
    /// Variables are expanded in it: the word was not quoted.
    pub expand: bool,
    /// `<<-`: tabs at the beginning of lines are not part of it.
    pub chomp: bool,
    /// `3<<EOF`: for the shell's descriptor 3.
    pub descriptor: Option<u32>,
    /// The document.
    pub content: String,
}

impl Instruction {
    /// The value of a flag; the last one counts.
    pub fn flag(&self, name: &str) -> Option<&str> {
        let mut found = self.flags.iter().rev().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_deref().unwrap_or("true"))
    }

    /// All values of a flag.
    pub fn flag_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.flags.iter().filter(move |(known, _)| known == name).filter_map(|(_, value)| value.as_deref())
    }

    /// As it is written in the history: keyword, flags and the rest on one line.
    pub fn text(&self) -> String {
        let mut text = self.keyword.clone();
        for (name, value) in &self.flags {
            text.push_str(" --");
            text.push_str(name);
            if let Some(value) = value {
                text.push('=');
                text.push_str(value);
            }
        }
        if !self.rest.is_empty() {
            text.push(' ');
            text.push_str(&self.rest);
        }
        text
    }
}

struct Lines<'a> {
    lines: Vec<&'a str>,
    next: usize,
}

impl<'a> Lines<'a> {
    fn take(&mut self) -> Option<&'a str> {
        let line = self.lines.get(self.next).copied()?;
        self.next += 1;
        Some(line)
    }
}

/// Parses a whole file.
pub fn parse(text: &str) -> Result<Dockerfile, Error> {
    if text.len() > TEXT_MAX {
        return Err(Error::of_file(format!("the Dockerfile is larger than {TEXT_MAX} bytes")));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut file = Dockerfile { escape: '\\', ..Dockerfile::default() };
    let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    let mut lines = Lines { lines, next: 0 };
    directives(&mut file, &mut lines)?;
    while let Some(line) = lines.take() {
        let first = lines.next;
        if is_comment(line) || line.trim().is_empty() {
            continue;
        }
        let (mut joined, mut continues) = continued(line.trim_start(), file.escape);
        let mut has_empty = false;
        while continues {
            let Some(next) = lines.take() else { break };
            if is_comment(next) {
                continue;
            }
            if next.trim().is_empty() {
                has_empty = true;
                continue;
            }
            let (piece, more) = continued(next, file.escape);
            joined.push_str(&piece);
            continues = more;
        }
        let mut instruction = instruction(&joined, (first, lines.next))?;
        if has_empty {
            file.warnings.push(Error::at((first, lines.next), "empty line inside of an instruction"));
        }
        documents(&mut instruction, &mut lines, file.escape)?;
        file.instructions.push(instruction);
    }
    if file.instructions.is_empty() {
        return Err(Error::of_file("the Dockerfile has no instructions"));
    }
    Ok(file)
}

/// One instruction on a line of its own, as ONBUILD holds it.
pub fn parse_one(text: &str, lines: (usize, usize)) -> Result<Instruction, Error> {
    instruction(text.trim(), lines)
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// Comments at the very beginning that say something to the parser.
fn directives(file: &mut Dockerfile, lines: &mut Lines<'_>) -> Result<(), Error> {
    let mut seen = Vec::new();
    while let Some(line) = lines.lines.get(lines.next) {
        let Some(comment) = line.trim_start().strip_prefix('#') else { return Ok(()) };
        let Some((key, value)) = comment.split_once('=') else { return Ok(()) };
        let key = key.trim().to_ascii_lowercase();
        if !matches!(key.as_str(), "syntax" | "escape" | "check") {
            return Ok(());
        }
        lines.next += 1;
        let at = (lines.next, lines.next);
        if seen.contains(&key) {
            return Err(Error::at(at, format!("only one {key} parser directive can be used")));
        }
        match (key.as_str(), value.trim()) {
            ("escape", "\\") => file.escape = '\\',
            ("escape", "`") => file.escape = '`',
            ("escape", other) => {
                return Err(Error::at(at, format!("invalid escape token {other:?}: it must be ` or \\")));
            }
            ("syntax", value) => file.syntax = Some(value.to_owned()),
            _ => {}
        }
        seen.push(key);
    }
    Ok(())
}

/// A line without the character that continues it, and whether it was there. Two of them are none.
fn continued(line: &str, escape: char) -> (String, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    if let Some(before) = trimmed.strip_suffix(escape)
        && !before.ends_with(escape)
    {
        return (before.to_owned(), true);
    }
    (line.to_owned(), false)
}

const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

fn instruction(line: &str, lines: (usize, usize)) -> Result<Instruction, Error> {
    let line = line.trim();
    let (keyword, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let keyword = keyword.to_ascii_uppercase();
    if !KEYWORDS.contains(&keyword.as_str()) {
        let hint = nearest(&keyword).map(|near| format!(" (did you mean {near}?)")).unwrap_or_default();
        let shown: String = keyword.chars().take(40).collect();
        return Err(Error::at(lines, format!("unknown instruction: {shown}{hint}")));
    }
    let (flags, rest) = flags(rest.trim_start(), lines)?;
    Ok(Instruction { keyword, flags, rest: rest.trim().to_owned(), heredocs: Vec::new(), lines })
}

/// The keyword with one or two letters changed.
fn nearest(word: &str) -> Option<&'static str> {
    let near = KEYWORDS.iter().map(|known| (distance(known, word), *known)).min()?;
    (near.0 <= 2 && near.0 < near.1.len()).then_some(near.1)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(32).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut previous = i + 1;
        for (j, right) in b.iter().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(0);
            let cost = usize::from(left != *right);
            let here = (diagonal + cost).min(above + 1).min(previous + 1);
            if let Some(cell) = row.get_mut(j) {
                *cell = previous;
            }
            (diagonal, previous) = (above, here);
        }
        if let Some(cell) = row.last_mut() {
            *cell = previous;
        }
    }
    row.last().copied().unwrap_or(0)
}

type Flags = Vec<(String, Option<String>)>;

/// Words that begin with two dashes, up to the first that does not.
fn flags(mut rest: &str, lines: (usize, usize)) -> Result<(Flags, &str), Error> {
    let mut flags = Flags::new();
    while let Some(word) = rest.strip_prefix("--") {
        // Quotes keep a word together.
        let mut quote = None;
        let mut end = word.len();
        let mut text = String::new();
        let mut chars = word.char_indices();
        while let Some((at, c)) = chars.next() {
            match (quote, c) {
                (None, c) if c.is_whitespace() => {
                    end = at;
                    break;
                }
                (None, '"' | '\'') => quote = Some(c),
                (Some(open), c) if open == c => quote = None,
                (Some('"') | None, '\\') => text.extend(chars.next().map(|(_, escaped)| escaped)),
                (_, c) => text.push(c),
            }
        }
        rest = word.get(end..).unwrap_or_default().trim_start();
        if text.is_empty() {
            // A lone `--` ends the flags.
            break;
        }
        match text.split_once('=') {
            Some((name, value)) => flags.push((name.to_owned(), Some(value.to_owned()))),
            None => flags.push((text, None)),
        }
    }
    if flags.len() > 1000 {
        return Err(Error::at(lines, "more than 1000 flags"));
    }
    Ok((flags, rest))
}

/// Reads the documents that the line announces.
fn documents(instruction: &mut Instruction, lines: &mut Lines<'_>, escape: char) -> Result<(), Error> {
    if !matches!(instruction.keyword.as_str(), "ADD" | "COPY" | "RUN") || instruction.rest.starts_with('[') {
        return Ok(());
    }
    for mut heredoc in announced(&instruction.rest, escape) {
        let from = lines.next;
        let mut ended = false;
        while let Some(line) = lines.take() {
            let candidate = if heredoc.chomp { line.trim_start_matches('\t') } else { line };
            if candidate == heredoc.name {
                ended = true;
                break;
            }
            heredoc.content.push_str(candidate);
            heredoc.content.push('\n');
        }
        if !ended {
            return Err(Error::at(
                (instruction.lines.0, from),
                format!("unterminated heredoc {}", heredoc.name),
            ));
        }
        instruction.lines.1 = lines.next;
        instruction.heredocs.push(heredoc);
    }
    Ok(())
}

/// The documents that a line asks for: words like `<<EOF`, `<<-"EOF"`, `3<<EOF`, outside of quotes.
fn announced(line: &str, escape: char) -> Vec<Heredoc> {
    let mut found = Vec::new();
    let chars: Vec<char> = line.chars().collect();
    let mut at = 0;
    let mut quote = None;
    let mut word_start = true;
    while let Some(c) = chars.get(at).copied() {
        match (quote, c) {
            (None, c) if c == escape => at += 1,
            (None, '"' | '\'') => quote = Some(c),
            (Some('"'), c) if c == escape => at += 1,
            (Some(open), c) if open == c => quote = None,
            (None, _) if word_start && (c == '<' || c.is_ascii_digit()) => {
                if let Some((heredoc, end)) = heredoc(&chars, at) {
                    found.push(heredoc);
                    at = end;
                    word_start = false;
                    continue;
                }
            }
            _ => {}
        }
        word_start = quote.is_none() && (c.is_whitespace() || matches!(c, '|' | ';' | '&' | '('));
        at += 1;
    }
    found
}

/// A word that announces a document, and where it ends.
fn heredoc(chars: &[char], start: usize) -> Option<(Heredoc, usize)> {
    let mut at = start;
    let mut digits = String::new();
    while let Some(digit) = chars.get(at).filter(|c| c.is_ascii_digit()) {
        digits.push(*digit);
        at += 1;
    }
    if chars.get(at) != Some(&'<') || chars.get(at + 1) != Some(&'<') || chars.get(at + 2) == Some(&'<') {
        return None;
    }
    at += 2;
    let chomp = chars.get(at) == Some(&'-');
    at += usize::from(chomp);
    let (mut name, mut quote, mut quoted) = (String::new(), None, false);
    while let Some(c) = chars.get(at).copied() {
        match (quote, c) {
            (None, c) if c.is_whitespace() || matches!(c, '|' | ';' | '&' | '>' | ')' | '(') => break,
            (None, '<') => return None,
            (None, '"' | '\'') => (quote, quoted) = (Some(c), true),
            (Some(open), c) if open == c => quote = None,
            (_, '\\') => quoted = true,
            (_, c) => name.push(c),
        }
        at += 1;
    }
    let valid = !name.is_empty() && quote.is_none();
    let descriptor = digits.parse().ok();
    valid.then(|| (Heredoc { name, expand: !quoted, chomp, descriptor, content: String::new() }, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Instruction {
        parse(text).unwrap().instructions.remove(0)
    }

    #[test]
    fn lines_continue_over_comments_and_nothing() {
        let file = parse("FROM a\nRUN one \\\n  # comment\n\n  two \\ \t\n  three\nCMD x").unwrap();
        assert_eq!(file.instructions[1].rest, "one   two   three");
        assert_eq!(file.instructions[1].lines, (2, 6));
        assert_eq!(file.instructions[2].lines, (7, 7));
        assert_eq!(file.warnings.len(), 1);
    }

    #[test]
    fn the_escape_can_be_chosen() {
        let file = parse("# escape=`\n# a comment\nFROM a\nRUN x `\n y\\\nENV a=b").unwrap();
        assert_eq!(file.instructions[1].rest, "x  y\\");
        assert_eq!(file.instructions.len(), 3);
        assert!(parse("# escape=x\nFROM a").is_err());
        assert!(parse("# escape=`\n# escape=`\nFROM a").is_err());
        assert_eq!(parse("# just text\n# escape=`\nFROM a").unwrap().escape, '\\');
        assert_eq!(
            parse("\u{feff}# syntax=docker/dockerfile:1\r\nFROM a\r\n").unwrap().syntax.unwrap(),
            "docker/dockerfile:1"
        );
    }

    #[test]
    fn documents_follow() {
        let run = one("RUN <<EOF cat <<-\"OTHER\"\nfirst $x\nEOF\n\tsecond\n\tOTHER\n");
        assert_eq!(run.heredocs.len(), 2);
        assert_eq!((run.heredocs[0].content.as_str(), run.heredocs[0].expand), ("first $x\n", true));
        assert_eq!((run.heredocs[1].content.as_str(), run.heredocs[1].expand), ("second\n", false));
        assert_eq!(run.lines, (1, 5));
        assert!(parse("RUN <<EOF\nnever").unwrap_err().message.contains("unterminated"));
        assert_eq!(one("RUN echo \"<<EOF\"").heredocs, []);
        assert_eq!(one("RUN cat <<<word").heredocs, []);
        assert_eq!(one("RUN 3<<E cat\nx\nE").heredocs[0].descriptor, Some(3));
    }

    #[test]
    fn flags_come_first() {
        let copy = one("copy --from=a --chown=\"me:you\" --link --  --x y");
        assert_eq!(copy.keyword, "COPY");
        assert_eq!(copy.flag("from"), Some("a"));
        assert_eq!(copy.flag("chown"), Some("me:you"));
        assert_eq!(copy.flag("link"), Some("true"));
        assert_eq!(copy.rest, "--x y");
    }

    #[test]
    fn typing_errors_are_named() {
        let error = parse("FROM a\nRUNN x").unwrap_err();
        assert_eq!(
            (error.first, error.message.as_str()),
            (2, "unknown instruction: RUNN (did you mean RUN?)")
        );
        assert!(error.shown("Dockerfile", "FROM a\nRUNN x").contains("   2 | >>> RUNN x"));
        assert!(parse("").is_err());
        assert_eq!(parse("XYZZY").unwrap_err().message, "unknown instruction: XYZZY");
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_fall(text in "([A-Z]{3,6}|[ \\\\\n\t<>#\"'$={}`-]|\\PC){0,80}") {
            if let Ok(file) = parse(&text) {
                for instruction in &file.instructions {
                    let (first, last) = instruction.lines;
                    proptest::prop_assert!(first >= 1 && first <= last && last <= text.split('\n').count());
                }
            }
        }
    }
}
