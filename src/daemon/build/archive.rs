//! ADD: archives that are unpacked into a layer.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::BorrowedFd;

use pinnace_archive::decoder;
use pinnace_store::archive::{Entry, EntryKind, Xattrs};
use rustix::fs::OFlags;

use super::copy::Layer;
use super::tree;
use crate::error::Error;

const BUFFER_BYTES: usize = 256 << 10;
const BLOCK: usize = 512;

/// Whether a file is a tar, plain or compressed.
pub(crate) fn is_archive(root: BorrowedFd<'_>, path: &str) -> Result<bool, Error> {
    let file =
        tree::open(root, path, OFlags::RDONLY).map_err(|errno| Error::io("open", path)(errno.into()))?;
    let reader = BufReader::with_capacity(BUFFER_BYTES, File::from(file));
    let mut reader = match decoder(reader) {
        Ok((reader, _)) => reader,
        // It is an archive for all we know, and cannot be unpacked: better said than copied.
        Err(error @ pinnace_archive::Error::Compression(_)) => return Err(error.into()),
        Err(_) => return Ok(false),
    };
    let mut block = [0_u8; BLOCK];
    // What is compressed and no tar inside is a file like any other.
    if reader.read_exact(&mut block).is_err() {
        return Ok(false);
    }
    let header = tar::Header::from_byte_slice(&block);
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, byte)| u32::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum();
    Ok(header.cksum().is_ok_and(|stored| stored == sum) && block.iter().any(|byte| *byte != 0))
}

/// Adds everything in an archive below `at`. Names lead nowhere else; owners and times are the archive's.
pub(crate) fn unpack(file: File, name: &str, at: &str, layer: &mut Layer<'_>) -> Result<(), Error> {
    let fault = |source| Error::io("unpack", name)(source);
    let (reader, _) = decoder(BufReader::with_capacity(BUFFER_BYTES, file))?;
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries().map_err(fault)? {
        let mut entry = entry.map_err(fault)?;
        let below = |bytes: &[u8]| {
            let cleaned = pinnace_build::ignore::clean(&format!("/{}", String::from_utf8_lossy(bytes)));
            [at, &cleaned].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
        };
        let path = below(&entry.path_bytes());
        if path.is_empty() || path == at {
            continue;
        }
        layer.above(&path)?;
        let link = entry.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default();
        let linked = below(&link);
        let header = entry.header();
        let device = (
            header.device_major().ok().flatten().unwrap_or(0),
            header.device_minor().ok().flatten().unwrap_or(0),
        );
        let kind = match header.entry_type() {
            kind if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() => {
                EntryKind::File { size: entry.size() }
            }
            kind if kind.is_dir() => EntryKind::Directory,
            kind if kind.is_symlink() => EntryKind::Symlink(&link),
            kind if kind.is_hard_link() => EntryKind::HardLink(linked.as_bytes()),
            kind if kind.is_character_special() => EntryKind::Char { major: device.0, minor: device.1 },
            kind if kind.is_block_special() => EntryKind::Block { major: device.0, minor: device.1 },
            kind if kind.is_fifo() => EntryKind::Fifo,
            _ => continue,
        };
        let id = |value: std::io::Result<u64>| value.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
        let (mode, uid, gid) = (header.mode().unwrap_or(0o644), id(header.uid()), id(header.gid()));
        let mtime = header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0);
        let xattrs = xattrs(&mut entry)?;
        let made =
            Entry { path: path.as_bytes(), kind, mode: mode & 0o7777, uid, gid, mtime, xattrs: &xattrs };
        let is_file = matches!(kind, EntryKind::File { .. });
        layer.entry(&made, is_file.then_some(&mut entry as &mut dyn Read))?;
    }
    Ok(())
}

fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Xattrs, Error> {
    let mut found = Xattrs::new();
    if let Some(extensions) = entry.pax_extensions().map_err(Error::io("read", "an archive"))? {
        for extension in extensions.flatten() {
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                found.push((name.to_vec(), extension.value_bytes().to_vec()));
            }
        }
    }
    found.sort_unstable();
    Ok(found)
}
