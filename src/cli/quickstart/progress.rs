//! One line per step while it happens, and a table of all steps at the end.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

/// The steps so far.
#[derive(Debug, Default)]
pub struct Progress {
    done: Vec<(&'static str, Duration)>,
}

impl Progress {
    /// Runs a step and says how long it took.
    pub async fn step<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        self.step_with(name, async { work.await.map(|value| (value, String::new())) }).await
    }

    /// The same for a step that has something to say about its result.
    pub async fn step_with<T>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = anyhow::Result<(T, String)>>,
    ) -> anyhow::Result<T> {
        write!(io::stdout(), "{name:<42}")?;
        io::stdout().flush()?;
        let start = Instant::now();
        let result = work.await;
        let took = start.elapsed();
        match result {
            Ok((value, note)) => {
                writeln!(io::stdout(), "{:>9}  {note}", time(took))?;
                self.done.push((name, took));
                Ok(value)
            }
            Err(error) => {
                writeln!(io::stdout(), "{:>9}  failed", time(took))?;
                Err(error.context(name))
            }
        }
    }

    /// What happened.
    pub fn table(&self) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "\n{:<42}{:>9}", "step", "time")?;
        for (name, took) in &self.done {
            writeln!(out, "{name:<42}{:>9}", time(*took))?;
        }
        let total = self.done.iter().map(|(_, took)| *took).sum();
        writeln!(out, "{:<42}{:>9}", "all", time(total))?;
        Ok(())
    }
}

fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 { format!("{:.1} ms", seconds * 1e3) } else { format!("{seconds:.2} s") }
}
