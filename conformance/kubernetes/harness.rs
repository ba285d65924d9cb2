//! Runs assertions that share one ground, and tells the results as the usual harness does.
//!
//! The usual harness has no place for a ground that is made once and taken down at the end, whatever happened.

use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::ground::Ground;

/// How long one assertion may take.
const LIMIT: Duration = Duration::from_secs(240);

/// Assertions that run at the same time.
const AT_ONCE: usize = 12;

/// What an assertion does.
type Body = fn(Arc<Ground>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// One assertion with its name.
pub type Assertion = (&'static str, Body);

/// Names assertions by their functions.
macro_rules! assertions {
    ($($path:path),* $(,)?) => {
        &[$((
            stringify!($path),
            |ground| Box::pin(async move { $path(&ground).await }),
        )),*]
    };
}
pub(crate) use assertions;

/// What the command line asks for.
pub struct Asked {
    filters: Vec<String>,
    list: bool,
}

impl Asked {
    /// From the arguments of this process: words are parts of names, flags of the usual harness are of no effect.
    pub fn read() -> Asked {
        let words: Vec<_> = std::env::args().skip(1).collect();
        let filters = words.iter().filter(|word| !word.starts_with('-')).cloned().collect();
        Asked { filters, list: words.iter().any(|word| word == "--list") }
    }

    /// Prints all names if that is what was asked for.
    pub fn listed(&self, all: &[&[Assertion]]) -> bool {
        if self.list {
            all.iter().copied().flatten().for_each(|(name, _)| say(&format!("{name}: test")));
        }
        self.list
    }

    fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }
}

/// What came of all.
#[derive(Default)]
pub struct Results {
    passed: usize,
    failed: Vec<&'static str>,
    filtered: usize,
}

impl Results {
    /// Runs assertions side by side.
    pub async fn together(&mut self, ground: &Arc<Ground>, asked: &Asked, assertions: &[Assertion]) {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let mut running = JoinSet::new();
        for &(name, assertion) in assertions {
            if !asked.wants(name) {
                self.filtered += 1;
                continue;
            }
            let (ground, turns) = (Arc::clone(ground), Arc::clone(&turns));
            running.spawn(async move {
                let _turn = turns.acquire().await.expect("nobody closes it");
                (name, one(ground, assertion).await)
            });
        }
        while let Some(ended) = running.join_next().await {
            let (name, result) = ended.expect("it catches panics itself");
            self.note(name, result);
        }
    }

    /// Runs assertions one after the other.
    pub async fn in_turn(&mut self, ground: &Arc<Ground>, asked: &Asked, assertions: &[Assertion]) {
        for assertion in assertions {
            self.together(ground, asked, std::slice::from_ref(assertion)).await;
        }
    }

    /// The last line, as the usual harness has it; whether all is well.
    pub fn conclude(&self, begun: Instant) -> bool {
        for name in &self.failed {
            say(&format!("    {name}"));
        }
        let result = if self.failed.is_empty() { "ok" } else { "FAILED" };
        say(&format!(
            "\ntest result: {result}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
            self.passed,
            self.failed.len(),
            self.filtered,
            begun.elapsed().as_secs_f64()
        ));
        self.failed.is_empty()
    }

    fn note(&mut self, name: &'static str, result: Result<Duration, String>) {
        match result {
            Ok(time) => {
                self.passed += 1;
                say(&format!("test {name} ... ok ({:.1}s)", time.as_secs_f64()));
            }
            Err(message) => {
                self.failed.push(name);
                say(&format!("test {name} ... FAILED\n{message}\n"));
            }
        }
    }
}

async fn one(ground: Arc<Ground>, assertion: Body) -> Result<Duration, String> {
    let begun = Instant::now();
    // A task of its own: a panic ends it alone.
    let mut task = tokio::spawn(assertion(ground));
    match tokio::time::timeout(LIMIT, &mut task).await {
        Ok(Ok(())) => Ok(begun.elapsed()),
        Ok(Err(error)) => Err(match error.try_into_panic() {
            Ok(panic) => message(&*panic),
            Err(error) => error.to_string(),
        }),
        Err(_) => {
            task.abort();
            Err(format!("not done after {LIMIT:?}"))
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string())).unwrap_or_default()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
