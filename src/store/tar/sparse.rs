//! Sparse maps: old GNU headers, and the map that precedes the data in GNU PAX format 1.0.

use super::Error;
use super::header::{BLOCK, number};
use super::pax::decimal;

/// A region of a sparse file that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Position in the file in bytes.
    pub(crate) offset: u64,
    /// Length in bytes.
    pub(crate) length: u64,
}

/// The regions in an old GNU header (four at byte 386) and whether more blocks follow.
pub(super) fn old_header(block: &[u8; BLOCK], name: &str) -> Result<(Vec<Segment>, bool), Error> {
    let mut segments = Vec::new();
    old_regions(&block[386..482], &mut segments, name)?;
    Ok((segments, block[482] != 0))
}

/// The regions in a continuation block (21 at byte 0) and whether more blocks follow.
pub(super) fn old_extension(
    block: &[u8; BLOCK],
    segments: &mut Vec<Segment>,
    name: &str,
) -> Result<bool, Error> {
    old_regions(&block[..504], segments, name)?;
    Ok(block[504] != 0)
}

/// The logical size in an old GNU header.
pub(super) fn old_real_size(block: &[u8; BLOCK], offset: u64) -> Result<u64, Error> {
    number(&block[483..495])
        .and_then(|size| u64::try_from(size).ok())
        .ok_or(Error::Number { offset, field: "realsize" })
}

fn old_regions(field: &[u8], segments: &mut Vec<Segment>, name: &str) -> Result<(), Error> {
    for region in field.chunks_exact(24) {
        // The list ends early at an empty region.
        if region[0] == 0 {
            break;
        }
        let value = |field| {
            number(field)
                .and_then(|value| u64::try_from(value).ok())
                .ok_or_else(|| Error::Sparse { name: name.to_owned(), reason: "region is not a number" })
        };
        segments.push(Segment { offset: value(&region[..12])?, length: value(&region[12..])? });
    }
    Ok(())
}

/// A decimal number of 64 bits and its newline.
const LONGEST_LINE: usize = 21;

/// Reads a format 1.0 map: the count, then offsets and lengths, one decimal per line. `None` if
/// the text, which has `newlines` of them, is not complete yet.
pub(super) fn map_in_data(
    text: &[u8],
    newlines: usize,
    limit: usize,
    name: &str,
) -> Result<Option<Vec<Segment>>, Error> {
    let fault = || Error::Sparse { name: name.to_owned(), reason: "map is not a list of numbers" };
    let mut lines = text.split(|byte| *byte == b'\n');
    let mut value = || lines.next().and_then(decimal).ok_or_else(fault);
    if newlines == 0 {
        return if text.len() > LONGEST_LINE { Err(fault()) } else { Ok(None) };
    }
    let count = usize::try_from(value()?).ok().filter(|count| *count <= limit).ok_or(Error::Limit {
        what: "number of regions of a sparse file",
        limit: u64::try_from(limit).unwrap_or(u64::MAX),
    })?;
    let expected = 1 + 2 * count;
    if newlines < expected {
        return if text.len() > expected * LONGEST_LINE { Err(fault()) } else { Ok(None) };
    }
    let mut segments = Vec::with_capacity(count);
    for _ in 0..count {
        segments.push(Segment { offset: value()?, length: value()? });
    }
    Ok(Some(segments))
}

/// Regions in order, apart, inside the file, and with exactly the data that the archive has.
/// Empty regions, which mark the end of the file, are dropped.
pub(super) fn checked(
    segments: Vec<Segment>,
    size: u64,
    packed: u64,
    name: &str,
) -> Result<Vec<Segment>, Error> {
    let fault = |reason| Error::Sparse { name: name.to_owned(), reason };
    let (mut end, mut total) = (0_u64, 0_u64);
    for segment in &segments {
        if segment.offset < end {
            return Err(fault("regions overlap or are out of order"));
        }
        end = segment.offset.checked_add(segment.length).ok_or_else(|| fault("region overflows"))?;
        total = total.checked_add(segment.length).ok_or_else(|| fault("region overflows"))?;
    }
    if end > size {
        return Err(fault("region lies beyond the end of the file"));
    }
    if total != packed {
        return Err(fault("regions and data differ in size"));
    }
    Ok(segments.into_iter().filter(|segment| segment.length > 0).collect())
}
