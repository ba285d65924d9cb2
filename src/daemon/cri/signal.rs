//! The CRI's enumeration of signals.
//!
//! Its numbers are the alphabet's, not the kernel's; a few names are aliases of one signal.

use pinnace_cri_api::v1;

use crate::error::Error;

/// Kernel number of each value of the enumeration, in its order from 1 (signal(7), x86 and arm).
const NUMBERS: [i32; 65] = {
    let mut numbers = [0; 65];
    let named = [
        6, 14, 7, 17, 17, 18, 8, 1, 4, 2, 29, 6, 9, 13, 29, 27, 30, 3, 11, 16, 19, 31, 15, 5, 20, 21, 22, 23,
        10, 12, 26, 28, 24, 25,
    ];
    let mut index = 0;
    while index < named.len() {
        numbers[index] = named[index];
        index += 1;
    }
    // SIGRTMIN (34 for C libraries) to SIGRTMAX (64), without gaps.
    let mut signal = 34;
    while index < numbers.len() {
        numbers[index] = signal;
        signal += 1;
        index += 1;
    }
    numbers
};

/// Kernel number of a stop signal; `None` for the default.
pub fn number(value: i32) -> Result<Option<i32>, Error> {
    let known = usize::try_from(value).ok().and_then(|value| match value {
        0 => Some(None),
        value => NUMBERS.get(value - 1).map(|number| Some(*number)),
    });
    known.ok_or_else(|| Error::invalid("config.stop_signal", format!("{value} is no signal")))
}

/// The CRI's value for a kernel number; the default's for one that has no name there.
pub fn value(number: i32) -> i32 {
    let position = NUMBERS.iter().position(|known| *known == number);
    let value = position.and_then(|index| i32::try_from(index + 1).ok());
    value.unwrap_or_else(|| v1::Signal::RuntimeDefault.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        for (named, expected) in [
            (v1::Signal::Sigterm, 15),
            (v1::Signal::Sigkill, 9),
            (v1::Signal::Sigabrt, 6),
            (v1::Signal::Sigxfsz, 25),
            (v1::Signal::Sigrtmin, 34),
            (v1::Signal::Sigrtminplus15, 49),
            (v1::Signal::Sigrtmaxminus14, 50),
            (v1::Signal::Sigrtmax, 64),
        ] {
            assert_eq!(number(named.into()).unwrap(), Some(expected), "{named:?}");
            assert_eq!(value(expected), i32::from(named), "{named:?}");
        }
        assert_eq!(number(0).unwrap(), None);
        assert!(number(66).is_err() && number(-1).is_err());
    }
}
