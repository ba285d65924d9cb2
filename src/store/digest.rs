//! Digests: `algorithm:hex` names of bytes, and the three meanings a digest has in the store.
//!
//! A [`Digest`] exists only in valid form: the algorithm is registered by the OCI image
//! specification, the encoded part is lower-case hex of exactly the right length. It is therefore
//! safe to use as a path component or in a URL.
//!
//! | type | names |
//! |---|---|
//! | [`Digest`] | any blob: manifest, index, config, compressed layer |
//! | [`DiffId`] | the *uncompressed* tar of one layer |
//! | [`ChainId`] | a stack of layers, from the base up to one layer |
//! | [`ImageId`] | an image: the digest of its config |

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use sha2::Digest as _;

const LONGEST: usize = 64;

/// A digest algorithm registered by the OCI image specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256, the one in use everywhere.
    Sha256,
    /// SHA-512, allowed by the specification.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    const fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a string is not a digest.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// There is no `algorithm:` part.
    #[error("{0:?} has no algorithm")]
    NoAlgorithm(String),
    /// The algorithm is neither sha256 nor sha512.
    #[error("{0:?}: unsupported digest algorithm")]
    UnknownAlgorithm(String),
    /// The encoded part is not lower-case hex of the algorithm's length.
    #[error("{text:?} is not {expected} lower-case hex digits after the algorithm")]
    BadEncoding {
        /// The whole text.
        text: String,
        /// How many digits the algorithm needs.
        expected: usize,
    },
}

/// The digest of some bytes, always valid.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    /// Zero beyond the algorithm's length, so that the derived comparisons are right.
    bytes: [u8; LONGEST],
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest of `bytes` with the same algorithm as `self`, for verification.
    pub fn same_algorithm_of(&self, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm before the colon.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw digest value.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.len()]
    }

    /// The hex digits after the colon: usable as a file name.
    pub fn hex(&self) -> String {
        hex::encode(self.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.algorithm)?;
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (name, encoded) = text.split_once(':').ok_or_else(|| ParseError::NoAlgorithm(abridged(text)))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(ParseError::UnknownAlgorithm(abridged(text))),
        };
        let expected = algorithm.len() * 2;
        let bad = || ParseError::BadEncoding { text: abridged(text), expected };
        let lower_hex = encoded.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if encoded.len() != expected || !lower_hex {
            return Err(bad());
        }
        let mut bytes = [0; LONGEST];
        hex::decode_to_slice(encoded, &mut bytes[..algorithm.len()]).map_err(|_| bad())?;
        Ok(Self { algorithm, bytes })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

/// Keeps hostile text out of logs by the kilobyte.
fn abridged(text: &str) -> String {
    text.chars().take(160).collect()
}

macro_rules! meaning {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);

        impl $name {
            /// Gives a digest this meaning.
            pub const fn new(digest: Digest) -> Self {
                Self(digest)
            }

            /// The digest itself.
            pub const fn digest(&self) -> &Digest {
                &self.0
            }

            /// The hex digits after the colon: usable as a file name.
            pub fn hex(&self) -> String {
                self.0.hex()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseError;

            fn from_str(text: &str) -> Result<Self, ParseError> {
                text.parse().map(Self)
            }
        }

        impl From<Digest> for $name {
            fn from(digest: Digest) -> Self {
                Self(digest)
            }
        }
    };
}

meaning! {
    /// The digest of one layer's uncompressed tar, padding included.
    DiffId
}
meaning! {
    /// The digest of a stack of layers (OCI image-spec, config.md, "Layer ChainID").
    ChainId
}
meaning! {
    /// The identity of an image: the digest of its config.
    ImageId
}

impl ChainId {
    /// The chain of a single base layer.
    pub const fn base(diff_id: &DiffId) -> Self {
        Self(diff_id.0)
    }

    /// The chain with one more layer on top.
    pub fn extended(&self, diff_id: &DiffId) -> Self {
        Self(Digest::sha256(format!("{self} {diff_id}").as_bytes()))
    }

    /// The chain of a whole stack, base first; `None` if it is empty.
    pub fn of(diff_ids: &[DiffId]) -> Option<Self> {
        let (first, rest) = diff_ids.split_first()?;
        Some(rest.iter().fold(Self::base(first), |chain, next| chain.extended(next)))
    }
}

/// Computes a digest over bytes as they pass by.
#[derive(Clone)]
pub struct Hasher {
    state: State,
}

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// Starts with nothing hashed.
    pub fn new(algorithm: Algorithm) -> Self {
        let state = match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::new(sha2::Sha512::new())),
        };
        Self { state }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything added.
    pub fn finish(self) -> Digest {
        let mut bytes = [0; LONGEST];
        let algorithm = match self.state {
            State::Sha256(state) => {
                bytes[..32].copy_from_slice(&state.finalize());
                Algorithm::Sha256
            }
            State::Sha512(state) => {
                bytes.copy_from_slice(&state.finalize());
                Algorithm::Sha512
            }
        };
        Digest { algorithm, bytes }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").finish_non_exhaustive()
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn known_values_round_trip() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::sha256(b""));
        let mut long = Hasher::new(Algorithm::Sha512);
        long.update(b"abc");
        let long = long.finish();
        assert!(long.to_string().starts_with("sha512:ddaf35a193617abacc417349ae204131"));
        assert_eq!(long.to_string().parse::<Digest>().unwrap(), long);
        assert_eq!(
            serde_json::to_string(&ImageId::new(Digest::sha256(b""))).unwrap(),
            format!("\"{EMPTY}\"")
        );
    }

    #[test]
    fn invalid_text_is_refused() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for text in [
            "",
            ":",
            "sha256:",
            "sha256",
            &EMPTY[7..],
            &EMPTY[..EMPTY.len() - 1],
            &format!("{EMPTY}0"),
            &format!(" {EMPTY}"),
            &format!("{EMPTY}\n"),
            &upper,
            &EMPTY.replace("sha256", "md5"),
            &EMPTY.replace("sha256", "sha512"),
            "sha256:../../../../../../../../../../../../../../../../../etc/passwd00000",
            &EMPTY.replace("e3b0", "é0"),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let a = DiffId::new(Digest::sha256(b"a"));
        let b = DiffId::new(Digest::sha256(b"b"));
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]).unwrap().to_string(), a.to_string());
        let expected = Digest::sha256(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of(&[a, b]).unwrap().digest(), &expected);
    }
}
