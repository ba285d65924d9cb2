//! Words: quotes and variables, as BuildKit's `shell` package has them.

use std::collections::BTreeMap;

/// What variables mean at one place of a stage. One instruction sees what was there before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Of ENV: they win.
    pub env: BTreeMap<String, String>,
    /// Of ARG.
    pub args: BTreeMap<String, String>,
}

impl Scope {
    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.env.get(name).or_else(|| self.args.get(name)).map(String::as_str)
    }
}

/// Longest text that one word may become.
const WORD_MAX: usize = 1 << 20;
/// `${a:-${b:-${c…}}}`
const DEPTH_MAX: usize = 32;

/// One word: quotes removed, variables in place.
pub fn word(text: &str, scope: &Scope, escape: char) -> Result<String, String> {
    let words = process(text, scope, escape)?;
    Ok(words.joined)
}

/// The same, split where the unquoted text or the value of a variable has blanks.
pub fn words(text: &str, scope: &Scope, escape: char) -> Result<Vec<String>, String> {
    Ok(process(text, scope, escape)?.split)
}

/// Only variables: quotes stay, for a document or a shell will read them.
pub fn variables(text: &str, scope: &Scope, escape: char) -> Result<String, String> {
    let mut reader = Reader::new(text, scope, escape, 0);
    let mut out = String::new();
    while let Some(c) = reader.peek() {
        match c {
            c if c == escape => {
                reader.at += 1;
                match reader.peek() {
                    Some('$') => out.push('$'),
                    Some(next) => out.extend([escape, next]),
                    None => out.push(escape),
                }
                reader.at += 1;
            }
            '$' => out.push_str(&reader.dollar()?),
            c => {
                out.push(c);
                reader.at += 1;
            }
        }
        check(&out)?;
    }
    Ok(out)
}

fn check(out: &str) -> Result<(), String> {
    if out.len() > WORD_MAX { Err(format!("a word becomes longer than {WORD_MAX} bytes")) } else { Ok(()) }
}

#[derive(Default)]
struct Words {
    joined: String,
    split: Vec<String>,
    current: String,
    in_word: bool,
}

impl Words {
    fn push(&mut self, c: char) {
        self.joined.push(c);
        self.current.push(c);
        self.in_word = true;
    }

    fn quoted(&mut self, text: &str) {
        self.joined.push_str(text);
        self.current.push_str(text);
        self.in_word = true;
    }

    fn blank(&mut self, c: char) {
        self.joined.push(c);
        self.end();
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.in_word) {
            self.split.push(std::mem::take(&mut self.current));
        }
    }
}

fn process(text: &str, scope: &Scope, escape: char) -> Result<Words, String> {
    process_at(text, scope, escape, 0)
}

fn process_at(text: &str, scope: &Scope, escape: char, depth: usize) -> Result<Words, String> {
    let mut reader = Reader::new(text, scope, escape, depth);
    let mut words = Words::default();
    while let Some(c) = reader.peek() {
        match c {
            '\'' => {
                reader.at += 1;
                let text = reader.until_quote()?;
                words.quoted(&text);
            }
            '"' => {
                reader.at += 1;
                let text = reader.double_quoted()?;
                words.quoted(&text);
            }
            '$' => {
                let value = reader.dollar()?;
                for c in value.chars() {
                    if c.is_whitespace() { words.blank(c) } else { words.push(c) }
                }
            }
            c if c == escape => {
                reader.at += 1;
                if let Some(next) = reader.peek() {
                    words.push(next);
                    reader.at += 1;
                }
            }
            c if c.is_whitespace() => {
                words.blank(c);
                reader.at += 1;
            }
            c => {
                words.push(c);
                reader.at += 1;
            }
        }
        check(&words.joined)?;
    }
    words.end();
    Ok(words)
}

struct Reader<'a> {
    chars: Vec<char>,
    at: usize,
    scope: &'a Scope,
    escape: char,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &str, scope: &'a Scope, escape: char, depth: usize) -> Self {
        Self { chars: text.chars().collect(), at: 0, scope, escape, depth }
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn until_quote(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.peek() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching single-quote".to_owned()
                    );
                }
                Some('\'') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(c) => text.push(c),
            }
            self.at += 1;
        }
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.peek() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching double-quote".to_owned()
                    );
                }
                Some('"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(c) if c == self.escape => {
                    self.at += 1;
                    match self.peek() {
                        Some(next) if next == '"' || next == '$' || next == self.escape => text.push(next),
                        Some(next) => text.extend([self.escape, next]),
                        None => return Err("unexpected end of statement after an escape".to_owned()),
                    }
                    self.at += 1;
                }
                Some(c) => {
                    text.push(c);
                    self.at += 1;
                }
            }
            check(&text)?;
        }
    }

    /// At a `$`: what stands for it.
    fn dollar(&mut self) -> Result<String, String> {
        self.at += 1;
        match self.peek() {
            Some('{') => {
                self.at += 1;
                self.braces()
            }
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let name = self.name();
                Ok(self.scope.get(&name).unwrap_or_default().to_owned())
            }
            // Positional and special parameters, which nobody has set.
            Some(c) if c.is_ascii_digit() || matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!') => {
                self.at += 1;
                Ok(self.scope.get(&c.to_string()).unwrap_or_default().to_owned())
            }
            _ => Ok("$".to_owned()),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(c) = self.peek().filter(|c| c.is_ascii_alphanumeric() || *c == '_') {
            name.push(c);
            self.at += 1;
        }
        name
    }

    fn braces(&mut self) -> Result<String, String> {
        let name = match self.peek() {
            Some('}') | None => return Err("syntax error: missing variable name in ${}".to_owned()),
            Some(c) if c.is_ascii_alphanumeric() || c == '_' => self.name(),
            Some(c) => {
                self.at += 1;
                c.to_string()
            }
        };
        let value = self.scope.get(&name).map(str::to_owned);
        let Some(modifier) = self.peek() else { return Err("syntax error: missing '}'".to_owned()) };
        self.at += 1;
        match modifier {
            '}' => Ok(value.unwrap_or_default()),
            ':' => {
                let kind = self.peek().ok_or("syntax error: missing '}'")?;
                self.at += 1;
                let value = value.filter(|value| !value.is_empty());
                self.substitute(&name, kind, value)
            }
            '-' | '+' | '?' => self.substitute(&name, modifier, value),
            '#' | '%' => {
                let greedy = self.peek() == Some(modifier);
                self.at += usize::from(greedy);
                let pattern = self.word()?;
                Ok(trim(&value.unwrap_or_default(), &pattern, modifier == '#', greedy))
            }
            '/' => {
                let all = self.peek() == Some('/');
                self.at += usize::from(all);
                let raw = self.raw()?;
                let (pattern, with) = split_slash(&raw);
                let pattern = self.expanded(&pattern)?;
                let with = self.expanded(&with)?;
                Ok(replace(&value.unwrap_or_default(), &pattern, &with, all))
            }
            other => Err(format!("unsupported modifier ({other}) in substitution")),
        }
    }

    fn substitute(&mut self, name: &str, kind: char, value: Option<String>) -> Result<String, String> {
        let word = self.raw()?;
        match (kind, value) {
            ('-', Some(value)) => Ok(value),
            ('-', None) | ('+', Some(_)) => self.expanded(&word),
            ('+', None) => Ok(String::new()),
            ('?', Some(value)) => Ok(value),
            ('?', None) => {
                let message = self.expanded(&word)?;
                let message =
                    if message.is_empty() { "is not allowed to be unset" } else { message.as_str() };
                Err(format!("{name}: {message}"))
            }
            (other, _) => Err(format!("unsupported modifier (:{other}) in substitution")),
        }
    }

    fn word(&mut self) -> Result<String, String> {
        let raw = self.raw()?;
        self.expanded(&raw)
    }

    fn expanded(&self, raw: &str) -> Result<String, String> {
        if self.depth >= DEPTH_MAX {
            return Err("variables are nested too deeply".to_owned());
        }
        Ok(process_at(raw, self.scope, self.escape, self.depth + 1)?.joined)
    }

    /// The text up to the brace that closes this one.
    fn raw(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut depth = 0_usize;
        let mut quote = None;
        while let Some(c) = self.peek() {
            self.at += 1;
            match (quote, c) {
                (None, '}') if depth == 0 => return Ok(text),
                (None, '}') => depth -= 1,
                (None, '{') if text.ends_with('$') => depth += 1,
                (None, '\'' | '"') => quote = Some(c),
                (Some(open), c) if open == c => quote = None,
                (_, c) if c == self.escape => {
                    text.push(c);
                    if let Some(next) = self.peek() {
                        text.push(next);
                        self.at += 1;
                    }
                    continue;
                }
                _ => {}
            }
            text.push(c);
        }
        Err("syntax error: missing '}'".to_owned())
    }
}

/// Pattern and replacement of `${name/pattern/replacement}`.
fn split_slash(raw: &str) -> (String, String) {
    let mut escaped = false;
    for (at, c) in raw.char_indices() {
        match c {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            '/' if !escaped => {
                let (pattern, rest) = raw.split_at(at);
                return (pattern.to_owned(), rest.get(1..).unwrap_or_default().to_owned());
            }
            _ => {}
        }
        escaped = false;
    }
    (raw.to_owned(), String::new())
}

/// Whether a pattern of the shell (`*`, `?`) is all of a text.
fn is_match(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some('?') => (p, t) = (p + 1, t + 1),
            Some(c) if text.get(t) == Some(c) => (p, t) = (p + 1, t + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).is_none_or(|rest| rest.iter().all(|c| *c == '*'))
}

fn trim(value: &str, pattern: &str, prefix: bool, greedy: bool) -> String {
    let (chars, pattern): (Vec<char>, Vec<char>) = (value.chars().collect(), pattern.chars().collect());
    let lengths = 0..=chars.len();
    let lengths: Vec<usize> = if greedy { lengths.rev().collect() } else { lengths.collect() };
    for length in lengths {
        let (part, rest) = if prefix {
            chars.split_at(length)
        } else {
            let (rest, part) = chars.split_at(chars.len() - length);
            (part, rest)
        };
        if is_match(&pattern, part) {
            return rest.iter().collect();
        }
    }
    value.to_owned()
}

fn replace(value: &str, pattern: &str, with: &str, all: bool) -> String {
    let (chars, pattern): (Vec<char>, Vec<char>) = (value.chars().collect(), pattern.chars().collect());
    if pattern.is_empty() || chars.len() > 4096 {
        return value.to_owned();
    }
    let (mut out, mut at) = (String::new(), 0);
    while at < chars.len() {
        let longest = (at + 1..=chars.len())
            .rev()
            .find(|end| is_match(&pattern, chars.get(at..*end).unwrap_or_default()));
        match longest {
            Some(end) => {
                out.push_str(with);
                at = end;
                if !all {
                    break;
                }
            }
            None => {
                out.extend(chars.get(at));
                at += 1;
            }
        }
    }
    out.extend(chars.get(at..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        let pairs =
            [("A", "one"), ("B", "two words"), ("EMPTY", ""), ("P", "foo/bar/baz.tar.gz"), ("HOME", "/root")];
        let env = pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Scope {
            env,
            args: [("A".to_owned(), "hidden".to_owned()), ("ARG".to_owned(), "x".to_owned())].into(),
        }
    }

    #[test]
    fn single_words() {
        for (text, expected) in [
            ("hello", "hello"),
            ("he'll'o", "hello"),
            ("he'll", "!"),
            ("he\\'llo", "he'llo"),
            ("abc\\tdef", "abctdef"),
            ("'abc\\tdef'", "abc\\tdef"),
            ("\"abc\\tdef\"", "abc\\tdef"),
            ("\"a\\\"b\\$A\"", "a\"b$A"),
            ("$A", "one"),
            ("${A}x", "onex"),
            ("$ARG", "x"),
            ("\\$A", "$A"),
            ("'$A'", "$A"),
            ("\"$A $B\"", "one two words"),
            ("$B", "two words"),
            ("${NONE}", ""),
            ("${NONE:-w}", "w"),
            ("${EMPTY:-w}", "w"),
            ("${EMPTY-w}", ""),
            ("${A:+w}", "w"),
            ("${EMPTY:+w}", ""),
            ("${EMPTY+w}", "w"),
            ("${NONE+w}", ""),
            ("${NONE:-${A:-b}}", "one"),
            ("${NONE:-'a}b'}", "a}b"),
            ("${NONE:?msg}", "!"),
            ("${A:?msg}", "one"),
            ("${}", "!"),
            ("${A", "!"),
            ("$", "$"),
            ("$%", "$%"),
            ("${P#*/}", "bar/baz.tar.gz"),
            ("${P##*/}", "baz.tar.gz"),
            ("${P%.*}", "foo/bar/baz.tar"),
            ("${P%%.*}", "foo/bar/baz"),
            ("${P/bar/X}", "foo/X/baz.tar.gz"),
            ("${P//a/A}", "foo/bAr/bAz.tAr.gz"),
            ("${A!x}", "!"),
            ("a\\", "a"),
            ("$1", ""),
        ] {
            let actual = word(text, &scope(), '\\').unwrap_or_else(|_| "!".to_owned());
            assert_eq!(actual, expected, "{text}");
        }
    }

    #[test]
    fn several_words() {
        assert_eq!(words("$B \"$B\" x", &scope(), '\\').unwrap(), ["two", "words", "two words", "x"]);
        assert_eq!(words("''", &scope(), '\\').unwrap(), [""]);
        assert_eq!(words("$EMPTY", &scope(), '\\').unwrap(), [""; 0]);
        assert_eq!(variables("'$A' \\$A \"x\"", &scope(), '\\').unwrap(), "'one' $A \"x\"");
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_fall(text in "(\\$\\{?|[A-Z]|[:+?#%/}'\"\\\\ -]|\\PC){0,40}") {
            let _ = word(&text, &scope(), '\\');
            let _ = words(&text, &scope(), '`');
            let _ = variables(&text, &scope(), '\\');
        }
    }
}
