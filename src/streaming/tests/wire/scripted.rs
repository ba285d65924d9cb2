//! A runtime whose processes are tasks: each word of a command does one thing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use pinnace_streaming::{
    AttachRequest, Control, Duplex, ExecRequest, ExitStatus, Failure, Runtime, Session, TerminalSize,
};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

const PIPE: usize = 64 * 1024;

/// What can be counted from outside.
#[derive(Default)]
pub struct Scripted {
    /// Processes and forwarded connections that run now.
    pub running: Arc<AtomicUsize>,
    /// Sessions that were hung up.
    pub hung_up: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Running {
    fn new(count: &Arc<AtomicUsize>) -> Running {
        count.fetch_add(1, Ordering::SeqCst);
        Running(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Remote {
    sizes: mpsc::Sender<TerminalSize>,
    hang_up: CancellationToken,
    hung_up: Arc<AtomicUsize>,
}

impl Control for Remote {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, ()> {
        async move { self.sizes.send(size).await.unwrap_or(()) }.boxed()
    }

    fn hang_up(&self) -> BoxFuture<'_, ()> {
        self.hung_up.fetch_add(1, Ordering::SeqCst);
        self.hang_up.cancel();
        std::future::ready(()).boxed()
    }
}

/// A process's own ends.
struct Process {
    stdin: DuplexStream,
    stdout: DuplexStream,
    stderr: DuplexStream,
    sizes: mpsc::Receiver<TerminalSize>,
    exit: oneshot::Sender<i32>,
}

impl Process {
    async fn run(mut self, command: &[String], first: Option<TerminalSize>) -> Option<()> {
        let number =
            |index: usize| command.get(index).and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
        match command[0].as_str() {
            "cat" => {
                tokio::io::copy(&mut self.stdin, &mut self.stdout).await.ok()?;
                self.exit.send(0).ok()
            }
            "exit" => self.exit.send(i32::try_from(number(1)).ok()?).ok(),
            "both" => {
                self.stdout.write_all(b"out").await.ok()?;
                self.stderr.write_all(b"err").await.ok()?;
                self.exit.send(0).ok()
            }
            "write" => {
                zeros(&mut self.stdout, number(1)).await?;
                self.exit.send(0).ok()
            }
            // The exit is known long before the output has been read.
            "exit-first" => {
                self.exit.send(5).ok()?;
                tokio::time::sleep(Duration::from_millis(100)).await;
                zeros(&mut self.stdout, number(1)).await
            }
            "count" => {
                let mut buffer = vec![0; PIPE];
                let mut count = 0;
                loop {
                    match self.stdin.read(&mut buffer).await.ok()? {
                        0 => break,
                        more => count += more,
                    }
                }
                self.stdout.write_all(count.to_string().as_bytes()).await.ok()?;
                self.exit.send(0).ok()
            }
            "size" => {
                let tell = |size: TerminalSize| format!("{}x{}\n", size.width, size.height);
                let text = first.map_or("none\n".to_owned(), tell);
                self.stdout.write_all(text.as_bytes()).await.ok()?;
                for _ in 0..number(1) {
                    let size = self.sizes.recv().await?;
                    self.stdout.write_all(tell(size).as_bytes()).await.ok()?;
                }
                self.exit.send(0).ok()
            }
            // A grandchild holds the output open.
            "grandchild" => {
                self.stdout.write_all(b"done").await.ok()?;
                self.exit.send(0).ok()?;
                std::future::pending().await
            }
            // Reads nothing, says nothing.
            _ => std::future::pending().await,
        }
    }
}

async fn zeros(to: &mut (impl AsyncWrite + Unpin), mut count: usize) -> Option<()> {
    let buffer = vec![0; PIPE];
    while count > 0 {
        let piece = count.min(buffer.len());
        to.write_all(&buffer[..piece]).await.ok()?;
        count -= piece;
    }
    Some(())
}

impl Runtime for Scripted {
    fn exec(
        &self,
        request: ExecRequest,
        initial_size: Option<TerminalSize>,
    ) -> BoxFuture<'_, Result<Session, Failure>> {
        async move {
            if request.command[0] == "fail" {
                return Err(Failure::new("no such program"));
            }
            let (stdin, process_stdin) = duplex(PIPE);
            let (stdout, process_stdout) = duplex(PIPE);
            let (stderr, process_stderr) = duplex(PIPE);
            let (sizes, process_sizes) = mpsc::channel(1);
            let (exit, exited) = oneshot::channel();
            let hang_up = CancellationToken::new();
            let process = Process {
                stdin: process_stdin,
                stdout: process_stdout,
                stderr: process_stderr,
                sizes: process_sizes,
                exit,
            };
            let (running, killed) = (Running::new(&self.running), hang_up.clone());
            tokio::spawn(async move {
                tokio::select! {
                    _ = process.run(&request.command, initial_size) => {}
                    () = killed.cancelled() => {}
                }
                drop(running);
            });
            Ok(Session {
                stdin: request.stdin.then(|| Box::new(stdin) as _),
                stdout: request.stdout.then(|| Box::new(stdout) as _),
                stderr: request.stderr.then(|| Box::new(stderr) as _),
                control: Box::new(Remote { sizes, hang_up, hung_up: self.hung_up.clone() }),
                exit: async move {
                    exited.await.map(|code| ExitStatus { code }).map_err(|_| Failure::new("killed"))
                }
                .boxed(),
            })
        }
        .boxed()
    }

    fn attach(
        &self,
        request: AttachRequest,
        initial_size: Option<TerminalSize>,
    ) -> BoxFuture<'_, Result<Session, Failure>> {
        let AttachRequest { container_id, stdin, stdout, stderr, tty } = request;
        let command = vec!["cat".to_owned()];
        self.exec(ExecRequest { container_id, command, stdin, stdout, stderr, tty }, initial_size)
    }

    fn port_forward<'a>(
        &'a self,
        _sandbox_id: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, Failure>> {
        async move {
            if port == 1 {
                return Err(Failure::new("connect to port 1: connection refused"));
            }
            let (ours, mut application) = duplex(PIPE);
            let running = Running::new(&self.running);
            tokio::spawn(async move {
                let mut received = Vec::new();
                match port {
                    // Answers when the client has said everything, and takes its time.
                    80 => {
                        application.read_to_end(&mut received).await.ok()?;
                        tokio::time::sleep(Duration::from_millis(1500)).await;
                        let answer = format!("{} bytes", received.len());
                        application.write_all(answer.as_bytes()).await.ok()?;
                    }
                    // Ends its side first, and goes on reading.
                    81 => {
                        application.write_all(b"banner").await.ok()?;
                        application.shutdown().await.ok()?;
                        application.read_to_end(&mut received).await.ok()?;
                    }
                    // Reads nothing.
                    82 => std::future::pending::<()>().await,
                    // Echoes.
                    _ => {
                        let (mut from, mut to) = tokio::io::split(application);
                        tokio::io::copy(&mut from, &mut to).await.ok()?;
                        to.shutdown().await.ok()?;
                    }
                }
                drop(running);
                Some(())
            });
            Ok(Box::new(ours) as Box<dyn Duplex>)
        }
        .boxed()
    }
}
