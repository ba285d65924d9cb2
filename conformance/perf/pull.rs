//! The pull rows: from PullImage to an image that can be run, and from RemoveImage to its space.

use std::time::{Duration, Instant};

use pinnace_conformance::registry::PLAIN;

use crate::content::{Large, Variant};
use crate::report::{Report, Unit};
use crate::runtime::Runtime;

/// How long a runtime may take to give the space of an image back.
const SPACE: Duration = Duration::from_secs(60);

/// What a file system's own records may differ by.
const SLACK: u64 = 4 << 20;

/// Pulls one of the large images and removes it; answers how long the pull took.
pub async fn pull(
    runtime: &Runtime,
    large: &Large,
    variant: &Variant,
    round: usize,
    report: &mut Report,
) -> Duration {
    if round == 0 {
        runtime.registry.push(&large.layout, variant.name, variant.name, "1");
    }
    runtime.settle();
    let reference = format!("{PLAIN}/{}:1", variant.name);
    let (kind, name) = (runtime.kind, runtime.kind.name());
    let row = |what: &str| format!("{}: {what}", variant.label);
    let before = runtime.used_bytes();
    runtime.forget_peak();
    let (began, cpu) = (Instant::now(), runtime.cpu());
    runtime.cri.pull(&reference).await.unwrap_or_else(|status| panic!("{name}: PullImage: {status:?}"));
    let took = began.elapsed();
    report.time(kind, &row("pull and unpack"), took);
    report.time(kind, &row("CPU time of the pull"), runtime.cpu().saturating_sub(cpu));
    report.add(kind, &row("peak memory of the daemon"), Unit::Kilobytes, number(runtime.peak_kb()));
    let began = Instant::now();
    runtime.settle();
    report.time(kind, &row("sync after it"), began.elapsed());
    let held = runtime.used_bytes().saturating_sub(before);
    report.add(
        kind,
        &row("disk in percent of the tars"),
        Unit::Percent,
        number(held) * 100.0 / number(variant.tar_bytes),
    );
    let began = Instant::now();
    let removed = runtime.cri.remove_image(&reference).await;
    removed.unwrap_or_else(|status| panic!("{name}: RemoveImage: {status:?}"));
    report.time(kind, &row("RemoveImage"), began.elapsed());
    while runtime.used_bytes() > before + SLACK && began.elapsed() < SPACE {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    report.time(kind, &row("RemoveImage until its space is free"), began.elapsed());
    // Whoever has more to do does it now, and not during the next measurement.
    tokio::time::sleep(Duration::from_secs(1)).await;
    runtime.settle();
    took
}

#[allow(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}
