//! [`KernelVersion`]: profiles have entries for kernels from some version on.

use std::fmt;
use std::str::FromStr;

use crate::error::SeccompError;

/// Major and minor number of a Linux kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl KernelVersion {
    /// Of the running kernel.
    pub fn running() -> Result<Self, SeccompError> {
        std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().parse()
    }
}

/// Takes `4.8` and whole release names such as `6.12.3-1-amd64`.
impl FromStr for KernelVersion {
    type Err = SeccompError;

    fn from_str(text: &str) -> Result<Self, SeccompError> {
        let mut numbers = text.trim().split(|letter: char| !letter.is_ascii_digit());
        let mut next = || numbers.next().and_then(|digits| digits.parse().ok());
        match (next(), next()) {
            (Some(major), Some(minor)) => Ok(Self { major, minor }),
            _ => Err(SeccompError::KernelVersion { text: text.chars().take(64).collect() }),
        }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_by_number() {
        let version = |text: &str| text.parse::<KernelVersion>().unwrap();
        assert!(version("4.10.0") > version("4.8"));
        assert_eq!(version("6.12.3-1-amd64\n"), KernelVersion { major: 6, minor: 12 });
        assert!("linux".parse::<KernelVersion>().is_err());
        assert!("6".parse::<KernelVersion>().is_err());
        assert!(KernelVersion::running().unwrap() > version("3.17"));
    }
}
