//! A program's streams on this terminal: raw mode, sizes, signals, and the keys that leave it.

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, bail};
use pinnace_admin_api::v1;
use pinnace_admin_api::v1::session_input::Input;
use pinnace_admin_api::v1::session_output::Output;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::Client;
use crate::exit::{DAEMON, Exit};

/// Messages that wait for the network.
const QUEUED: usize = 16;

const CHUNK_BYTES: usize = 32 << 10;

/// Docker's: ctrl-p, then ctrl-q.
pub const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// How a session is joined.
#[derive(Debug)]
pub struct Join {
    /// The first message.
    pub first: Input,
    /// Pass standard input on.
    pub stdin: bool,
    /// It has a terminal.
    pub terminal: bool,
    /// Keys that leave it.
    pub detach_keys: String,
    /// Pass signals on to this container.
    pub signals_to: Option<String>,
    /// Code of failures that the daemon has none for.
    pub failure: u8,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With the program.
    Exited(i32),
    /// The user left; the program goes on.
    Detached,
}

/// The size of this terminal.
pub fn size() -> Option<v1::TerminalSize> {
    let stdout = io::stdout();
    let size = tcgetwinsize(&stdout).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    Some(v1::TerminalSize { rows: size.ws_row.into(), columns: size.ws_col.into() })
}

/// Refuses a terminal for the program where there is none here to type at.
pub fn check_terminal(interactive: bool, terminal: bool) -> anyhow::Result<()> {
    if interactive && terminal && !io::stdin().is_terminal() {
        bail!("the input device is not a TTY; leave -t out, or run it on a terminal");
    }
    Ok(())
}

/// Standard input, as it was before.
struct Raw(Termios);

impl Raw {
    fn enter() -> anyhow::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&stdin).context("read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("set the terminal's mode")?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Flush, &self.0);
    }
}

/// Runs a session to its end.
pub async fn run(client: &mut Client, exec: bool, join: Join) -> anyhow::Result<Outcome> {
    let keys = parse_keys(&join.detach_keys)?;
    let (input, receiver) = mpsc::channel(QUEUED);
    let first = v1::SessionInput { input: Some(join.first) };
    input.send(first).await.context("begin a session")?;
    let stream = ReceiverStream::new(receiver);
    let call =
        if exec { client.containers.exec(stream).await } else { client.containers.attach(stream).await };
    let mut output = call.map_err(|status| Exit::refused(&status, join.failure))?.into_inner();
    let begun = next(&mut output, join.failure).await?;
    let Some(Output::Begun(begun)) = begun else { bail!("the daemon began a session out of turn") };
    let terminal = join.terminal && begun.terminal;
    let raw = if terminal && join.stdin { Raw::enter()? } else { None };
    let (left, mut leaving) = mpsc::channel(1);
    if join.stdin {
        let typed = input.clone();
        let keys = if terminal { keys } else { Vec::new() };
        // A thread, for a read of a terminal cannot be given up; it ends with the program.
        std::thread::spawn(move || type_in(&typed, &keys, &left));
    }
    let window = input.clone();
    let mut resized = signal(SignalKind::window_change()).context("watch SIGWINCH")?;
    let mut signals = Signals::new(join.signals_to.filter(|_| !terminal))?;
    let outcome = loop {
        tokio::select! {
            message = next(&mut output, join.failure) => match message? {
                Some(Output::Stdout(bytes)) => write(io::stdout(), &bytes)?,
                Some(Output::Stderr(bytes)) => write(io::stderr(), &bytes)?,
                Some(Output::ExitCode(code)) => break Outcome::Exited(code),
                Some(Output::Begun(_)) => {}
                None => {
                    drop(raw);
                    let message = "the daemon ended the session; the container may run on (pinnace ps)".to_owned();
                    return Err(Exit { code: DAEMON, message }.into());
                }
            },
            Some(()) = leaving.recv() => break Outcome::Detached,
            _ = resized.recv(), if terminal => {
                if let Some(size) = size() {
                    // The session may just have ended.
                    let _ = window.send(v1::SessionInput { input: Some(Input::Resize(size)) }).await;
                }
            }
            (container, number) = signals.next() => {
                let request = v1::KillRequest { container, signal: number.to_string() };
                if let Err(status) = client.containers.kill(request).await {
                    writeln!(io::stderr(), "pinnace: {}", status.message())?;
                }
            }
        }
    };
    drop(raw);
    Ok(outcome)
}

async fn next(output: &mut Streaming<v1::SessionOutput>, failure: u8) -> anyhow::Result<Option<Output>> {
    let message = output.message().await.map_err(|status| Exit::refused(&status, failure))?;
    Ok(message.and_then(|message| message.output))
}

fn write(mut to: impl io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Passes on what is typed, until the keys that leave.
fn type_in(input: &mpsc::Sender<v1::SessionInput>, keys: &[u8], left: &mpsc::Sender<()>) {
    let send = |input_message| input.blocking_send(v1::SessionInput { input: Some(input_message) }).is_ok();
    let mut filter = Filter { keys, matched: 0 };
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match io::stdin().lock().read(&mut chunk) {
            Ok(0) | Err(_) => {
                send(Input::StdinEnd(v1::Nothing {}));
                return;
            }
            Ok(count) => {
                let (passed, leaves) = filter.pass(&chunk[..count]);
                if !passed.is_empty() && !send(Input::Stdin(passed)) {
                    return;
                }
                if leaves {
                    let _ = left.blocking_send(());
                    return;
                }
            }
        }
    }
}

/// Holds back what may be the beginning of the keys.
struct Filter<'a> {
    keys: &'a [u8],
    matched: usize,
}

impl Filter<'_> {
    /// What is passed on, and whether the keys were complete.
    fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.keys.get(self.matched) == Some(byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if self.keys.first() == Some(byte) {
                self.matched = 1;
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

/// `ctrl-p,ctrl-q`, letters and control letters.
fn parse_keys(text: &str) -> anyhow::Result<Vec<u8>> {
    let wrong =
        || format!("--detach-keys {text:?}: keys are letters, or ctrl- and a letter or one of @[\\]^_");
    let key = |key: &str| match (key.as_bytes(), key.strip_prefix("ctrl-").map(str::as_bytes)) {
        ([letter], _) => Ok(*letter),
        (_, Some([letter @ b'a'..=b'z'])) => Ok(letter - b'a' + 1),
        (_, Some([letter @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')])) => Ok(letter - b'@'),
        _ => bail!(wrong()),
    };
    text.split(',').filter(|key| !key.is_empty()).map(key).collect()
}

/// Signals of this process, for the container.
struct Signals {
    container: Option<String>,
    hang_up: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    user1: tokio::signal::unix::Signal,
    user2: tokio::signal::unix::Signal,
}

impl Signals {
    fn new(container: Option<String>) -> anyhow::Result<Self> {
        let watch = |kind| signal(kind).context("watch signals");
        // Without a container the defaults stay as they are: they end this program.
        let kind = |kind: SignalKind| if container.is_some() { kind } else { SignalKind::window_change() };
        Ok(Self {
            hang_up: watch(kind(SignalKind::hangup()))?,
            interrupt: watch(kind(SignalKind::interrupt()))?,
            quit: watch(kind(SignalKind::quit()))?,
            terminate: watch(kind(SignalKind::terminate()))?,
            user1: watch(kind(SignalKind::user_defined1()))?,
            user2: watch(kind(SignalKind::user_defined2()))?,
            container,
        })
    }

    async fn next(&mut self) -> (String, i32) {
        let Some(container) = self.container.clone() else { return std::future::pending().await };
        let number = tokio::select! {
            _ = self.hang_up.recv() => SignalKind::hangup(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.quit.recv() => SignalKind::quit(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.user1.recv() => SignalKind::user_defined1(),
            _ = self.user2.recv() => SignalKind::user_defined2(),
        };
        (container, number.as_raw_value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_leave_and_what_only_begins_like_them_is_passed_on() {
        let keys = parse_keys(DETACH_KEYS).unwrap();
        assert_eq!(keys, [16, 17]);
        let mut filter = Filter { keys: &keys, matched: 0 };
        assert_eq!(filter.pass(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(filter.pass(b"c\x10\x10\x11d"), (b"\x10c\x10".to_vec(), true));
        assert!(parse_keys("ctrl-").is_err() && parse_keys("ab").is_err());
        assert_eq!(parse_keys("a,ctrl-[").unwrap(), [b'a', 27]);
    }
}
