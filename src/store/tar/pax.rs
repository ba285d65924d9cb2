//! PAX extended headers: `length key=value\n` records (POSIX.1-2017 pax, "pax Extended Header").

use super::sparse::Segment;
use super::{Error, Mtime, Xattr};

/// The records of one extended header that matter for unpacking.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Mtime>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: Option<SparsePax>,
}

/// A sparse file in one of the three GNU PAX formats.
#[derive(Debug)]
pub(super) struct SparsePax {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    /// `None`: the map stands at the start of the data (format 1.0).
    pub(super) segments: Option<Vec<Segment>>,
}

#[derive(Default)]
struct SparseRecords {
    major: Option<Vec<u8>>,
    minor: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    real_size: Option<u64>,
    /// Offsets and lengths in turn, from format 0.0 or 0.1.
    map: Option<Vec<u64>>,
}

impl Pax {
    pub(super) fn parse(mut text: &[u8], offset: u64, sparse_limit: usize) -> Result<Self, Error> {
        let fault = |reason| Error::Pax { offset, reason };
        let mut pax = Self::default();
        let mut sparse = SparseRecords::default();
        while !text.is_empty() {
            let Record { key, value, rest } = record(text).map_err(fault)?;
            text = rest;
            let owned = || value.to_vec();
            let unsigned = || decimal(value).ok_or(fault("value is not a number"));
            let id = || unsigned().and_then(|id| u32::try_from(id).map_err(|_| fault("id is out of range")));
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                if name.is_empty() || name.len() > 255 || name.contains(&0) {
                    return Err(fault("invalid name of an extended attribute"));
                }
                // A repeated key overrides the earlier one.
                pax.xattrs.retain(|xattr| *xattr.name != *name);
                pax.xattrs.push(Xattr { name: name.into(), value: value.into() });
                continue;
            }
            // An empty value takes back what an earlier header said: the ustar field counts.
            let empty = value.is_empty();
            match key {
                b"path" => pax.path = (!empty).then(owned),
                b"linkpath" => pax.linkpath = (!empty).then(owned),
                b"size" => pax.size = if empty { None } else { Some(unsigned()?) },
                b"uid" => pax.uid = if empty { None } else { Some(id()?) },
                b"gid" => pax.gid = if empty { None } else { Some(id()?) },
                b"mtime" => {
                    pax.mtime =
                        if empty { None } else { Some(time(value).ok_or(fault("mtime is not a time"))?) };
                }
                b"GNU.sparse.major" => sparse.major = Some(owned()),
                b"GNU.sparse.minor" => sparse.minor = Some(owned()),
                b"GNU.sparse.name" => sparse.name = (!empty).then(owned),
                b"GNU.sparse.size" => sparse.size = Some(unsigned()?),
                b"GNU.sparse.realsize" => sparse.real_size = Some(unsigned()?),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let map = sparse.map.get_or_insert_default();
                    if (map.len() % 2 == 0) != (key == b"GNU.sparse.offset") {
                        return Err(fault("sparse offsets and lengths do not alternate"));
                    }
                    map.push(unsigned()?);
                }
                b"GNU.sparse.map" => {
                    let mut map = Vec::new();
                    for number in value.split(|byte| *byte == b',').filter(|_| !empty) {
                        map.push(decimal(number).ok_or(fault("sparse map is not a list of numbers"))?);
                    }
                    sparse.map = Some(map);
                }
                _ => {}
            }
            if sparse.map.as_ref().is_some_and(|map| map.len() / 2 > sparse_limit) {
                let limit = u64::try_from(sparse_limit).unwrap_or(u64::MAX);
                return Err(Error::Limit { what: "number of regions of a sparse file", limit });
            }
        }
        pax.sparse = sparse.resolve().map_err(fault)?;
        Ok(pax)
    }
}

impl SparseRecords {
    fn resolve(self) -> Result<Option<SparsePax>, &'static str> {
        let size = self.size.or(self.real_size);
        let segments = match (self.major.as_deref(), self.minor.as_deref()) {
            (Some(b"1"), Some(b"0")) => None,
            (Some(b"0"), Some(b"0" | b"1")) | (None, None) => match self.map {
                Some(map) => Some(map),
                None if self.major.is_some() => return Err("sparse map is missing"),
                None => return Ok(None),
            },
            _ => return Err("unknown sparse format"),
        };
        let segments = match segments {
            Some(map) if map.len() % 2 != 0 => return Err("sparse map has an odd number of values"),
            Some(map) => {
                let pairs = map.chunks_exact(2);
                Some(pairs.map(|pair| Segment { offset: pair[0], length: pair[1] }).collect())
            }
            None => None,
        };
        Ok(Some(SparsePax { name: self.name, size, segments }))
    }
}

struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
    /// What follows the record.
    rest: &'a [u8],
}

/// Splits off one record.
fn record(text: &[u8]) -> Result<Record<'_>, &'static str> {
    let space = text.iter().take(20).position(|byte| *byte == b' ').ok_or("record has no length")?;
    let length = decimal(&text[..space]).ok_or("record has no length")?;
    let length = usize::try_from(length).map_err(|_| "record is longer than the header")?;
    if length <= space + 1 || length > text.len() {
        return Err("record is longer than the header");
    }
    let (record, rest) = text.split_at(length);
    let body = record[space + 1..].strip_suffix(b"\n").ok_or("record does not end in a newline")?;
    let equals = body.iter().position(|byte| *byte == b'=').ok_or("record has no equals sign")?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err("record has no valid key");
    }
    let is_name = matches!(key, b"path" | b"linkpath" | b"GNU.sparse.name");
    if is_name && value.contains(&0) {
        return Err("name contains NUL");
    }
    Ok(Record { key, value, rest })
}

pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for digit in text {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    Some(value)
}

/// Decimal seconds with an optional sign and fraction; digits beyond nanoseconds are cut off.
fn time(text: &[u8]) -> Option<Mtime> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanoseconds = 0_u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            nanoseconds = nanoseconds * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0'));
        }
    }
    Some(match (negative, nanoseconds) {
        (false, _) => Mtime { seconds, nanoseconds },
        (true, 0) => Mtime { seconds: -seconds, nanoseconds },
        // The nanoseconds count forward: -1.25 s is -2 s + 0.75 s.
        (true, _) => Mtime { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Result<Pax, Error> {
        Pax::parse(text, 0, 4)
    }

    #[test]
    fn times() {
        let mtime = |seconds, nanoseconds| Some(Mtime { seconds, nanoseconds });
        assert_eq!(time(b"1350244992.023960108"), mtime(1_350_244_992, 23_960_108));
        assert_eq!(time(b"5"), mtime(5, 0));
        assert_eq!(time(b"5."), mtime(5, 0));
        assert_eq!(time(b"-1.25"), mtime(-2, 750_000_000));
        assert_eq!(time(b"-3"), mtime(-3, 0));
        assert_eq!(time(b"0.0000000009"), mtime(0, 0));
        for bad in [&b""[..], b"-", b".5", b"1.5x", b"1e3", b"99999999999999999999", b"--1"] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn malformed_records_are_errors() {
        for text in [
            &b"x"[..],
            b"0 a=b\n",
            b"6 a=b",
            b"6 a=bc",
            b"7 a=b\n",
            b"6 =bb\n",
            b"6 abc\n",
            b"99999999999999999999 a=b\n",
            b"-6 a=b\n",
            b"9 uid=-1\n",
            b"18 uid=4294967296\n",
            b"10 path=\0\n",
            b"24 GNU.sparse.numbytes=5\n",
            b"20 GNU.sparse.map=1\n",
            b"22 GNU.sparse.major=9\n",
        ] {
            assert!(parse(text).is_err(), "{}", text.escape_ascii());
        }
        assert!(matches!(parse(b"36 GNU.sparse.map=0,1,2,1,4,1,6,1,8,1\n"), Err(Error::Pax { .. })));
        assert!(matches!(parse(b"38 GNU.sparse.map=0,1,2,1,4,1,6,1,8,1\n"), Err(Error::Limit { .. })));
    }

    #[test]
    fn later_records_override_and_empty_ones_take_back() {
        let pax = parse(b"9 path=a\n9 path=b\n6 x=y\n8 uid=7\n7 uid=\n").unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(pax.uid, None);
        let pax = parse(b"26 SCHILY.xattr.user.a=1\n\n26 SCHILY.xattr.user.a=\n=\n").unwrap();
        assert_eq!(pax.xattrs, [Xattr { name: (*b"user.a").into(), value: (*b"\n=").into() }]);
    }
}
