//! `pinnace pull`: bars on a terminal, the image's id at the end.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::bail;
use clap::Args;
use pinnace_admin_api::v1::pull_event::Event;
use pinnace_admin_api::v1::{LayerPhase, PullProgress, PullRequest, PulledImage};

use crate::client::{Client, Target, refusal};

const BAR_CELLS: u64 = 24;
/// Layers that are drawn at once; finished ones give way.
const LINES_MAX: usize = 12;
/// Digits of a digest that people compare.
const SHORT_DIGEST: usize = 12;

/// Flags of `pull`.
#[derive(Debug, Args)]
pub struct Pull {
    /// The image, as a pod would name it
    image: String,
    /// Print only the image's id
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    target: Target,
}

impl Pull {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let image = fetch(&mut client, &self.image, self.quiet).await?;
        Ok(writeln!(io::stdout(), "{}", image.id)?)
    }
}

/// Pulls an image and shows how far it is, on standard error.
pub async fn fetch(client: &mut Client, image: &str, quiet: bool) -> anyhow::Result<PulledImage> {
    let request = PullRequest { image: image.to_owned() };
    let mut events = client.admin_images.pull(request).await.map_err(refusal("pull"))?.into_inner();
    let mut bars = Bars::new(!quiet && io::stderr().is_terminal());
    loop {
        let event = match events.message().await {
            Ok(event) => event.and_then(|event| event.event),
            Err(status) => {
                bars.clear()?;
                return Err(refusal("pull")(status));
            }
        };
        match event {
            Some(Event::Progress(progress)) => bars.draw(&progress)?,
            Some(Event::Image(image)) => {
                bars.clear()?;
                if !quiet {
                    let fetched = size(image.fetched_bytes);
                    writeln!(io::stderr(), "{} ({fetched} fetched)\n{}", image.reference, image.repo_digest)?;
                }
                return Ok(image);
            }
            None => {
                bars.clear()?;
                bail!("pull: the daemon ended it without a result");
            }
        }
    }
}

/// What is drawn on the terminal, and drawn over.
pub struct Bars {
    lines: usize,
    shown: bool,
}

impl Bars {
    /// Nothing yet.
    pub fn new(shown: bool) -> Self {
        Self { lines: 0, shown }
    }

    /// Whether anything is drawn at all.
    pub fn shown(&self) -> bool {
        self.shown
    }

    /// What is drawn stays, and the next is drawn below.
    pub fn keep(&mut self) {
        self.lines = 0;
    }

    fn draw(&mut self, progress: &PullProgress) -> io::Result<()> {
        self.draw_text(&text(progress))
    }

    /// Draws over what was drawn before.
    pub fn draw_text(&mut self, text: &str) -> io::Result<()> {
        if !self.shown {
            return Ok(());
        }
        self.clear()?;
        self.lines = text.lines().count();
        io::stderr().write_all(text.as_bytes())
    }

    /// Goes back to where the first bar was and erases from there on (ECMA-48 CPL, ED).
    pub fn clear(&mut self) -> io::Result<()> {
        if self.lines > 0 {
            write!(io::stderr(), "\x1b[{}F\x1b[J", self.lines)?;
            self.lines = 0;
        }
        Ok(())
    }
}

/// A line for each layer that is not here yet, and one for all.
pub(crate) fn text(progress: &PullProgress) -> String {
    let mut text = String::new();
    let is_done = |phase| matches!(phase, LayerPhase::Done | LayerPhase::Present);
    let under_way = progress.layers.iter().filter(|layer| !is_done(layer.phase()));
    for layer in under_way.take(LINES_MAX) {
        let digest = layer.digest.split(':').next_back().unwrap_or_default();
        let what = match layer.phase() {
            LayerPhase::Waiting => "waiting",
            LayerPhase::Finishing => "unpacking",
            _ => "",
        };
        let _ = writeln!(
            text,
            "{} {} {:>9}/{:<9} {what}",
            digest.get(..SHORT_DIGEST).unwrap_or(digest),
            bar(layer.done_bytes, layer.total_bytes),
            size(layer.done_bytes),
            size(layer.total_bytes),
        );
    }
    let done = progress.layers.iter().filter(|layer| is_done(layer.phase())).count();
    let _ = write!(
        text,
        "{done}/{} layers   {} {:>9}/{:<9} {}/s",
        progress.layers.len(),
        bar(progress.done_bytes, progress.total_bytes),
        size(progress.done_bytes),
        size(progress.total_bytes),
        size(progress.bytes_per_second),
    );
    if let Some(remaining) = progress.remaining_ms.filter(|remaining| *remaining > 0) {
        let seconds = remaining.div_ceil(1000);
        let _ = write!(text, "  {}:{:02} left", seconds / 60, seconds % 60);
    }
    text.push('\n');
    text
}

/// A bar of cells.
pub fn bar(done: u64, total: u64) -> String {
    let full = done.min(total).saturating_mul(BAR_CELLS).checked_div(total).unwrap_or(0);
    let cells = (0..BAR_CELLS).map(|cell| if cell < full { '#' } else { '.' });
    format!("[{}]", cells.collect::<String>())
}

/// Three digits and a unit.
pub(crate) fn size(bytes: u64) -> String {
    let mut unit = 1;
    for name in ["B", "kB", "MB", "GB", "TB"] {
        if bytes / unit < 1000 {
            let (whole, tenth) = (bytes / unit, bytes % unit * 10 / unit);
            return if unit == 1 || whole >= 100 {
                format!("{whole} {name}")
            } else {
                format!("{whole}.{tenth} {name}")
            };
        }
        unit *= 1000;
    }
    format!("{} PB", bytes / unit)
}

#[cfg(test)]
mod tests {
    use pinnace_admin_api::v1::LayerProgress;

    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, expected) in
            [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345_678, "12.3 MB"), (123_456_789, "123 MB")]
        {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn layers_that_are_here_give_way() {
        let layer = |phase: LayerPhase, done_bytes| LayerProgress {
            digest: format!("sha256:{}", "a".repeat(64)),
            done_bytes,
            total_bytes: 100,
            phase: phase.into(),
        };
        let progress = PullProgress {
            layers: vec![layer(LayerPhase::Present, 100), layer(LayerPhase::Fetching, 50)],
            done_bytes: 150,
            total_bytes: 200,
            bytes_per_second: 10,
            remaining_ms: Some(5000),
        };
        let text = text(&progress);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("aaaaaaaaaaaa [############............]"), "{text}");
        assert!(text.contains("1/2 layers") && text.contains("0:05 left"), "{text}");
    }
}
