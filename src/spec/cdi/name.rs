//! Names of devices: `vendor/class=name`.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// Annotations with this prefix name devices, separated by commas.
pub const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// Longest name, prefix of Kubernetes labels included.
const BYTES: usize = 512;

/// A device's name, with whom it is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// `vendor/class`.
    pub kind: String,
    /// Its name there.
    pub device: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Name { name: text.chars().take(BYTES).collect(), reason };
        if text.len() > BYTES {
            return Err(wrong(format!("is longer than {BYTES} bytes")));
        }
        let Some((kind, device)) = text.split_once('=') else {
            return Err(wrong("is not of the form vendor/class=name".to_owned()));
        };
        check_kind(kind).map_err(wrong)?;
        check_device(device).map_err(wrong)?;
        Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

/// `vendor/class`.
pub(super) fn check_kind(kind: &str) -> Result<(), String> {
    let Some((vendor, class)) = kind.split_once('/') else {
        return Err(format!("{kind:?} is not of the form vendor/class"));
    };
    for (what, part) in [("vendor", vendor), ("class", class)] {
        let bytes = part.as_bytes();
        let ends = bytes.first().is_some_and(u8::is_ascii_alphabetic)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric);
        if !ends || !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(byte)) {
            return Err(format!(
                "{what} {part:?} does not begin with a letter, end with a letter or digit and have only those, \
                 '_', '-' and '.' between"
            ));
        }
    }
    Ok(())
}

/// The part behind the equals sign.
pub(super) fn check_device(device: &str) -> Result<(), String> {
    let bytes = device.as_bytes();
    let ends = [bytes.first(), bytes.last()].iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric));
    if !ends || !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(byte)) {
        return Err(format!(
            "device {device:?} does not begin and end with a letter or digit and have only those, '_', '-', '.' and \
             ':' between"
        ));
    }
    Ok(())
}

/// The devices that annotations name, in the order of their keys.
pub fn annotated<'a>(
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for (key, value) in annotations {
        if !key.starts_with(ANNOTATION_PREFIX) {
            continue;
        }
        for name in value.split(',') {
            let name = name.parse::<Name>();
            let name =
                name.map_err(|error| Error::Annotation { key: key.clone(), source: Box::new(error) })?;
            names.push(name.to_string());
        }
    }
    Ok(names)
}
