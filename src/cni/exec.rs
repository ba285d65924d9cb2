//! Plugins that are programs: looked up, run within bounds, their words read.
//!
//! A program is the leader of a process group of its own. When it is too slow or writes too much the whole group is
//! killed. When it has ended but a process that it left behind holds its output open, what was written by then counts and
//! the group is killed.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::error::{PluginError, code};
use crate::list::PluginType;
use crate::plugin::{Operation, Plugin, Request};
use crate::result::CniResult;

/// Most that a plugin may write as its result (rule R10).
const STDOUT_BYTES_MAX: usize = 1 << 20;

/// Most that is kept of what it writes beside its result; the rest is read and dropped.
const STDERR_BYTES_KEPT: usize = 16 << 10;

/// Most of a plugin's words that an error carries.
const WORDS_CHARS_MAX: usize = 1024;

/// How long output may stay open after the program has ended.
const HELD_OUTPUT_PATIENCE: Duration = Duration::from_millis(500);

/// A plugin that is a program.
#[derive(Debug)]
pub struct ExecPlugin {
    kind: PluginType,
    bin_dirs: Vec<PathBuf>,
}

struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl ExecPlugin {
    /// The program called `kind` in the first of these directories that has it.
    #[must_use]
    pub fn new(kind: PluginType, bin_dirs: Vec<PathBuf>) -> Self {
        Self { kind, bin_dirs }
    }

    fn path(&self) -> Result<PathBuf, PluginError> {
        let candidates = self.bin_dirs.iter().map(|dir| dir.join(self.kind.as_str()));
        let executable = |path: &PathBuf| {
            path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        };
        let missing = || PluginError::NotFound { kind: self.kind.clone(), dirs: self.bin_dirs.clone() };
        candidates.into_iter().find(executable).ok_or_else(missing)
    }

    fn command(&self, path: &Path, operation: Operation, request: &Request) -> Command {
        let mut command = Command::new(path);
        let dirs: Vec<_> = self.bin_dirs.iter().map(|dir| dir.as_os_str()).collect();
        command
            .env("CNI_COMMAND", operation.as_str())
            .env("CNI_PATH", dirs.join(std::ffi::OsStr::new(":")))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let invocation = request.invocation.as_deref();
        if let Some(invocation) = invocation {
            let args: Vec<String> =
                invocation.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
            command
                .env("CNI_CONTAINERID", &invocation.container_id)
                .env("CNI_IFNAME", &invocation.ifname)
                .env("CNI_ARGS", args.join(";"))
                .env("CNI_NETNS", invocation.netns.as_deref().unwrap_or(Path::new("")));
        } else {
            for variable in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_ARGS", "CNI_NETNS"] {
                command.env_remove(variable);
            }
        }
        command
    }

    async fn run(&self, operation: Operation, request: &Request) -> Result<Vec<u8>, PluginError> {
        let path = self.path()?;
        let input = Value::Object(request.config.clone()).to_string();
        let child = self
            .command(&path, operation, request)
            .spawn()
            .map_err(|source| PluginError::Spawn { path: path.clone(), source })?;
        let mut running = Running(child);
        let talked =
            tokio::time::timeout(request.timeout, talk(&mut running, &path, input.into_bytes())).await;
        let ended = match talked {
            Ok(ended) => ended?,
            Err(_) => return Err(PluginError::TimedOut { path, limit: request.timeout }),
        };
        if !ended.stderr.is_empty() {
            tracing::debug!(plugin = %self.kind, %operation, words = words(&ended.stderr), "plugin wrote");
        }
        self.judge(ended)
    }

    /// An error may come with any exit status; some plugins forget to fail.
    fn judge(&self, ended: Ended) -> Result<Vec<u8>, PluginError> {
        let kind = self.kind.clone();
        let told = serde_json::from_slice::<Map<String, Value>>(&ended.stdout).ok();
        if let Some(told) = &told
            && let Some(code) = told.get("code").and_then(Value::as_u64)
            && (code != 0 || !ended.status.success())
        {
            let text = |key| {
                let text = told.get(key).and_then(Value::as_str).unwrap_or_default();
                text.chars().take(WORDS_CHARS_MAX).collect::<String>()
            };
            let code = u32::try_from(code).unwrap_or(code::INTERNAL);
            return Err(PluginError::Refused { kind, code, message: text("msg"), details: text("details") });
        }
        if ended.status.success() {
            return Ok(ended.stdout);
        }
        let output = match words(&ended.stderr) {
            empty if empty.is_empty() => words(&ended.stdout),
            output => output,
        };
        Err(PluginError::Failed { kind, status: ended.status, output })
    }
}

impl Plugin for ExecPlugin {
    fn add(&self, request: Request) -> BoxFuture<'_, Result<CniResult, PluginError>> {
        Box::pin(async move {
            let stdout = self.run(Operation::Add, &request).await?;
            if stdout.iter().all(u8::is_ascii_whitespace) {
                return Err(PluginError::Empty { kind: self.kind.clone() });
            }
            CniResult::parse(&stdout, request.cni_version).map_err(|source| PluginError::Garbage {
                kind: self.kind.clone(),
                output: words(&stdout),
                source,
            })
        })
    }

    fn del(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        Box::pin(async move { self.run(Operation::Del, &request).await.map(drop) })
    }

    fn check(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        Box::pin(async move { self.run(Operation::Check, &request).await.map(drop) })
    }

    fn gc(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        Box::pin(async move { self.run(Operation::Gc, &request).await.map(drop) })
    }

    fn status(&self, request: Request) -> BoxFuture<'_, Result<(), PluginError>> {
        Box::pin(async move { self.run(Operation::Status, &request).await.map(drop) })
    }

    fn version(&self, request: Request) -> BoxFuture<'_, Result<Vec<String>, PluginError>> {
        #[derive(serde::Deserialize)]
        struct Spoken {
            #[serde(rename = "supportedVersions")]
            supported_versions: Vec<String>,
        }
        Box::pin(async move {
            let stdout = self.run(Operation::Version, &request).await?;
            let spoken: Spoken = serde_json::from_slice(&stdout).map_err(|source| PluginError::Garbage {
                kind: self.kind.clone(),
                output: words(&stdout),
                source: source.into(),
            })?;
            Ok(spoken.supported_versions)
        })
    }
}

/// A program that is killed with its group unless it was seen to end.
struct Running(Child);

impl Running {
    /// The group of a leader that was not waited for cannot be anybody else's.
    fn kill(&mut self) {
        let pid = self.0.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The runtime waits for a child that was dropped, so none stays a zombie.
        self.kill();
    }
}

async fn talk(running: &mut Running, path: &Path, input: Vec<u8>) -> Result<Ended, PluginError> {
    let failed = |source| PluginError::Io { path: path.to_owned(), source };
    let leader = running.0.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let (stdin, stdout, stderr) = (running.0.stdin.take(), running.0.stdout.take(), running.0.stderr.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = {
        let write = async {
            if let Some(mut stdin) = stdin {
                // A plugin need not read what it is told; what it says counts.
                let _ = stdin.write_all(&input).await;
            }
        };
        let read_out = async {
            let Some(stdout) = stdout else { return Ok(()) };
            match collect(stdout, &mut out, STDOUT_BYTES_MAX, false).await {
                Ok(true) => Ok(()),
                Ok(false) => {
                    Err(PluginError::TooMuchOutput { path: path.to_owned(), limit: STDOUT_BYTES_MAX })
                }
                Err(source) => Err(failed(source)),
            }
        };
        let read_err = async {
            let Some(stderr) = stderr else { return Ok(()) };
            collect(stderr, &mut err, STDERR_BYTES_KEPT, true).await.map(drop).map_err(failed)
        };
        let output = async { tokio::try_join!(read_out, read_err).map(drop) };
        let output = async { tokio::join!(write, output).1 };
        tokio::pin!(output);
        tokio::select! {
            read = &mut output => {
                read?;
                running.0.wait().await.map_err(failed)?
            }
            status = running.0.wait() => {
                let status = status.map_err(failed)?;
                match tokio::time::timeout(HELD_OUTPUT_PATIENCE, &mut output).await {
                    Ok(read) => read?,
                    // Somebody holds the output, most likely of this group, so that its number is not free.
                    Err(_) => {
                        if let Some(leader) = leader {
                            let _ = kill_process_group(leader, Signal::KILL);
                        }
                    }
                }
                status
            }
        }
    };
    Ok(Ended { status, stdout: out, stderr: err })
}

/// Reads to the end into `kept`; past `limit` the rest is dropped, or false is returned.
async fn collect(
    mut from: impl AsyncRead + Unpin,
    kept: &mut Vec<u8>,
    limit: usize,
    drop_rest: bool,
) -> io::Result<bool> {
    let mut buffer = vec![0; 8 << 10];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(true);
        }
        let room = limit.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
        if read > room && !drop_rest {
            return Ok(false);
        }
    }
}

fn words(bytes: &[u8]) -> String {
    let kept: String = String::from_utf8_lossy(bytes).trim().chars().take(WORDS_CHARS_MAX).collect();
    kept
}
