//! A person's terminal: commands are typed at a shell that runs on a pty, and what appears is read.

use std::path::PathBuf;

use pinnace_conformance::node::Node;
use pinnace_conformance::terminal::Interactive;

/// A node, and a terminal on it.
pub struct Shell {
    pub node: Node,
    terminal: Interactive,
    commands: u32,
    seen: usize,
}

impl Shell {
    /// A terminal of 100 columns; `None` where no test can run.
    pub async fn open() -> Option<Self> {
        let node = Node::start()?;
        let bin = node.world.dir().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::os::unix::fs::symlink(pinnace_conformance::daemon::program(), bin.join("pinnace")).unwrap();
        let mut command = node.world.command("setsid");
        command.args(["--ctty", "--wait", "sh"]);
        command.env("PINNACE_SOCKET", &node.daemon.socket).env("PS1", "").env("TERM", "xterm");
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        command.env("PATH", format!("{}:{path}", bin.display()));
        let mut terminal = Interactive::on_a_terminal(command, 100, 40);
        let directory = node.world.dir().join("files");
        std::fs::create_dir_all(&directory).unwrap();
        let first = format!("stty -echo; cd {}; echo ready:$((1+1))\n", directory.display());
        terminal.input(first.as_bytes()).await;
        let seen = terminal.after(0, "ready:2\r\n").await;
        Some(Self { node, terminal, commands: 0, seen })
    }

    /// Types a command and waits for its end: what appeared, and its exit code.
    pub async fn run(&mut self, command: &str) -> (String, i32) {
        self.begin(command).await;
        self.end().await
    }

    /// Types a command that will ask for more.
    pub async fn begin(&mut self, command: &str) {
        self.commands += 1;
        let line = format!("{command}; echo @done:{}:$?@\n", self.commands);
        self.terminal.input(line.as_bytes()).await;
    }

    /// Types something to the program that runs.
    pub async fn type_in(&mut self, text: &str) {
        self.terminal.input(text.as_bytes()).await;
    }

    /// Waits until something has appeared since the last command ended.
    pub async fn until(&mut self, text: &str) {
        self.terminal.after(self.seen, text).await;
    }

    /// Waits for the end of the command that runs.
    pub async fn end(&mut self) -> (String, i32) {
        let mark = format!("@done:{}:", self.commands);
        let after_mark = self.terminal.after(self.seen, &mark).await;
        let end = self.terminal.after(after_mark, "@").await;
        let output = self.terminal.between(self.seen, after_mark - mark.len());
        let code = self.terminal.between(after_mark, end - 1).parse().unwrap();
        self.seen = self.terminal.after(end, "\n").await;
        (output.replace("\r\n", "\n"), code)
    }

    /// A command that succeeds: what appeared.
    pub async fn ok(&mut self, command: &str) -> String {
        let (output, code) = self.run(command).await;
        assert_eq!(code, 0, "{command}\n{output}{}", self.node.daemon.last_lines());
        output
    }

    /// A command that fails with a code: what appeared.
    pub async fn fails(&mut self, command: &str, wanted: i32) -> String {
        let (output, code) = self.run(command).await;
        assert_eq!(code, wanted, "{command}\n{output}");
        output
    }

    /// An image of the catalogue in the registry and on the node; its reference.
    pub async fn pulled(&self, name: &str) -> String {
        let reference = self.node.push(name);
        self.node.cri.pull(&reference).await.unwrap();
        reference
    }

    /// The shell's directory.
    pub fn directory(&self) -> PathBuf {
        self.node.world.dir().join("files")
    }
}
