//! Patterns of paths: `*`, `?`, `[a-z]`, `\x` within a component, `**` for any number of them.

/// A pattern, by components.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// Any number of components, also none.
    Any,
    One(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Char(char),
    Question,
    Star,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

impl Pattern {
    /// Parses a pattern; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == "**" {
                if parts.last() != Some(&Part::Any) {
                    parts.push(Part::Any);
                }
            } else {
                parts.push(Part::One(
                    tokens(part).ok_or_else(|| format!("syntax error in pattern {text:?}"))?,
                ));
            }
        }
        Ok(Self { parts })
    }

    /// Whether it says more than one exact path.
    pub fn is_wild(&self) -> bool {
        let plain = |part: &Part| match part {
            Part::Any => false,
            Part::One(tokens) => tokens.iter().all(|token| matches!(token, Token::Char(_))),
        };
        !self.parts.iter().all(plain)
    }

    /// Whether a path is exactly what is meant.
    pub fn is_match(&self, path: &str) -> bool {
        let components: Vec<&str> = components(path);
        matches(&self.parts, &components)
    }

    /// Whether a path, or a directory above it, is what is meant.
    pub fn covers(&self, path: &str) -> bool {
        let components: Vec<&str> = components(path);
        (1..=components.len()).any(|end| matches(&self.parts, components.get(..end).unwrap_or_default()))
    }

    /// Whether something below a directory may be what is meant.
    pub fn may_be_below(&self, directory: &str) -> bool {
        let components: Vec<&str> = components(directory);
        may_go_on(&self.parts, &components)
    }
}

fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").collect()
}

fn matches(parts: &[Part], path: &[&str]) -> bool {
    match parts.split_first() {
        None => path.is_empty(),
        Some((Part::Any, rest)) => {
            // `**` at the end means everything below, not the directory itself.
            if rest.is_empty() {
                return !path.is_empty();
            }
            (0..=path.len()).any(|skip| matches(rest, path.get(skip..).unwrap_or_default()))
        }
        Some((Part::One(tokens), rest)) => match path.split_first() {
            Some((first, below)) => {
                component(tokens, &first.chars().collect::<Vec<_>>()) && matches(rest, below)
            }
            None => false,
        },
    }
}

fn may_go_on(parts: &[Part], path: &[&str]) -> bool {
    match (parts.split_first(), path.split_first()) {
        (None, _) => false,
        (Some(_), None) | (Some((Part::Any, _)), _) => true,
        (Some((Part::One(tokens), rest)), Some((first, below))) => {
            component(tokens, &first.chars().collect::<Vec<_>>()) && may_go_on(rest, below)
        }
    }
}

fn component(tokens: &[Token], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        let c = text.get(t).copied().unwrap_or_default();
        let fits = match tokens.get(p) {
            Some(Token::Star) => {
                star = Some((p, t));
                p += 1;
                continue;
            }
            Some(Token::Question) => true,
            Some(Token::Char(wanted)) => *wanted == c,
            Some(Token::Class { negated, ranges }) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
            None => false,
        };
        if fits {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    tokens.get(p..).is_none_or(|rest| rest.iter().all(|token| *token == Token::Star))
}

fn tokens(part: &str) -> Option<Vec<Token>> {
    let mut found = Vec::new();
    let mut chars = part.chars().peekable();
    while let Some(c) = chars.next() {
        found.push(match c {
            '*' => {
                if found.last() == Some(&Token::Star) {
                    continue;
                }
                Token::Star
            }
            '?' => Token::Question,
            '\\' => Token::Char(chars.next()?),
            '[' => {
                let negated = chars.next_if(|c| matches!(c, '^' | '!')).is_some();
                let mut ranges = Vec::new();
                loop {
                    let low = match chars.next()? {
                        ']' if !ranges.is_empty() => break,
                        '\\' => chars.next()?,
                        c => c,
                    };
                    let high = if chars.next_if_eq(&'-').is_some() {
                        match chars.next()? {
                            '\\' => chars.next()?,
                            ']' => return None,
                            c => c,
                        }
                    } else {
                        low
                    };
                    ranges.push((low, high));
                }
                Token::Class { negated, ranges }
            }
            c => Token::Char(c),
        });
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, path, expected) in [
            ("*", "a", true),
            ("*", "a/b", false),
            ("a/*", "a/b", true),
            ("a*b?c", "axxbyc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("**/x", "x", true),
            ("**/x", "a/b/x", true),
            ("a/**", "a", false),
            ("a/**", "a/b/c", true),
            ("a/**/c", "a/c", true),
            ("a/**/c", "a/b/b/c", true),
            ("**", "anything/at/all", true),
            ("./a", "a", true),
        ] {
            assert_eq!(Pattern::parse(pattern).unwrap().is_match(path), expected, "{pattern} {path}");
        }
        assert!(Pattern::parse("[a").is_err());
        assert!(Pattern::parse("a\\").is_err());
        assert!(Pattern::parse("a/*").unwrap().may_be_below("a"));
        assert!(!Pattern::parse("a/*").unwrap().may_be_below("b"));
        assert!(Pattern::parse("dir").unwrap().covers("dir/below"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_fall(pattern in "([a-c/*?\\[\\]^\\\\-]|\\*\\*/){0,20}", path in "[a-c/]{0,20}") {
            if let Ok(pattern) = Pattern::parse(&pattern) {
                let _ = (pattern.is_match(&path), pattern.covers(&path), pattern.may_be_below(&path));
            }
        }
    }
}
