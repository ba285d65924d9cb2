//! Interactive programs: one whose standard streams are this process's to write and read, and one on a terminal.

use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::Child;

/// How long anything that is waited for may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A running program and what it has said so far.
pub struct Interactive {
    child: Child,
    input: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    output: Box<dyn AsyncRead + Send + Unpin>,
    said: Vec<u8>,
    terminal: Option<std::fs::File>,
}

impl Interactive {
    /// Starts a program with pipes; its standard error is the test's own.
    pub fn on_pipes(command: Command) -> Interactive {
        let mut command = tokio::process::Command::from(command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (input, output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        Interactive {
            child,
            input: Some(Box::new(input)),
            output: Box::new(output),
            said: Vec::new(),
            terminal: None,
        }
    }

    /// Starts a program on a terminal of a size, which controls it if `command` sees to that (setsid(1)).
    pub fn on_a_terminal(mut command: Command, columns: u16, rows: u16) -> Interactive {
        let main =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a terminal");
        grantpt(&main).and_then(|()| unlockpt(&main)).expect("unlock a terminal");
        let name = ptsname(&main, Vec::new()).expect("a terminal has a name");
        let name = name.into_string().expect("its name is text");
        let open = || {
            let opened =
                rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
            std::fs::File::from(opened.unwrap_or_else(|error| panic!("{name}: {error}")))
        };
        command.stdin(open()).stdout(open()).stderr(open());
        let main = std::fs::File::from(main);
        let ends =
            [&main, &main].map(|file| tokio::fs::File::from(file.try_clone().expect("duplicate a file")));
        let [input, output] = ends;
        let mut command = tokio::process::Command::from(command);
        let child = command.kill_on_drop(true).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let this = Interactive {
            child,
            input: Some(Box::new(input)),
            output: Box::new(output),
            said: Vec::new(),
            terminal: Some(main),
        };
        this.resize(columns, rows);
        this
    }

    /// Changes the size of its terminal.
    pub fn resize(&self, columns: u16, rows: u16) {
        let terminal = self.terminal.as_ref().expect("it is on a terminal");
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(terminal, size).expect("size a terminal");
    }

    /// Types or writes a text.
    pub async fn input(&mut self, text: &[u8]) {
        let input = self.input.as_mut().expect("its input is open");
        input.write_all(text).await.expect("write to a program");
        input.flush().await.expect("write to a program");
    }

    /// Closes the pipe that is its standard input.
    pub fn end_input(&mut self) {
        self.input = None;
    }

    /// Reads until it has said a text; everything that it has said so far.
    pub async fn until(&mut self, text: &str) -> String {
        while !self.text().contains(text) {
            assert!(self.read().await, "ended before it said {text:?}: {}", self.text());
        }
        self.text()
    }

    /// Reads until it has said a text after the first so many bytes; how many bytes lead to the end of that text.
    pub async fn after(&mut self, from: usize, text: &str) -> usize {
        loop {
            let new = self.said.get(from..).unwrap_or_default();
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                return from + at + text.len();
            }
            assert!(self.read().await, "ended before it said {text:?}: {}", self.text());
        }
    }

    /// What it has said between two such numbers.
    pub fn between(&self, from: usize, to: usize) -> String {
        String::from_utf8_lossy(self.said.get(from..to).unwrap_or_default()).into_owned()
    }

    /// Reads until it ends; everything that it has said, and how it ended.
    pub async fn finish(mut self) -> (String, ExitStatus) {
        while self.read().await {}
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await.expect("it does not end");
        (self.text(), status.expect("wait for a program"))
    }

    /// Reads once; whether there was something. A terminal that nobody has open any more is an error to read.
    async fn read(&mut self) -> bool {
        let mut bytes = [0; 8192];
        let read = tokio::time::timeout(LIMIT, self.output.read(&mut bytes)).await;
        let read = read.unwrap_or_else(|_| panic!("nothing comes after {:?}", self.text())).unwrap_or(0);
        self.said.extend_from_slice(&bytes[..read]);
        read > 0
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.said).into_owned()
    }
}

impl std::fmt::Debug for Interactive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interactive").field("child", &self.child).finish_non_exhaustive()
    }
}
