//! The 512-byte header block in its V7, ustar, star and GNU variants.

use super::{Error, Mtime, until_nul};

pub(super) const BLOCK: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TypeFlag {
    Regular,
    /// Type byte NUL: from before there were types; a directory if the name ends in a slash.
    RegularV7,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
    OldSparse,
    Pax,
    PaxGlobal,
    LongName,
    LongLink,
    Unknown(u8),
}

impl TypeFlag {
    /// Whether data follows the header. The size field of the other types is noise in some old
    /// archives and is not believed (as in archive/tar).
    pub(super) fn has_data(self) -> bool {
        matches!(self, Self::Regular | Self::RegularV7 | Self::OldSparse)
    }
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) typeflag: TypeFlag,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: Mtime,
    pub(super) major: u32,
    pub(super) minor: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK], offset: u64) -> Result<Self, Error> {
        if !checksum_holds(block, offset)? {
            return Err(Error::Checksum { offset });
        }
        let format = match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..512] == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Ustar,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::V7,
        };
        let typeflag = match block[156] {
            0 => TypeFlag::RegularV7,
            // 7 is "contiguous file", which every reader treats as a regular one.
            b'0' | b'7' => TypeFlag::Regular,
            b'1' => TypeFlag::HardLink,
            b'2' => TypeFlag::Symlink,
            b'3' => TypeFlag::Char,
            b'4' => TypeFlag::Block,
            b'5' => TypeFlag::Directory,
            b'6' => TypeFlag::Fifo,
            b'S' if format == Format::Gnu => TypeFlag::OldSparse,
            b'x' => TypeFlag::Pax,
            b'g' => TypeFlag::PaxGlobal,
            b'L' => TypeFlag::LongName,
            b'K' => TypeFlag::LongLink,
            other => TypeFlag::Unknown(other),
        };
        let field = |range: std::ops::Range<usize>, field| {
            number(&block[range]).ok_or(Error::Number { offset, field })
        };
        let id = |value: i64, field| u32::try_from(value).map_err(|_| Error::Number { offset, field });
        let mode = field(100..108, "mode")?;
        let mode = u32::try_from(mode & 0o7777).map_err(|_| Error::Number { offset, field: "mode" })?;
        let size = field(124..136, "size")?;
        let is_device = matches!(typeflag, TypeFlag::Char | TypeFlag::Block) && format != Format::V7;
        let (major, minor) = if is_device {
            (id(field(329..337, "devmajor")?, "devmajor")?, id(field(337..345, "devminor")?, "devminor")?)
        } else {
            (0, 0)
        };
        // Linux device numbers have 12 and 20 bits (include/linux/kdev_t.h).
        if major >= 1 << 12 {
            return Err(Error::Number { offset, field: "devmajor" });
        }
        if minor >= 1 << 20 {
            return Err(Error::Number { offset, field: "devminor" });
        }
        let prefix = match format {
            Format::Ustar => until_nul(&block[345..500]),
            Format::Star => until_nul(&block[345..476]),
            Format::Gnu => legacy_go_prefix(block),
            Format::V7 => &[],
        };
        let mut name = until_nul(&block[..100]).to_vec();
        if !prefix.is_empty() {
            name.insert(0, b'/');
            name.splice(0..0, prefix.iter().copied());
        }
        Ok(Self {
            name,
            link: until_nul(&block[157..257]).to_vec(),
            typeflag,
            mode,
            uid: id(field(108..116, "uid")?, "uid")?,
            gid: id(field(116..124, "gid")?, "gid")?,
            size: u64::try_from(size).map_err(|_| Error::Number { offset, field: "size" })?,
            mtime: Mtime { seconds: field(136..148, "mtime")?, nanoseconds: 0 },
            major,
            minor,
        })
    }
}

/// Writers built with Go before 1.8 put a ustar prefix into headers that say GNU, where the access
/// and change times belong. If those are not numbers, the text is a prefix (as in archive/tar).
fn legacy_go_prefix(block: &[u8; BLOCK]) -> &[u8] {
    if number(&block[345..357]).is_some() && number(&block[357..369]).is_some() {
        return &[];
    }
    let prefix = until_nul(&block[345..500]);
    if prefix.is_ascii() { prefix } else { &[] }
}

/// Sums are unsigned by the standard and signed in some old archives.
fn checksum_holds(block: &[u8; BLOCK], offset: u64) -> Result<bool, Error> {
    let stored = number(&block[148..156]).ok_or(Error::Number { offset, field: "checksum" })?;
    let (mut unsigned, mut signed) = (0_i64, 0_i64);
    for (index, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&index) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte.cast_signed());
    }
    Ok(stored == unsigned || stored == signed)
}

/// An octal number in text, or a big-endian two's complement one if the top bit is set (GNU).
/// An empty field is zero.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Bit 6 of the first byte is the sign, bits 0 to 5 are the top of the number.
        let negative = first & 0x40 != 0;
        let mut value = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        for byte in rest {
            value = value.checked_mul(256)?.checked_add(i128::from(*byte))?;
        }
        return i64::try_from(value).ok();
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    // Some writers leave junk after a NUL.
    let digits = until_nul(&field[start..end]);
    let mut value = 0_i64;
    for digit in digits.strip_suffix(b" ").unwrap_or(digits) {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_in_every_spelling() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"64x4\0\0\0\0", None),
            (b"8\0\0\0\0\0\0\0", None),
            (b"-1\0\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\x00", Some(-256)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
