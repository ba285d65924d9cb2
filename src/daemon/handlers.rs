//! RuntimeClass handlers: pinnace itself, by the name "" or `pinnace`, and the OCI runtimes of `[runtimes.NAME]`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use pinnace_launcher::protocol::Failure;
use serde_json::Value;

use crate::error::Error;

/// The other name of the default handler.
pub const NATIVE: &str = "pinnace";

/// For a runtime to say what it can do, once in the daemon's life.
const FEATURES: Duration = Duration::from_secs(5);

/// How much of what a failing command said is told.
const LAST_WORDS: usize = 1024;

/// All handlers but the default one.
#[derive(Debug)]
pub struct Handlers {
    runtimes: BTreeMap<String, Runtime>,
}

/// An OCI runtime with runc's command line.
#[derive(Debug)]
pub struct Runtime {
    /// Its handler's name.
    pub name: String,
    /// Its program.
    pub path: PathBuf,
    /// Directory of its own state.
    pub root: PathBuf,
    recursive_read_only: OnceLock<bool>,
}

impl Handlers {
    /// Those of the configuration, with their state below the run directory.
    pub fn new(configured: &BTreeMap<String, PathBuf>, run: &std::path::Path) -> Self {
        let runtime = |(name, path): (&String, &PathBuf)| {
            let runtime = Runtime {
                name: name.clone(),
                path: path.clone(),
                root: run.join("runtimes").join(name),
                recursive_read_only: OnceLock::new(),
            };
            (name.clone(), runtime)
        };
        Self { runtimes: configured.iter().map(runtime).collect() }
    }

    /// The runtime of a handler; none for pinnace itself.
    pub fn find(&self, field: &str, handler: &str) -> Result<Option<&Runtime>, Error> {
        if matches!(handler, "" | NATIVE) {
            return Ok(None);
        }
        self.runtimes.get(handler).map(Some).ok_or_else(|| {
            let known = self.runtimes.keys().map(|name| format!("{name:?}, ")).collect::<String>();
            let reason = format!(
                "no handler {handler:?} is configured; there are {known}{NATIVE:?} and the default \"\" \
                 (configuration: [runtimes.{handler}])"
            );
            Error::invalid(field, reason)
        })
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Runtime> {
        self.runtimes.values()
    }
}

impl Runtime {
    /// A command line that begins with what all commands have.
    pub fn command(&self, log: &std::path::Path) -> Vec<String> {
        let text = |path: &std::path::Path| path.display().to_string();
        vec![text(&self.path), "--root".into(), text(&self.root), "--log".into(), text(log)]
    }

    /// Whether it makes mounts read-only with everything below, by its own account.
    pub async fn recursive_read_only(&self) -> bool {
        if let Some(known) = self.recursive_read_only.get() {
            return *known;
        }
        let asked = run(&[self.path.display().to_string(), "features".into()], FEATURES).await;
        let features = asked.ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let options = features.as_ref().and_then(|features| features["mountOptions"].as_array());
        let has = options.is_some_and(|options| options.iter().any(|option| option == "rro"));
        *self.recursive_read_only.get_or_init(|| has)
    }
}

/// Runs a command of a runtime to its end; what it printed.
pub async fn run(command: &[String], limit: Duration) -> Result<Vec<u8>, Error> {
    let (program, arguments) = command.split_first().unwrap_or((const { &String::new() }, &[]));
    let failed = |message: String| Error::Launch(Failure::refused("runtime", program.as_bytes(), message));
    let mut process = tokio::process::Command::new(program);
    process.args(arguments).env_clear().env("PATH", PATH).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(limit, process.output()).await {
        Err(_) => return Err(Error::Deadline { what: format!("the runtime {program}"), limit }),
        Ok(output) => output.map_err(|error| failed(error.to_string()))?,
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let verb = arguments.iter().find(|word| VERBS.contains(&word.as_str()));
    let verb = verb.map(String::as_str).unwrap_or_default();
    Err(failed(format!("{verb}: {}: {}", output.status, last_words(&output.stderr))))
}

/// `PATH` of a runtime and what it calls.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const VERBS: [&str; 4] = ["features", "delete", "kill", "exec"];

/// The end of what a runtime said.
pub fn last_words(said: &[u8]) -> String {
    let end = said.get(said.len().saturating_sub(LAST_WORDS)..).unwrap_or_default();
    String::from_utf8_lossy(end).trim().to_owned()
}
