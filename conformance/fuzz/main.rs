//! Runs one target, or all of them, for as long as one wants.
//!
//! `pinnace-conformance-fuzz TARGET|all [--runs N] [--seed N]`

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use pinnace_conformance_fuzz::{Broken, TARGETS};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<(), String> {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    let usage = || format!("usage: pinnace-conformance-fuzz {}|all [--runs N] [--seed N]", names.join("|"));
    let (name, options) = arguments.split_first().ok_or_else(usage)?;
    let (mut runs, mut seed) = (100_000, 1);
    for option in options.chunks(2) {
        let [key, value] = option else { return Err(usage()) };
        let value = value.parse().map_err(|_| usage())?;
        match key.as_str() {
            "--runs" => runs = value,
            "--seed" => seed = value,
            _ => return Err(usage()),
        }
    }
    if name != "all" && !names.contains(&name.as_str()) {
        return Err(usage());
    }
    for target in TARGETS.iter().filter(|target| name == "all" || name == target.name) {
        let begun = Instant::now();
        if let Err(Broken { execution, input }) = target.run(seed, runs) {
            return Err(format!(
                "{} breaks with seed {seed} at execution {execution}: {input:?}",
                target.name
            ));
        }
        let seconds = begun.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stdout(), "{}: {runs} executions in {seconds:.1} s", target.name);
    }
    Ok(())
}
