//! Inputs at random, the same for the same seed.

/// Longest input.
const MAX_LENGTH: usize = 8 * 1024;

/// Bytes and numbers that parsers trip over.
const NOTABLE: &[&[u8]] = &[
    &[0],
    &[0xff],
    &[0x7f],
    &[0x80],
    &[0, 0, 0, 0],
    &[0xff, 0xff, 0xff, 0xff],
    &[0x7f, 0xff, 0xff, 0xff],
    &[0, 0, 0, 1],
    &[0, 0xff, 0xff, 0xff],
    b"{",
    b"}",
    b"\"",
    b"=",
    b"-1",
    b"65536",
    b"18446744073709551616",
    b"../",
    b"\0",
];

/// A generator of pseudo-random numbers (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Starts from a seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        usize::try_from((self.next() >> 16) % limit).unwrap_or(0)
    }

    /// True once in `count` times.
    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    /// One of the pool, changed in one to eight places.
    pub fn input(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = if pool.is_empty() { Vec::new() } else { pool[self.below(pool.len())].clone() };
        for _ in 0..=self.below(8) {
            self.change(&mut input, pool);
        }
        input.truncate(MAX_LENGTH);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let place = self.below(input.len() + 1);
        let end = place + self.below(input.len() - place + 1);
        match self.below(8) {
            0 => {
                if let Some(byte) = input.get_mut(place) {
                    *byte ^= 1 << self.below(8);
                }
            }
            1 => {
                if let Some(byte) = input.get_mut(place) {
                    *byte = self.byte();
                }
            }
            2 => {
                let bytes: Vec<u8> = (0..=self.below(8)).map(|_| self.byte()).collect();
                input.splice(place..place, bytes);
            }
            3 => {
                input.drain(place..end);
            }
            4 => {
                let copy = input[place..end].to_vec();
                input.splice(place..place, copy);
            }
            5 => {
                let notable = NOTABLE[self.below(NOTABLE.len())];
                let end = (place + notable.len()).min(input.len());
                input.splice(place..end, notable.iter().copied());
            }
            6 => input.truncate(place),
            _ => {
                if !pool.is_empty() {
                    let other = &pool[self.below(pool.len())];
                    let from = self.below(other.len() + 1);
                    input.splice(place..end, other[from..].iter().copied());
                }
            }
        }
        // Splicing must not double an input without end.
        input.truncate(MAX_LENGTH);
    }
}
