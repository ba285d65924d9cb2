//! A hook: somebody's program with the container's state on its stdin, run to its end and no longer than it may take.
//!
//! The state is in a sealed memfd, so that a hook that does not read it needs no care; so are the last words of one that
//! fails, in another.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::failure::At;
use crate::packet;
use crate::plan::Hook;
use crate::protocol::Failure;

const STAGE: &str = "hook";

/// How much of a failing hook's output is told.
const LAST_WORDS: u64 = 1024;

/// Runs a hook. `kind` is its name in the spec, e.g. `createContainer`. A status other than 0, a signal and a time-out are
/// failures, told with the last that it wrote.
pub fn run(kind: &str, hook: &Hook, state: &[u8]) -> Result<(), Failure> {
    let refused = |message: String| Failure::refused(STAGE, &hook.path, format!("{kind}: {message}"));
    let stdin = packet::sealed("state", state, MemfdFlags::empty()).at(STAGE, "memfd_create", &hook.path)?;
    seek(&stdin, SeekFrom::Start(0)).at(STAGE, "lseek", &hook.path)?;
    let words = memfd_create("output", MemfdFlags::CLOEXEC).at(STAGE, "memfd_create", &hook.path)?;
    let copy = |fd: &OwnedFd| fd.try_clone().map_err(|error| refused(error.to_string()));
    let mut command = Command::new(OsStr::from_bytes(&hook.path));
    if let Some((name, arguments)) = hook.args.split_first() {
        command
            .arg0(OsStr::from_bytes(name))
            .args(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
    }
    command.env_clear().stdin(Stdio::from(stdin)).stdout(copy(&words)?).stderr(copy(&words)?);
    for entry in &hook.env {
        let at = entry.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
        let (key, value) = at.map(|at| entry.split_at(at)).ok_or_else(|| {
            refused(format!("environment entry {:?} is not KEY=value", String::from_utf8_lossy(entry)))
        })?;
        command.env(OsStr::from_bytes(key), OsStr::from_bytes(value.get(1..).unwrap_or_default()));
    }
    let mut child = command.spawn().map_err(|error| refused(error.to_string()))?;
    let status = wait(&mut child, hook.timeout_ms)
        .map_err(|error| refused(error.to_string()))?
        .ok_or_else(|| refused(format!("did not end within {} ms", hook.timeout_ms)))?;
    if status.success() {
        return Ok(());
    }
    Err(refused(format!("{status}{}", last_words(&words))))
}

/// Its status, or none when it had to be killed.
fn wait(child: &mut Child, timeout_ms: u64) -> std::io::Result<Option<ExitStatus>> {
    if timeout_ms == 0 {
        return child.wait().map(Some);
    }
    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return child.wait().map(Some),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn last_words(words: &OwnedFd) -> String {
    let length = rustix::fs::fstat(words.as_fd()).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    let mut bytes = vec![0u8; usize::try_from(length.min(LAST_WORDS)).unwrap_or(0)];
    let read = words.try_clone().map(File::from).and_then(|file| {
        std::os::unix::fs::FileExt::read_at(&file, &mut bytes, length.saturating_sub(LAST_WORDS))
    });
    bytes.truncate(read.unwrap_or(0));
    match String::from_utf8_lossy(&bytes).trim() {
        "" => String::new(),
        text => format!(": {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, timeout_ms: u64) -> Hook {
        Hook {
            path: b"/bin/sh".to_vec(),
            args: ["sh", "-c", script].map(|argument| argument.as_bytes().to_vec()).to_vec(),
            env: vec![b"WORD=one".to_vec()],
            timeout_ms,
        }
    }

    #[test]
    fn gets_state_arguments_and_environment() {
        run(
            "prestart",
            &shell(r#"[ "$(cat)" = state ] && [ "$WORD" = one ] && [ -z "$HOME" ]"#, 0),
            b"state",
        )
        .unwrap();
        // One that does not read it.
        run("prestart", &shell(":", 5000), &vec![b'x'; 1 << 20]).unwrap();
    }

    #[test]
    fn failures_are_told_with_their_last_words() {
        let failure = run("prestart", &shell("echo no room >&2; exit 7", 0), b"").unwrap_err().to_string();
        assert!(failure.contains("/bin/sh") && failure.contains("exit status: 7: no room"), "{failure}");
        let failure = run("prestart", &shell("sleep 10", 100), b"").unwrap_err().to_string();
        assert!(failure.contains("did not end within 100 ms"), "{failure}");
        let missing = Hook { path: b"/nowhere/hook".to_vec(), ..Hook::default() };
        assert!(run("prestart", &missing, b"").unwrap_err().to_string().contains("No such file"));
    }
}
