//! Parsers under bytes that nobody would send.
//!
//! A [`Target`] is a parser with examples of good input and a check that may panic. A run takes examples, changes them
//! at random and gives them to the check; it is the same for the same seed on every machine, so that a failure can be
//! had again by its seed and number. `cargo test` runs every target for a moment,
//! `cargo run -p pinnace-conformance-fuzz -- spdy-frames --runs 1000000` one of them for long.

mod dockerfile;
pub mod input;
mod streaming;

use std::panic::{AssertUnwindSafe, catch_unwind};

use input::Random;

/// A parser that is to be tried.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Good inputs, and notable bad ones, which runs start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Gives an input to the parser. Panics if the parser does, or if what it says cannot be.
    pub check: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    streaming::SPDY_FRAMES,
    streaming::HEADER_BLOCKS,
    streaming::CHANNEL_MESSAGES,
    streaming::RESIZES,
    dockerfile::DOCKERFILES,
    dockerfile::IGNORE_FILES,
];

/// An input that a parser does not stand.
#[derive(Debug)]
pub struct Broken {
    /// Which execution of the run it was.
    pub execution: u64,
    /// The input.
    pub input: Vec<u8>,
}

impl Target {
    /// Tries the parser `runs` times.
    pub fn run(&self, seed: u64, runs: u64) -> Result<(), Broken> {
        let mut random = Random::new(seed);
        let mut pool = (self.seeds)();
        for execution in 0..runs {
            let input = random.input(&pool);
            let check = self.check;
            if catch_unwind(AssertUnwindSafe(|| check(&input))).is_err() {
                return Err(Broken { execution, input });
            }
            // Some changed inputs are changed further.
            if random.one_in(64) {
                let place = random.below(pool.len().max(1));
                if pool.len() < 256 {
                    pool.push(input);
                } else if let Some(old) = pool.get_mut(place) {
                    *old = input;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_stands_a_short_run() {
        for target in TARGETS {
            if let Err(Broken { execution, input }) = target.run(1, 20_000) {
                panic!("{} breaks at execution {execution}: {input:?}", target.name);
            }
        }
    }

    #[test]
    fn a_parser_that_breaks_is_noticed_and_again_by_its_seed() {
        const FRAGILE: Target = Target {
            name: "fragile",
            seeds: || vec![b"abcd".to_vec()],
            check: |input| assert!(!input.contains(&0xff), "a byte that it does not stand"),
        };
        let first = FRAGILE.run(7, 100_000).unwrap_err();
        let second = FRAGILE.run(7, 100_000).unwrap_err();
        assert_eq!((first.execution, &first.input), (second.execution, &second.input));
        assert!(first.input.contains(&0xff));
    }
}
