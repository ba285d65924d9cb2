//! `.dockerignore`: which paths of a directory are in the context.

use crate::pattern::Pattern;

/// The rules of a file, in order; the last one that says something counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignore {
    rules: Vec<(bool, Pattern)>,
}

impl Ignore {
    /// Parses the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rules = Vec::new();
        for line in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
            // A comment begins where the line does.
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (again, pattern) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            let pattern = clean(pattern);
            if pattern.is_empty() || pattern == "." {
                continue;
            }
            rules.push((again, Pattern::parse(&pattern)?));
        }
        Ok(Self { rules })
    }

    /// Whether a path, relative to the context, is left out.
    pub fn is_ignored(&self, path: &str) -> bool {
        let mut ignored = false;
        for (again, pattern) in &self.rules {
            if ignored == *again && pattern.covers(path) {
                ignored = !again;
            }
        }
        ignored
    }

    /// Whether nothing below an ignored directory can be in the context.
    pub fn may_skip(&self, directory: &str) -> bool {
        !self.rules.iter().any(|(again, pattern)| *again && pattern.may_be_below(directory))
    }
}

/// As Go's `filepath.Clean`, without a slash at the beginning.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_rule_counts() {
        let ignore = Ignore::parse(
            "\u{feff}# comment\n*.md\n!README.md\n/build/\n  node_modules \n**/*.o\n!keep/**/x.o\n",
        )
        .unwrap();
        for (path, expected) in [
            ("a.md", true),
            ("README.md", false),
            ("sub/a.md", false),
            ("build", true),
            ("build/x/y", true),
            ("node_modules/a", true),
            ("src/deep/a.o", true),
            ("keep/a/x.o", false),
            ("src/a.c", false),
        ] {
            assert_eq!(ignore.is_ignored(path), expected, "{path}");
        }
        assert!(ignore.may_skip("build"));
        assert!(!ignore.may_skip("keep"));
        assert!(!Ignore::parse("").unwrap().is_ignored("a"));
        assert!(Ignore::parse("*\n!a").unwrap().is_ignored("b/c"));
        assert_eq!(clean("/a//b/../c/"), "a/c");
        assert_eq!(clean("/../a"), "a");
        assert_eq!(clean("../a"), "../a");
    }
}
