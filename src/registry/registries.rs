//! `registries.conf`, version 2, as containers' tools read it: rewriting by prefix, mirrors, refusals, short names.
//!
//! ```text
//! registries.conf              the first of the configured files that exists
//! registries.conf.d/*.conf     beside it, in alphabetical order: a later table of the same prefix replaces an earlier one
//! ```
//!
//! Of all tables whose prefix a reference begins with, the longest counts. What is left of the reference after the prefix
//! is appended to a location. A prefix ends where a component of the name does; only hosts have wildcards (`*.example.com`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Reference;
use crate::hosts::{Error, is_absent, read_file};
use crate::reference::{is_registry_part, is_short};

/// Drop-ins that are read at most.
const DROP_INS_MAX: usize = 1000;

/// What the files say together.
#[derive(Debug, Default)]
pub(crate) struct Registries {
    registries: Vec<Registry>,
    /// Where names without a registry are looked for.
    search: Option<(Vec<String>, PathBuf)>,
    aliases: BTreeMap<String, (String, PathBuf)>,
}

/// One `[[registry]]` table.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    pub(crate) prefix: String,
    /// What replaces the prefix; nothing for a wildcard that only configures.
    location: Option<String>,
    pub(crate) insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
    pub(crate) file: PathBuf,
}

#[derive(Clone, Debug)]
struct Mirror {
    location: String,
    insecure: bool,
    serves: Serves,
}

/// Which references a mirror is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Serves {
    All,
    Digests,
    Tags,
}

/// A place that a table sends a reference to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) reference: Reference,
    pub(crate) insecure: bool,
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(rename = "unqualified-search-registries")]
    search: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<RawRegistry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// The form before version 2.
    registries: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawRegistry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<RawMirror>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawMirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<String>,
}

impl Registries {
    /// Reads the first file that exists, with its drop-ins; nothing if none does.
    pub(crate) fn read(files: &[PathBuf]) -> Result<Option<Self>, Error> {
        for file in files {
            let drop_ins = drop_ins(file)?;
            let main = match read_file(file) {
                Ok(bytes) => Some(bytes),
                Err(Error::Read { source, .. }) if is_absent(&source) => None,
                Err(error) => return Err(error),
            };
            if main.is_none() && drop_ins.is_empty() {
                continue;
            }
            let mut all = Self::default();
            if let Some(bytes) = main {
                all.add(file, &bytes)?;
            }
            for file in drop_ins {
                all.add(&file, &read_file(&file)?)?;
            }
            return Ok(Some(all));
        }
        Ok(None)
    }

    fn add(&mut self, file: &Path, bytes: &[u8]) -> Result<(), Error> {
        let text = String::from_utf8_lossy(bytes);
        let raw: RawFile = toml::from_str(&text)
            .map_err(|source| Error::Toml { path: file.to_owned(), source: Box::new(source) })?;
        let value = |key, value: &str, expected| Error::Value {
            path: file.to_owned(),
            key,
            value: value.to_owned(),
            expected,
        };
        if raw.registries.is_some() {
            return Err(value("registries", "version 1", "a table of version 2 of registries.conf"));
        }
        for raw in raw.registry {
            let registry = raw.checked(file, &value)?;
            self.registries.retain(|known| known.prefix != registry.prefix);
            self.registries.push(registry);
        }
        if let Some(search) = raw.search {
            for registry in &search {
                if registry.contains('/') || !is_registry_part(registry) {
                    return Err(value("unqualified-search-registries", registry, "host[:port]"));
                }
            }
            self.search = Some((search, file.to_owned()));
        }
        for (short, long) in raw.aliases {
            if !is_short(&short) || short.contains([':', '@']) {
                return Err(value("aliases", &short, "a name without registry, tag and digest"));
            }
            if long.is_empty() {
                // containers-registries.conf(5): an empty value takes an alias away.
                self.aliases.remove(&short);
                continue;
            }
            if is_short(&long) || long.parse::<Reference>().is_err() {
                return Err(value("aliases", &long, "a name with its registry"));
            }
            self.aliases.insert(short, (long, file.to_owned()));
        }
        Ok(())
    }

    /// The table that a reference belongs to.
    pub(crate) fn find(&self, reference: &Reference) -> Option<&Registry> {
        let text = reference.to_string();
        self.registries
            .iter()
            .filter(|registry| matched(&registry.prefix, &text).is_some())
            .max_by_key(|registry| registry.prefix.len())
    }

    /// What a name without a registry means, and the file that says so; nothing if the files do not say.
    pub(crate) fn expand(&self, name: &str) -> Result<Option<(String, &Path)>, Error> {
        if !is_short(name) {
            return Ok(None);
        }
        let suffix_at = name.find('@').unwrap_or(name.len());
        let suffix_at = name[..suffix_at].rfind(':').unwrap_or(suffix_at);
        let (bare, suffix) = name.split_at(suffix_at);
        if let Some((long, file)) = self.aliases.get(bare) {
            return Ok(Some((format!("{long}{suffix}"), file)));
        }
        let Some((search, file)) = &self.search else { return Ok(None) };
        let refused = |reason: String| Error::ShortName { name: name.to_owned(), reason, path: file.clone() };
        match search.as_slice() {
            [only] => Ok(Some((format!("{only}/{name}"), file))),
            [] => Err(refused("unqualified-search-registries is empty".to_owned())),
            // Whichever answers first would decide what runs: an attacker's choice as well as ours.
            several => Err(refused(format!("it could be on any of {}", several.join(", ")))),
        }
    }
}

impl RawRegistry {
    fn checked(
        self,
        file: &Path,
        value: &impl Fn(&'static str, &str, &'static str) -> Error,
    ) -> Result<Registry, Error> {
        let location = self.location.as_deref().map(trim);
        let Some(prefix) = self.prefix.as_deref().map(trim).or(location).filter(|prefix| !prefix.is_empty())
        else {
            return Err(value("registry", "", "a table with a prefix or a location"));
        };
        let host = prefix.split('/').next().unwrap_or_default();
        let is_wildcard = prefix.starts_with("*.");
        let bare = prefix.strip_prefix("*.").unwrap_or(prefix);
        if bare.contains('*')
            || (is_wildcard && prefix.contains('/'))
            || !(is_wildcard || is_registry_part(host))
        {
            return Err(value("prefix", prefix, "host[:port][/path] or *.domain"));
        }
        if let Some(location) = location.filter(|location| !is_location(location)) {
            return Err(value("location", location, "host[:port][/path]"));
        }
        let mut mirrors = Vec::new();
        for mirror in &self.mirror {
            let location = trim(&mirror.location);
            if !is_location(location) {
                return Err(value("location", location, "host[:port][/path]"));
            }
            let serves = match mirror.pull_from_mirror.as_deref() {
                Some(_) if self.mirror_by_digest_only => {
                    return Err(value(
                        "pull-from-mirror",
                        location,
                        "allowed together with mirror-by-digest-only",
                    ));
                }
                None if self.mirror_by_digest_only => Serves::Digests,
                None | Some("" | "all") => Serves::All,
                Some("digest-only") => Serves::Digests,
                Some("tag-only") => Serves::Tags,
                Some(other) => return Err(value("pull-from-mirror", other, "all, digest-only or tag-only")),
            };
            mirrors.push(Mirror { location: location.to_owned(), insecure: mirror.insecure, serves });
        }
        let location = match location {
            None if is_wildcard => None,
            None => Some(prefix.to_owned()),
            Some(location) => Some(location.to_owned()),
        };
        Ok(Registry {
            prefix: prefix.to_owned(),
            location,
            insecure: self.insecure,
            blocked: self.blocked,
            mirrors,
            file: file.to_owned(),
        })
    }
}

impl Registry {
    /// Refuses what is blocked.
    pub(crate) fn require_allowed(&self) -> Result<(), Error> {
        if self.blocked {
            return Err(Error::Blocked { prefix: self.prefix.clone(), path: self.file.clone() });
        }
        Ok(())
    }

    /// The mirrors for a reference, in order.
    pub(crate) fn mirrors(&self, reference: &Reference) -> Result<Vec<Place>, Error> {
        let by_digest = reference.digest().is_some();
        self.mirrors
            .iter()
            .filter(|mirror| match mirror.serves {
                Serves::All => true,
                Serves::Digests => by_digest,
                Serves::Tags => !by_digest,
            })
            .map(|mirror| {
                let reference = self.rewritten(&mirror.location, reference)?;
                Ok(Place { reference, insecure: mirror.insecure })
            })
            .collect()
    }

    /// Where the reference is when no mirror has it.
    pub(crate) fn location(&self, reference: &Reference) -> Result<Place, Error> {
        let reference = match &self.location {
            Some(location) => self.rewritten(location, reference)?,
            None => reference.clone(),
        };
        Ok(Place { reference, insecure: self.insecure })
    }

    fn rewritten(&self, location: &str, reference: &Reference) -> Result<Reference, Error> {
        let text = reference.to_string();
        let rest = &text[matched(&self.prefix, &text).unwrap_or(text.len())..];
        let new = format!("{location}{rest}");
        new.parse().map_err(|_| Error::Value {
            path: self.file.clone(),
            key: "location",
            value: new,
            expected: "an image reference after the prefix was replaced",
        })
    }
}

/// How much of a reference a prefix covers, if it is one.
fn matched(prefix: &str, reference: &str) -> Option<usize> {
    let length = match prefix.strip_prefix('*') {
        Some(domain) => {
            let host = &reference[..reference.find('/')?];
            let name = &host[..host.rfind(':').unwrap_or(host.len())];
            let is_below = |host: &str| host.len() > domain.len() && host.ends_with(domain);
            return if is_below(host) { Some(host.len()) } else { is_below(name).then_some(name.len()) };
        }
        None => reference.starts_with(prefix).then_some(prefix.len())?,
    };
    match reference.as_bytes().get(length) {
        None | Some(b'/' | b'@') => Some(length),
        // The start of a tag; after a host it would be another server's port.
        Some(b':') if prefix.contains('/') => Some(length),
        Some(_) => None,
    }
}

fn trim(text: &str) -> &str {
    text.trim().trim_end_matches('/')
}

fn is_location(location: &str) -> bool {
    let host = location.split('/').next().unwrap_or_default();
    !location.contains("://")
        && is_registry_part(host)
        && format!("{location}/x").parse::<Reference>().is_ok()
}

fn drop_ins(file: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut dir = file.as_os_str().to_owned();
    dir.push(".d");
    let dir = PathBuf::from(dir);
    let at = |source| Error::Read { path: dir.clone(), source };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(at(error)),
    };
    let mut files = Vec::new();
    for entry in entries.take(DROP_INS_MAX) {
        let path = entry.map_err(at)?.path();
        if path.extension().is_some_and(|extension| extension == "conf") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(files: &[(&str, &str)]) -> Result<Registries, Error> {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("r.conf.d")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        Registries::read(&[dir.path().join("absent.conf"), dir.path().join("r.conf")]).map(Option::unwrap)
    }

    fn places(registries: &Registries, reference: &str) -> Vec<String> {
        let reference: Reference = reference.parse().unwrap();
        let Some(found) = registries.find(&reference) else { return Vec::new() };
        let mut all = found.mirrors(&reference).unwrap();
        all.push(found.location(&reference).unwrap());
        all.iter()
            .map(|place| format!("{}{}", place.reference, if place.insecure { " insecure" } else { "" }))
            .collect()
    }

    #[test]
    fn prefixes_are_rewritten() {
        let text = r#"
            [[registry]]
            location = "docker.io"
            [[registry.mirror]]
            location = "cache.corp:5000/hub/"
            insecure = true
            [[registry]]
            prefix = "docker.io/library"
            location = "official.corp"
            [[registry]]
            prefix = "*.example.com"
            [[registry.mirror]]
            location = "mirror.corp/example"
            [[registry]]
            prefix = "quay.io/one/app"
            location = "quay.io/two/app"
            insecure = true
        "#;
        let registries = registries(&[("r.conf", text)]).unwrap();
        for (reference, expected) in [
            ("docker.io/a/b:1", &["cache.corp:5000/hub/a/b:1 insecure", "docker.io/a/b:1"][..]),
            ("busybox", &["official.corp/busybox:latest"]),
            ("a.example.com/x/y:2", &["mirror.corp/example/x/y:2", "a.example.com/x/y:2"]),
            ("a.b.example.com/x:2", &["mirror.corp/example/x:2", "a.b.example.com/x:2"]),
            ("a.example.com:5000/x:2", &["mirror.corp/example:5000/x:2"][..0]),
            ("quay.io/one/app:3", &["quay.io/two/app:3 insecure"]),
            ("quay.io/one/apple:3", &[]),
            ("quay.io/one/app/deep:3", &["quay.io/two/app/deep:3 insecure"]),
            ("example.com/x", &[]),
            ("badexample.com/x", &[]),
            ("docker.io:5000/x", &[]),
        ] {
            if reference.contains(":5000/x:2") {
                // The wildcard covers the host name; a port stays, and makes no reference of this location.
                let reference: Reference = reference.parse().unwrap();
                assert!(registries.find(&reference).unwrap().mirrors(&reference).is_err());
                continue;
            }
            assert_eq!(places(&registries, reference), expected, "{reference}");
        }
    }

    #[test]
    fn mirrors_may_be_for_digests_or_tags_only() {
        let text = r#"
            [[registry]]
            location = "a.io"
            [[registry.mirror]]
            location = "d.io"
            pull-from-mirror = "digest-only"
            [[registry.mirror]]
            location = "t.io"
            pull-from-mirror = "tag-only"
            [[registry.mirror]]
            location = "all.io"
            [[registry]]
            location = "b.io"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "d.io"
        "#;
        let registries = registries(&[("r.conf", text)]).unwrap();
        let digest = format!("@sha256:{}", "a".repeat(64));
        assert_eq!(places(&registries, "a.io/x:1"), ["t.io/x:1", "all.io/x:1", "a.io/x:1"]);
        let by_digest = |host: &str| format!("{host}/x{digest}");
        assert_eq!(
            places(&registries, &by_digest("a.io")),
            [by_digest("d.io"), by_digest("all.io"), by_digest("a.io")]
        );
        assert_eq!(places(&registries, "b.io/x:1"), ["b.io/x:1"]);
        assert_eq!(places(&registries, &by_digest("b.io")), [by_digest("d.io"), by_digest("b.io")]);
    }

    #[test]
    fn drop_ins_replace_tables_of_the_same_prefix() {
        let registries = registries(&[
            (
                "r.conf",
                "[[registry]]\nlocation = \"a.io\"\nblocked = true\n[[registry]]\nlocation = \"b.io\"\n",
            ),
            ("r.conf.d/20-last.conf", "[[registry]]\nprefix = \"a.io\"\nlocation = \"third.io\"\n"),
            ("r.conf.d/10-first.conf", "[[registry]]\nprefix = \"a.io\"\nlocation = \"second.io\"\n"),
            ("r.conf.d/README", "this is not TOML"),
        ])
        .unwrap();
        assert_eq!(places(&registries, "a.io/x:1"), ["third.io/x:1"]);
        assert_eq!(places(&registries, "b.io/x:1"), ["b.io/x:1"]);
        let reference: Reference = "a.io/x".parse().unwrap();
        let found = registries.find(&reference).unwrap();
        assert!(found.require_allowed().is_ok() && found.file.ends_with("20-last.conf"));
    }

    #[test]
    fn what_is_blocked_is_refused() {
        let registries =
            registries(&[("r.conf", "[[registry]]\nprefix = \"docker.io/evil\"\nblocked = true\n")]).unwrap();
        let find = |text: &str| {
            let reference: Reference = text.parse().unwrap();
            registries.find(&reference).map(|registry| registry.require_allowed().is_ok())
        };
        assert_eq!(find("evil/app"), Some(false));
        assert_eq!(find("evilapp/app"), None);
    }

    #[test]
    fn short_names_have_one_meaning_or_none() {
        let with = |text: &str| registries(&[("r.conf", text)]).unwrap();
        let one =
            with("unqualified-search-registries = [\"reg.corp\"]\n[aliases]\n\"box\" = \"quay.io/b/box\"\n");
        let expand = |registries: &Registries, name: &str| {
            registries
                .expand(name)
                .map(|found| found.map(|(name, _)| name))
                .map_err(|error| error.to_string())
        };
        assert_eq!(expand(&one, "app:1"), Ok(Some("reg.corp/app:1".into())));
        assert_eq!(expand(&one, "team/app"), Ok(Some("reg.corp/team/app".into())));
        assert_eq!(expand(&one, "box:2"), Ok(Some("quay.io/b/box:2".into())));
        assert_eq!(expand(&one, "docker.io/app"), Ok(None));
        assert_eq!(expand(&one, "localhost/app"), Ok(None));
        assert_eq!(expand(&with(""), "app"), Ok(None));
        let none = expand(&with("unqualified-search-registries = []"), "app").unwrap_err();
        assert!(none.contains("names no registry"), "{none}");
        let two = expand(&with("unqualified-search-registries = [\"a.io\", \"b.io\"]"), "app").unwrap_err();
        assert!(two.contains("a.io, b.io"), "{two}");
    }

    #[test]
    fn bad_files_are_named() {
        for (text, part) in [
            ("[[registry]]\nblocked = true", "prefix or a location"),
            ("[[registry]]\nprefix = \"*.a.io/x\"", "*.domain"),
            ("[[registry]]\nprefix = \"plain\"", "prefix"),
            ("[[registry]]\nlocation = \"https://a.io\"", "location"),
            ("[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m\"", "location"),
            (
                "[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\nlocation = \"m.io\"\npull-from-mirror = \"x\"",
                "tag-only",
            ),
            ("[registries.search]\nregistries = [\"a.io\"]", "version 2"),
            ("unqualified-search-registries = [\"a/b\"]", "unqualified"),
            ("[aliases]\n\"a.io/x\" = \"b.io/x\"", "without registry"),
            ("[aliases]\n\"x\" = \"y\"", "with its registry"),
            ("registry = 5", "parse"),
        ] {
            let error = registries(&[("r.conf", text)]).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("r.conf"), "{text}: {error}");
        }
    }
}
