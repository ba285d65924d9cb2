//! What critest says (Ginkgo's JSON report), and what it is expected to say.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

/// How a spec ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It passed.
    Pass,
    /// It said why it cannot run.
    Skip,
    /// It failed, timed out or panicked.
    Fail,
}

/// A spec that ran.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Containers and leaf, joined by ` / `.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What it said, first line.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    spec_reports: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    #[serde(default)]
    failure: Failure,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    message: String,
}

/// Reads the report. What the focus left out says nothing and is left out here.
pub fn read(path: &Path) -> Vec<Spec> {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let suites: Vec<Suite> = serde_json::from_slice(&text).expect("a report of Ginkgo");
    let mut specs = Vec::new();
    for entry in suites.into_iter().flat_map(|suite| suite.spec_reports.unwrap_or_default()) {
        let outcome = match entry.state.as_str() {
            "passed" => Outcome::Pass,
            "skipped" | "pending" if entry.failure.message.is_empty() => continue,
            "skipped" | "pending" => Outcome::Skip,
            _ => Outcome::Fail,
        };
        // Set-up and tear-down of the suite count when they fail.
        if entry.leaf_node_type != "It" && outcome != Outcome::Fail {
            continue;
        }
        let mut names = entry.container_hierarchy_texts.unwrap_or_default();
        names.push(entry.leaf_node_text);
        let names: Vec<_> = names.iter().map(|name| name.trim_start_matches("[k8s.io] ")).collect();
        let message = entry.failure.message.lines().take(3).collect::<Vec<_>>().join(" ");
        specs.push(Spec { name: names.join(" / "), outcome, message });
    }
    specs
}

/// A spec, or all whose names begin so, that need not pass.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// The name, or its beginning followed by `*`.
    pub spec: String,
    /// `skip` or `fail`.
    pub outcome: Outcome,
    /// Why, for the reader.
    pub reason: String,
    /// Where it is so: `host` (cgroup v1, no AppArmor) or `guest`; none is both.
    #[serde(rename = "where")]
    pub place: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    expected: Vec<Expected>,
}

/// The list for a place.
pub fn expected(text: &str, place: &str) -> Vec<Expected> {
    let list: List = toml::from_str(text).unwrap_or_else(|error| panic!("expected.toml: {error}"));
    list.expected.into_iter().filter(|entry| entry.place.as_deref().is_none_or(|own| own == place)).collect()
}

impl Expected {
    fn covers(&self, spec: &Spec) -> bool {
        let named = match self.spec.strip_suffix('*') {
            Some(beginning) => spec.name.starts_with(beginning),
            None => spec.name == self.spec,
        };
        named && spec.outcome == self.outcome
    }
}

/// What differs from the expectation, a line each: specs that should have passed, entries that nothing needs. Entries are
/// stale only if `whole`, that is if no focus has left specs out.
pub fn differences(specs: &[Spec], expected: &[Expected], whole: bool) -> Vec<String> {
    let unlisted = specs
        .iter()
        .filter(|spec| spec.outcome != Outcome::Pass && !expected.iter().any(|entry| entry.covers(spec)))
        .map(|spec| format!("{:?}, and not in expected.toml: {}: {}", spec.outcome, spec.name, spec.message));
    let stale =
        expected.iter().filter(|entry| whole && !specs.iter().any(|spec| entry.covers(spec))).map(|entry| {
            format!("in expected.toml, and not so: {:?} {}: {}", entry.outcome, entry.spec, entry.reason)
        });
    unlisted.chain(stale).collect()
}

/// How many ended how.
pub fn counts(specs: &[Spec]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::from([("passed", 0), ("skipped", 0), ("failed", 0)]);
    for spec in specs {
        let name = match spec.outcome {
            Outcome::Pass => "passed",
            Outcome::Skip => "skipped",
            Outcome::Fail => "failed",
        };
        *counts.entry(name).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, outcome: Outcome) -> Spec {
        Spec { name: name.to_owned(), outcome, message: String::new() }
    }

    #[test]
    fn what_is_unlisted_or_stale_is_told() {
        let text = r#"
            [[expected]]
            spec = "A / *"
            outcome = "skip"
            reason = "none here"
            where = "host"
            [[expected]]
            spec = "B / one"
            outcome = "fail"
            reason = "known"
        "#;
        let here = expected(text, "host");
        let good = [spec("A / x", Outcome::Skip), spec("B / one", Outcome::Fail), spec("C", Outcome::Pass)];
        assert_eq!(differences(&good, &here, true), [] as [&str; 0]);
        // A skip that becomes a failure is no longer what was expected.
        let worse = [spec("A / x", Outcome::Fail), spec("B / one", Outcome::Fail)];
        assert_eq!(differences(&worse, &here, true).len(), 2);
        assert_eq!(differences(&[spec("B / one", Outcome::Pass)], &here, true).len(), 2);
        assert_eq!(differences(&[], &here, false), [] as [&str; 0]);
        assert_eq!(expected(text, "guest").len(), 1);
    }

    #[test]
    fn reports_are_read_without_what_was_left_out() {
        let report = r#"[{"SpecReports": [
            {"LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
            {"ContainerHierarchyTexts": ["[k8s.io] A", "b"], "LeafNodeType": "It", "LeafNodeText": "c", "State": "passed"},
            {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeType": "It", "LeafNodeText": "d", "State": "skipped"},
            {"ContainerHierarchyTexts": null, "LeafNodeType": "It", "LeafNodeText": "e", "State": "skipped",
             "Failure": {"Message": "not here"}},
            {"LeafNodeType": "It", "LeafNodeText": "f", "State": "timedout", "Failure": {"Message": "too slow\nreally"}}
        ]}, {"SpecReports": null}]"#;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), report).unwrap();
        let specs = read(file.path());
        let seen: Vec<_> = specs.iter().map(|spec| (spec.name.as_str(), spec.outcome)).collect();
        assert_eq!(seen, [("A / b / c", Outcome::Pass), ("e", Outcome::Skip), ("f", Outcome::Fail)]);
        assert_eq!(specs[2].message, "too slow really");
    }
}
