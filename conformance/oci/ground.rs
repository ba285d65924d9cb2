//! A world with bundles in it, and the command line.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use pinnace_conformance::daemon::program;
use pinnace_conformance::images::debian;
use pinnace_conformance::process::poll;
use pinnace_conformance::skip;
use pinnace_conformance::world::World;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(10);

/// Programs that bundles have.
const APPLETS: [&str; 24] = [
    "cat", "chmod", "dd", "echo", "env", "false", "grep", "head", "hostname", "id", "kill", "ls", "mkdir",
    "mount", "ps", "readlink", "sh", "sleep", "stat", "stty", "test", "touch", "true", "umask",
];

/// A machine to run containers on by hand.
pub struct Machine {
    pub world: World,
}

/// What a container said and how the command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    /// It must have succeeded; what it said.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// It must have failed and said why.
    #[track_caller]
    pub fn refused(self, words: &str) -> String {
        assert_ne!(self.code, 0, "{self:?}");
        assert!(self.stderr.contains(words), "no {words:?} in: {}", self.stderr);
        self.stderr
    }
}

impl Machine {
    /// None where no world can be made.
    pub fn new(test: &str) -> Option<Machine> {
        match World::new() {
            Ok(world) => Some(Machine { world }),
            Err(reason) => {
                skip(test, &reason);
                None
            }
        }
    }

    /// A bundle with a shell, whose configuration is `pinnace oci spec`'s with a command and some changes.
    pub fn bundle(&self, name: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.world.dir().join(name);
        fs::create_dir(&bundle).unwrap();
        let rootfs = bundle.join("rootfs");
        for directory in ["bin", "dev", "etc", "proc", "sys", "tmp", "data"] {
            fs::create_dir_all(rootfs.join(directory)).unwrap();
        }
        let package = debian::unpacked("busybox-static");
        let busybox = ["usr/bin/busybox", "bin/busybox"].map(|path| package.join(path));
        let busybox = busybox.iter().find(|path| path.exists()).expect("busybox-static has busybox");
        fs::copy(busybox, rootfs.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        self.oci(&["spec", "--bundle", text(&bundle)]).ok();
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["process"]["args"] = json!(args);
        config["process"]["terminal"] = json!(false);
        config["root"]["readonly"] = json!(false);
        change(&mut config);
        fs::write(&path, config.to_string()).unwrap();
        bundle
    }

    /// A command line in the world.
    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.world.command(program());
        command.args(["oci", "--root", "/run/oci-state"]).args(args).stdin(Stdio::null());
        command
    }

    /// Runs one to its end. Its streams are files: a container keeps those of its `create`.
    pub fn oci(&self, args: &[&str]) -> Ended {
        let stdout = tempfile::NamedTempFile::new_in(self.world.dir()).unwrap();
        let stderr = tempfile::NamedTempFile::new_in(self.world.dir()).unwrap();
        let mut command = self.command(args);
        command.stdout(stdout.reopen().unwrap()).stderr(stderr.reopen().unwrap());
        let status = command.status().unwrap();
        let read =
            |file: &tempfile::NamedTempFile| String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
        Ended { code: status.code().unwrap_or(-1), stdout: read(&stdout), stderr: read(&stderr) }
    }

    /// Creates a container whose output goes to the file that is returned.
    pub fn create(&self, id: &str, bundle: &Path) -> (Ended, PathBuf) {
        let output = bundle.join(format!("output-{id}"));
        let file = fs::File::create(&output).unwrap();
        let mut command = self.command(&["create", "--bundle", text(bundle), id]);
        let status = command.stdout(file.try_clone().unwrap()).stderr(file).status().unwrap();
        let said = fs::read_to_string(&output).unwrap();
        (Ended { code: status.code().unwrap_or(-1), stdout: said.clone(), stderr: said }, output)
    }

    /// Creates, starts, waits for the end, deletes; what it wrote.
    #[track_caller]
    pub fn run(&self, id: &str, bundle: &Path) -> String {
        let (created, output) = self.create(id, bundle);
        created.ok();
        self.oci(&["start", id]).ok();
        self.until(id, "stopped");
        self.oci(&["delete", id]).ok();
        fs::read_to_string(output).unwrap()
    }

    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.oci(&["state", id]).ok()).unwrap()
    }

    #[track_caller]
    pub fn until(&self, id: &str, status: &str) {
        let reached = poll(LIMIT, || (self.state(id)["status"] == status).then_some(()));
        assert!(reached.is_some(), "{id} is not {status}: {}", self.state(id));
    }

    /// Fails if anything of any container is left: state, cgroups, mounts, monitors.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let state = self.world.inside("/run/oci-state");
        let left: Vec<_> = fs::read_dir(&state)
            .map(|list| list.flatten().map(|it| it.file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "state of {left:?} is left");
        for cgroup in self.world.cgroups() {
            let parent = cgroup.dir.join("pinnace-oci");
            let left: Vec<_> = fs::read_dir(&parent)
                .map(|list| list.flatten().filter(|it| it.path().is_dir()).map(|it| it.path()).collect())
                .unwrap_or_default();
            assert!(left.is_empty(), "{left:?} is left");
        }
        let mounts = self.world.sh("cat /proc/1/mountinfo");
        let dir = self.world.dir().display().to_string();
        let ours = mounts.lines().filter(|line| line.contains(&format!("{dir}/"))).collect::<Vec<_>>();
        let before = self.world.inherited_mounts();
        assert!(ours.iter().all(|line| before.contains(*line)), "mounts are left: {ours:?}");
        let processes = poll(LIMIT, || {
            let list = self.world.sh("cat /proc/[0-9]*/comm 2>/dev/null || true");
            (!list.lines().any(|name| name.starts_with("pinnace"))).then_some(())
        });
        assert!(processes.is_some(), "a process of pinnace's is left");
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
