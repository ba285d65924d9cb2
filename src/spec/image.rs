//! What an image's configuration says, and what of it a request leaves standing.
//!
//! | request | program |
//! |---|---|
//! | neither command nor args | image `Entrypoint` + `Cmd` |
//! | args only | image `Entrypoint` + args |
//! | command | command + args; nothing of the image |

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::image::Config;

use crate::{Code, defaults, signal, validate};

/// Why an image's configuration, merged with a request, makes no container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither side names a program.
    #[error("no command: neither the request nor the image names one")]
    NoCommand,
    /// A text that no program can be given, or a path that no container can have.
    #[error("{field}: {reason}")]
    Invalid {
        /// Field of the image configuration or of the request.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// A stop signal that no machine has.
    #[error("unknown signal {text:?}")]
    Signal {
        /// What was given.
        text: String,
    },
}

impl Error {
    /// Class of this error: what an image or a request says does not become right by waiting.
    pub fn code(&self) -> Code {
        Code::InvalidArgument
    }
}

/// argv of the container's program.
pub fn command(config: Option<&Config>, command: &[String], args: &[String]) -> Result<Vec<String>, Error> {
    let entrypoint = config.and_then(|config| config.entrypoint().as_deref()).unwrap_or_default();
    let cmd = config.and_then(|config| config.cmd().as_deref()).unwrap_or_default();
    let argv = match (command, args) {
        ([], []) => [entrypoint, cmd].concat(),
        ([], args) => [entrypoint, args].concat(),
        (command, args) => [command, args].concat(),
    };
    if argv.is_empty() {
        return Err(Error::NoCommand);
    }
    validate::args("command", &argv).map_err(invalid)?;
    Ok(argv)
}

/// The image's environment, with a `PATH`.
pub fn env(config: Option<&Config>) -> Result<Env, Error> {
    let mut env = Env::default();
    for entry in config.and_then(|config| config.env().as_deref()).unwrap_or_default() {
        validate::env_entry("image Env", entry.as_bytes()).map_err(invalid)?;
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        env.set(key, value.as_bytes())?;
    }
    env.set_default("PATH", defaults::PATH.as_bytes())?;
    Ok(env)
}

/// The working directory: the request's, else the image's, else `/`. An image may name one relative to the root.
pub fn working_dir(config: Option<&Config>, requested: &str) -> Result<PathBuf, Error> {
    if !requested.is_empty() {
        return validate::working_directory("working_dir", Path::new(requested)).map_err(invalid);
    }
    let images = config.and_then(|config| config.working_dir().as_deref()).unwrap_or("");
    validate::working_directory("image WorkingDir", Path::new(&format!("/{images}"))).map_err(invalid)
}

/// The image's user as it stands, for [`user::resolve`](crate::user::resolve).
pub fn user(config: Option<&Config>) -> &str {
    config.and_then(|config| config.user().as_deref()).unwrap_or("")
}

/// Paths that the image wants outside its root file system, sorted, each once.
pub fn volumes(config: Option<&Config>) -> Result<Vec<PathBuf>, Error> {
    let mut volumes = Vec::new();
    for volume in config.and_then(|config| config.volumes().as_deref()).unwrap_or_default() {
        // CVE-2022-23648: `..` and links of the image must not lead its content's copy to the host.
        let path = validate::container_path("image Volumes", Path::new(volume)).map_err(invalid)?;
        if path == Path::new("/") {
            return Err(Error::Invalid {
                field: "image Volumes".to_owned(),
                reason: "the root is one".to_owned(),
            });
        }
        volumes.push(path);
    }
    volumes.sort();
    volumes.dedup();
    Ok(volumes)
}

/// The image's stop signal, else `SIGTERM`.
pub fn stop_signal(config: Option<&Config>) -> Result<i32, Error> {
    match config.and_then(|config| config.stop_signal().as_deref()).unwrap_or("") {
        "" => signal::parse("TERM"),
        text => signal::parse(text),
    }
}

/// An environment: one value for each key, in the order in which keys came first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env {
    entries: Vec<(String, Vec<u8>)>,
    index: HashMap<String, usize>,
}

impl Env {
    /// Sets a value; it may be any bytes but NUL.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<(), Error> {
        if key.contains('=') {
            return Err(Error::Invalid {
                field: "envs".to_owned(),
                reason: format!("key {key:?} has an equals sign"),
            });
        }
        validate::env_entry("envs", &[key.as_bytes(), b"=", value].concat()).map_err(invalid)?;
        match self.index.get(key) {
            Some(at) => self.entries[*at].1 = value.to_vec(),
            None => {
                self.index.insert(key.to_owned(), self.entries.len());
                self.entries.push((key.to_owned(), value.to_vec()));
            }
        }
        Ok(())
    }

    /// Sets a value for a key that has none.
    pub fn set_default(&mut self, key: &str, value: &[u8]) -> Result<(), Error> {
        if self.index.contains_key(key) { Ok(()) } else { self.set(key, value) }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.index.get(key).map(|at| self.entries[*at].1.as_slice())
    }

    /// Entries for an OCI spec, whose strings are UTF-8; and those that are not, to be given to
    /// [`lower`](crate::lower::Context::binary_env) beside it. In the spec these stand in their lossy form.
    pub fn into_oci(self) -> (Vec<String>, Vec<Vec<u8>>) {
        let mut binary = Vec::new();
        let text = |(key, value): (String, Vec<u8>)| {
            let entry = [key.into_bytes(), b"=".to_vec(), value].concat();
            String::from_utf8(entry).unwrap_or_else(|error| {
                let lossy = String::from_utf8_lossy(error.as_bytes()).into_owned();
                binary.push(error.into_bytes());
                lossy
            })
        };
        let entries = self.entries.into_iter().map(text).collect();
        (entries, binary)
    }
}

fn invalid(error: crate::Error) -> Error {
    match error {
        crate::Error::Invalid { field, reason } => Error::Invalid { field, reason },
        other => Error::Invalid { field: "image".to_owned(), reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ConfigBuilder;
    use proptest::prelude::*;

    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> Config {
        ConfigBuilder::default().entrypoint(strings(entrypoint)).cmd(strings(cmd)).build().unwrap()
    }

    #[test]
    fn commands_merge_as_docker_does() {
        let both = image(&["/entry", "-x"], &["serve"]);
        let only_cmd = image(&[], &["sh", "-c", "true"]);
        type Case<'a> = (&'a Config, &'a [&'a str], &'a [&'a str], Option<&'a [&'a str]>);
        let cases: [Case<'_>; 8] = [
            (&both, &[], &[], Some(&["/entry", "-x", "serve"])),
            (&both, &[], &["a"], Some(&["/entry", "-x", "a"])),
            (&both, &["/bin/x"], &[], Some(&["/bin/x"])),
            (&both, &["/bin/x"], &["a"], Some(&["/bin/x", "a"])),
            (&only_cmd, &[], &[], Some(&["sh", "-c", "true"])),
            (&only_cmd, &[], &["ls"], Some(&["ls"])),
            (&Config::default(), &[], &[], None),
            (&Config::default(), &[""], &[], None),
        ];
        for (config, cmd, args, expected) in cases {
            let argv = command(Some(config), &strings(cmd), &strings(args)).ok();
            assert_eq!(argv, expected.map(strings), "{cmd:?} {args:?}");
        }
        assert!(matches!(command(None, &[], &[]), Err(Error::NoCommand)));
        assert!(command(Some(&image(&["a\0b"], &[])), &[], &[]).is_err());
    }

    #[test]
    fn env_by_key() {
        let config =
            ConfigBuilder::default().env(strings(&["A=1", "B=2", "A=3", "PATH=/x"])).build().unwrap();
        let mut env = env(Some(&config)).unwrap();
        env.set("B", b"\xff").unwrap();
        env.set("C", b"x=y\nz").unwrap();
        env.set_default("HOME", b"/root").unwrap();
        env.set_default("PATH", b"/never").unwrap();
        assert_eq!(env.get("A"), Some(&b"3"[..]));
        assert_eq!(env.get("nothing"), None);
        let (text, binary) = env.into_oci();
        assert_eq!(text, ["A=3", "B=\u{fffd}", "PATH=/x", "C=x=y\nz", "HOME=/root"]);
        assert_eq!(binary, [b"B=\xff".to_vec()]);
        let mut env = super::env(None).unwrap();
        assert_eq!(env.get("PATH"), Some(defaults::PATH.as_bytes()));
        for (key, value) in
            [("", &b"x"[..]), ("A=B", b"x"), ("A", b"\0"), ("HOME", b"/\nroot"), ("HOME", b"a:b")]
        {
            assert!(env.set(key, value).is_err(), "{key:?}");
        }
    }

    #[test]
    fn image_env_that_leaks_the_daemons_is_refused() {
        // CVE-2020-14370: a bare key or a star would be filled from the environment of whoever starts the program.
        for entry in ["HOME", "*", "=x", "A", ""] {
            let config = ConfigBuilder::default().env(strings(&[entry])).build().unwrap();
            assert!(env(Some(&config)).is_err(), "{entry:?}");
        }
    }

    #[test]
    fn working_directories() {
        let config = ConfigBuilder::default().working_dir("srv/app").build().unwrap();
        assert_eq!(working_dir(Some(&config), "").unwrap(), Path::new("/srv/app"));
        assert_eq!(working_dir(Some(&config), "/tmp").unwrap(), Path::new("/tmp"));
        assert_eq!(working_dir(None, "").unwrap(), Path::new("/"));
        assert!(working_dir(None, "tmp").is_err());
        let config = ConfigBuilder::default().working_dir("/proc/self/fd/7").build().unwrap();
        assert!(working_dir(Some(&config), "").is_err());
    }

    #[test]
    fn volumes_are_paths_in_the_container() {
        let config =
            ConfigBuilder::default().volumes(strings(&["/b", "/../../etc", "/a/", "/a"])).build().unwrap();
        assert_eq!(volumes(Some(&config)).unwrap(), ["/a", "/b", "/etc"].map(PathBuf::from));
        for refused in ["/", "/x/..", "", "rel", "/a\0"] {
            let config = ConfigBuilder::default().volumes(strings(&[refused])).build().unwrap();
            assert!(volumes(Some(&config)).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn stop_signals() {
        let with =
            |text: &str| stop_signal(Some(&ConfigBuilder::default().stop_signal(text).build().unwrap()));
        assert_eq!(with("SIGQUIT").unwrap(), 3);
        assert_eq!(with("").unwrap(), 15);
        assert_eq!(stop_signal(None).unwrap(), 15);
        assert_eq!(with("SIGNOTHING").unwrap_err().code(), Code::InvalidArgument);
    }

    proptest! {
        #[test]
        fn an_env_has_each_key_once(pairs in proptest::collection::vec(("[A-Z]{1,2}", "[a-z=]{0,4}"), 0..30)) {
            let mut env = Env::default();
            for (key, value) in &pairs {
                env.set(key, value.as_bytes()).unwrap();
            }
            let (entries, binary) = env.clone().into_oci();
            prop_assert!(binary.is_empty());
            let keys: std::collections::HashSet<&str> = entries.iter().map(|e| e.split('=').next().unwrap()).collect();
            prop_assert_eq!(keys.len(), entries.len());
            for (key, value) in pairs.iter().rev().take(1) {
                prop_assert_eq!(env.get(key), Some(value.as_bytes()));
            }
        }
    }
}
