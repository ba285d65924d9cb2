//! Runs critest of kubernetes-sigs/cri-tools against the program, in a machine of its own, and compares with `expected.toml`.
//!
//! ```text
//! critest BINARY [--seed N]... [--focus REGEX] [--websocket] [--keep DIR]
//! ```
//! `BINARY` is critest itself, which is built from its own repository (`go test -c ./cmd/critest`). For every seed all specs
//! run once, in the order that the seed gives; `--websocket` runs the streaming specs over WebSocket instead of SPDY. Ends
//! with 0 if every spec passes that `expected.toml` does not list, and everything that it lists is as it says. Reports are
//! kept in `DIR`.

mod images;
mod report;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;

use pinnace_conformance::daemon::Daemon;
use pinnace_conformance::node::Node;
use pinnace_conformance::registry::Registry;
use pinnace_conformance::world::World;

const EXPECTED: &str = include_str!("expected.toml");

struct Arguments {
    critest: PathBuf,
    seeds: Vec<String>,
    focus: Option<String>,
    websocket: bool,
    keep: Option<PathBuf>,
}

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
        let mut arguments = Arguments {
            critest: PathBuf::new(),
            seeds: Vec::new(),
            focus: None,
            websocket: false,
            keep: None,
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
            match word.as_str() {
                "--seed" => arguments.seeds.push(value()?),
                "--focus" => arguments.focus = Some(value()?),
                "--websocket" => arguments.websocket = true,
                "--keep" => arguments.keep = Some(value()?.into()),
                path if !path.starts_with('-') && arguments.critest.as_os_str().is_empty() => {
                    arguments.critest = fs::canonicalize(path).map_err(|error| format!("{path}: {error}"))?;
                }
                other => return Err(format!("{other}: not an argument of this program")),
            }
        }
        if arguments.critest.as_os_str().is_empty() {
            return Err("which critest? It is the first argument".into());
        }
        if arguments.seeds.is_empty() {
            arguments.seeds.push("1".into());
        }
        Ok(arguments)
    }
}

fn main() -> ExitCode {
    let mut out = std::io::stdout();
    match Arguments::read(std::env::args().skip(1)).and_then(|arguments| run(&arguments, &mut out)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "critest: {message}");
            ExitCode::from(64)
        }
    }
}

fn run(arguments: &Arguments, out: &mut impl std::io::Write) -> Result<bool, String> {
    let world = Arc::new(World::new()?);
    // critest asks for propagation from and to the host: its root is shared, as systemd makes it.
    world.sh("mount --make-rshared /");
    let registry = Registry::start(Arc::clone(&world));
    images::push(&registry);
    images::mirrors(&world);
    let daemon = Daemon::start(Arc::clone(&world), &Node::config(&world));
    let place = if world.is_cgroup_v2() { "guest" } else { "host" };
    let expected = report::expected(EXPECTED, place);
    let mut good = true;
    for seed in &arguments.seeds {
        let specs = once(arguments, seed, &world, &daemon);
        let whole = arguments.focus.is_none() && !arguments.websocket;
        let differences = report::differences(&specs, &expected, whole);
        let told = writeln!(out, "seed {seed}: {:?}", report::counts(&specs))
            .and_then(|()| differences.iter().try_for_each(|line| writeln!(out, "  {line}")));
        told.map_err(|error| error.to_string())?;
        good &= differences.is_empty() && !specs.is_empty();
    }
    Ok(good)
}

fn once(arguments: &Arguments, seed: &str, world: &World, daemon: &Daemon) -> Vec<report::Spec> {
    let dir = world.dir().join(format!("critest-{seed}"));
    fs::create_dir_all(dir.join("tmp")).expect("make a directory for the report");
    let (json, log, settings) = (dir.join("report.json"), dir.join("log"), dir.join("crictl.yaml"));
    fs::write(&settings, "").expect("write crictl.yaml");
    let output = fs::File::create(&log).expect("make a log");
    let mut command = world.command(&arguments.critest);
    command
        .arg("-config")
        .arg(&settings)
        .arg("-runtime-endpoint")
        .arg(format!("unix://{}", daemon.socket.display()))
        .arg(format!("--ginkgo.seed={seed}"))
        .arg(format!("--ginkgo.json-report={}", json.display()))
        .args(["--ginkgo.no-color", "--ginkgo.timeout=60m"])
        .env("TMPDIR", dir.join("tmp"))
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a second descriptor of the log"))
        .stderr(output);
    if arguments.websocket {
        command.args(["-websocket-exec", "-websocket-attach", "-websocket-portforward"]);
    }
    match (&arguments.focus, arguments.websocket) {
        (Some(focus), _) => drop(command.arg(format!("--ginkgo.focus={focus}"))),
        (None, true) => drop(command.arg("--ginkgo.focus=Streaming")),
        (None, false) => {}
    }
    command.status().expect("run critest");
    if let Some(keep) = &arguments.keep {
        keep_files(&dir, &daemon.log, &keep.join(format!("seed-{seed}")));
    }
    report::read(&json)
}

fn keep_files(dir: &Path, daemon_log: &Path, keep: &Path) {
    fs::create_dir_all(keep).expect("make the directory for reports");
    for file in [&dir.join("report.json"), &dir.join("log"), daemon_log] {
        fs::copy(file, keep.join(file.file_name().unwrap_or_default())).expect("keep a report");
    }
}
