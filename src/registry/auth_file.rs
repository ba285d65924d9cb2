//! Credentials in files, as Docker and containers' tools write them: `{"auths": {"host[:port][/path]": {...}}}`.
//!
//! The most specific key wins: `quay.io/team/app` before `quay.io/team` before `quay.io`. Keys with a scheme are Docker's
//! and name a whole registry (`https://index.docker.io/v1/`). Programs that would be asked for credentials
//! (`credHelpers`, `credsStore`) are not run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::auth::{Auth, AuthFields, Secret, canonical};
use crate::hosts::{Error, is_absent, read_file};

/// A secret, and where it is from.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) secret: Secret,
    pub(crate) file: PathBuf,
    pub(crate) key: String,
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(default)]
    auths: BTreeMap<String, RawEntry>,
}

#[derive(Deserialize)]
struct RawEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// The credentials for a repository of a server, of the first file that has some.
pub(crate) fn find(files: &[PathBuf], server: &str, path: &str) -> Result<Option<Found>, Error> {
    for file in files {
        let bytes = match read_file(file) {
            Ok(bytes) => bytes,
            Err(Error::Read { source, .. }) if is_absent(&source) => continue,
            Err(error) => return Err(error),
        };
        if let Some(found) = find_in(file, &bytes, server, path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn find_in(file: &Path, bytes: &[u8], server: &str, path: &str) -> Result<Option<Found>, Error> {
    let raw: RawFile =
        serde_json::from_slice(bytes).map_err(|source| Error::Json { path: file.to_owned(), source })?;
    let server = canonical(server);
    let best = raw
        .auths
        .into_iter()
        .filter_map(|(key, entry)| Some((specificity(&key, &server, path)?, key, entry)))
        .max_by_key(|(length, ..)| *length);
    let Some((_, key, entry)) = best else { return Ok(None) };
    let fields = AuthFields {
        username: entry.username,
        password: entry.password,
        auth: entry.auth,
        identity_token: entry.identitytoken,
        registry_token: entry.registrytoken,
        server_address: String::new(),
    };
    let auth = Auth::from_fields(&fields).map_err(|source| Error::Credentials {
        path: file.to_owned(),
        key: key.clone(),
        source,
    })?;
    // An entry without content is what `docker login` with a helper leaves.
    Ok(auth.map(|auth| Found { secret: auth.secret().clone(), file: file.to_owned(), key }))
}

/// How much of a repository's name a key covers; nothing if it is for something else.
fn specificity(key: &str, server: &str, path: &str) -> Option<usize> {
    if key.contains("://") {
        return (canonical(key) == server).then_some(0);
    }
    let (host, namespace) = key.split_once('/').unwrap_or((key, ""));
    if canonical(host) != server {
        return None;
    }
    let namespace = namespace.trim_end_matches('/');
    // Docker without its scheme.
    if server == "docker.io" && matches!(namespace, "v1" | "v2") {
        return Some(0);
    }
    let rest = path.strip_prefix(namespace)?;
    (namespace.is_empty() || rest.is_empty() || rest.starts_with('/')).then_some(namespace.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(keys: &[&str], server: &str, path: &str) -> Option<String> {
        let entries: Vec<String> =
            keys.iter().map(|key| format!("{key:?}: {{\"auth\": \"dTpw\"}}")).collect();
        let text = format!("{{\"auths\": {{{}}}, \"credsStore\": \"none\"}}", entries.join(","));
        find_in(Path::new("f"), text.as_bytes(), server, path).unwrap().map(|found| found.key)
    }

    #[test]
    fn the_most_specific_key_wins() {
        let keys = ["q.io", "q.io/team", "q.io/team/app", "q.io/team/application", "q.io:5000"];
        for (path, key) in [
            ("team/app", "q.io/team/app"),
            ("team/app/deep", "q.io/team/app"),
            ("team/ap", "q.io/team"),
            ("teams/app", "q.io"),
        ] {
            assert_eq!(chosen(&keys, "q.io", path).as_deref(), Some(key), "{path}");
        }
        assert_eq!(chosen(&keys, "q.io:5000", "team/app").as_deref(), Some("q.io:5000"));
        assert_eq!(chosen(&keys, "evil.q.io", "team/app"), None);
        assert_eq!(chosen(&["q.io/team"], "q.io", "other/app"), None);
    }

    #[test]
    fn docker_hub_has_many_names() {
        for key in ["https://index.docker.io/v1/", "index.docker.io/v1", "docker.io", "registry-1.docker.io"]
        {
            assert_eq!(chosen(&[key], "docker.io", "library/box").as_deref(), Some(key));
        }
        assert_eq!(
            chosen(&["https://index.docker.io/v1/", "docker.io/library"], "docker.io", "library/box")
                .as_deref(),
            Some("docker.io/library")
        );
        assert_eq!(chosen(&["http://docker.io"], "quay.io", "box"), None);
    }

    #[test]
    fn damaged_files_are_named_without_their_content() {
        let error = find_in(Path::new("/some/file"), b"{\"auths\": 5, \"s3cr3t\"", "q.io", "x").unwrap_err();
        assert!(error.to_string().contains("/some/file"));
        let bad = br#"{"auths": {"q.io": {"auth": "s3cr3t!"}}}"#;
        let error = find_in(Path::new("/some/file"), bad, "q.io", "x").unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("q.io") && !shown.contains("s3cr3t"), "{shown}");
        let empty = br#"{"auths": {"q.io": {}}}"#;
        assert!(find_in(Path::new("f"), empty, "q.io", "x").unwrap().is_none());
    }
}
