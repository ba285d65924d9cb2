//! Measures pinnace beside Debian's containerd and runc, in interleaved rounds on one machine.
//!
//! ```text
//! perf [--rounds 3] [--pods 12] [--execs 20] [--crowd 48] [--listed 300]
//!      [--kinds pinnace,native,plugins,containerd,containerd-tuned] [--skip pods|exec|crowd|lists|pull]...
//! ```
//! Of `--kinds` (`pinnace,containerd` unless said), `native` and `plugins` are pinnace with the conflist that containerd has;
//! they are measured where networks matter. `containerd-tuned` is the peer at its best in pulling, and is measured in that.
//! Ratios are to the last kind; the row "pull in percent of its floor" is to the floors, which are told below the table.
//! Every figure in the project's documents comes from here: `conformance/perf/run`. All runtimes run for the whole time,
//! each in a private machine of its own, and take turns; who is first changes from round to round. The pods are those
//! of a kubelet: cgroup parent, DNS, mounts, variables, masked paths, no_new_privs, seccomp RuntimeDefault.

#![allow(clippy::large_futures, reason = "one task with a stack of its own")]

mod content;
mod floors;
mod measure;
mod pull;
mod report;
mod runtime;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use content::Large;
use measure::Network;
use report::{Report, Unit};
use runtime::{Kind, Runtime};

const CONCURRENCY: usize = 16;

const PARTS: [&str; 5] = ["pods", "exec", "crowd", "lists", "pull"];

struct Plan {
    rounds: usize,
    pods: usize,
    execs: usize,
    crowd: usize,
    listed: usize,
    kinds: Vec<Kind>,
    skip: Vec<String>,
}

fn main() -> ExitCode {
    let plan = match Plan::read(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(message) => {
            let _ = writeln!(io::stderr(), "perf: {message}");
            return ExitCode::from(64);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start tokio");
    let text = runtime.block_on(Box::pin(measure_all(&plan)));
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

async fn measure_all(plan: &Plan) -> String {
    let small = tempfile::tempdir().expect("temporary directory");
    let small = content::workload(small.path());
    let large = plan.does("pull").then(content::large);
    let mut runtimes = Vec::new();
    for &kind in &plan.kinds {
        runtimes.push(Box::pin(Runtime::start(kind, &small)).await);
    }
    let mut report = Report::default();
    // What is made once and kept is made here.
    for runtime in &runtimes {
        measure::sequential(runtime, Network::Bridge, 2, "warm", &mut Report::default()).await;
    }
    for round in 0..plan.rounds {
        report.round = round;
        let mut order: Vec<&Runtime> = runtimes.iter().collect();
        let turn = round % order.len();
        order.rotate_left(turn);
        let tag = format!("r{round}");
        for what in PARTS.into_iter().filter(|what| plan.does(what)) {
            for runtime in &order {
                // Many pods take long and tell the same each time.
                if !runtime.kind.is_in(what) || what == "lists" && round > 0 {
                    continue;
                }
                let _ = writeln!(io::stderr(), "round {}, {what}: {}", round + 1, runtime.kind.name());
                match (what, &large) {
                    ("pods", _) => {
                        let both = [Network::Bridge, Network::Host];
                        let networks = if runtime.kind.is_of_networks() { &both[..1] } else { &both };
                        for &network in networks {
                            measure::sequential(runtime, network, plan.pods, &tag, &mut report).await;
                        }
                    }
                    ("exec", _) => measure::exec(runtime, plan.execs, &tag, &mut report).await,
                    ("crowd", _) => measure::crowd(runtime, plan.crowd, CONCURRENCY, &tag, &mut report).await,
                    ("lists", _) => {
                        measure::lists(runtime, plan.listed, CONCURRENCY, &tag, &mut report).await
                    }
                    (_, Some(large)) => {
                        for (index, variant) in large.variants.iter().enumerate() {
                            let took = pull::pull(runtime, large, variant, round, &mut report).await;
                            if let (0, Kind::Pinnace) = (index, runtime.kind) {
                                let floor = floors::measure(large, runtime, &mut report);
                                let ratio = took.as_secs_f64() * 100.0 / floor.as_secs_f64();
                                let what = "pull in percent of its floor";
                                report.add(runtime.kind, what, Unit::Percent, ratio);
                            }
                        }
                    }
                    _ => {}
                }
                runtime.settle();
            }
        }
    }
    describe(plan, &runtimes, large.as_ref()) + &report.table(&plan.kinds) + &report.floors()
}

fn describe(plan: &Plan, runtimes: &[Runtime], large: Option<&Large>) -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = rustix::system::uname();
    let mut text = format!("{cpus} CPUs, Linux {}", kernel.release().to_string_lossy());
    for runtime in runtimes {
        let _ = write!(text, "; {}", runtime.version);
    }
    let Plan { rounds, pods, execs, crowd, listed, .. } = plan;
    let _ = write!(text, ". {rounds} rounds: {pods} pods in turn, {execs} ExecSync, {crowd} pods at once");
    if plan.does("lists") {
        let _ = write!(text, "; once: {listed} pods listed");
    }
    if let Some(large) = large {
        let _ = write!(text, "; {} files", large.files);
        for variant in &large.variants {
            let (tars, packed) = (variant.tar_bytes / 1_000_000, variant.packed_bytes / 1_000_000);
            let _ = write!(text, "; {}: {tars} MB of tars in {packed} MB", variant.label);
        }
    }
    text + ".\nMedian [min-max] of all samples; ratio: median [min-max] of the rounds.\n\n"
}

impl Plan {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Plan, String> {
        let mut plan = Plan {
            rounds: 3,
            pods: 12,
            execs: 20,
            crowd: 48,
            listed: 300,
            kinds: vec![Kind::Pinnace, Kind::Containerd],
            skip: Vec::new(),
        };
        while let Some(flag) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
            let number = || {
                value.parse::<usize>().ok().filter(|&n| n > 0).ok_or(format!("{flag} {value}: not a count"))
            };
            match flag.as_str() {
                "--rounds" => plan.rounds = number()?,
                "--pods" => plan.pods = number()?,
                "--execs" => plan.execs = number()?,
                "--crowd" => plan.crowd = number()?,
                "--listed" => plan.listed = number()?,
                "--kinds" => plan.kinds = kinds(&value)?,
                "--skip" if PARTS.contains(&&*value) => plan.skip.push(value),
                _ => return Err(format!("unknown: {flag} {value}")),
            }
        }
        Ok(plan)
    }

    fn does(&self, what: &str) -> bool {
        !self.skip.iter().any(|skipped| skipped == what)
    }
}

/// Kinds by their words, each once, in the order in which they are given.
fn kinds(words: &str) -> Result<Vec<Kind>, String> {
    let mut kinds = Vec::new();
    for word in words.split(',') {
        let kind = Kind::ALL.into_iter().find(|kind| kind.word() == word);
        match kind.filter(|kind| !kinds.contains(kind)) {
            Some(kind) => kinds.push(kind),
            None => return Err(format!("--kinds {words}: {word:?} is unknown or there twice")),
        }
    }
    Ok(kinds)
}
