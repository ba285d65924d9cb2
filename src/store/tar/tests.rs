//! What the parser makes of single headers, and that nothing makes it fall over. Whole layers are
//! tested by the suite.

use proptest::prelude::*;

use super::*;
use crate::testsuite::archive::{Archive, Raw, seal};

/// Writes down what it is told.
#[derive(Debug, Default, PartialEq)]
struct Recorder {
    entries: Vec<(String, String)>,
    data: Vec<u8>,
    ends: usize,
}

impl Visitor for Recorder {
    type Error = Error;

    fn entry(&mut self, entry: Entry<'_>) -> Result<(), Error> {
        let name = entry.name.escape_ascii().to_string();
        let rest = format!(
            "{:?} {:o} {}:{} {} {:?} {:?} {}",
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            entry.mtime,
            entry.sparse,
            entry.link.escape_ascii()
        );
        self.entries.push((name, rest));
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Error> {
        assert!(!bytes.is_empty());
        self.data.extend_from_slice(bytes);
        Ok(())
    }

    fn entry_end(&mut self) -> Result<(), Error> {
        self.ends += 1;
        assert_eq!(self.ends, self.entries.len());
        Ok(())
    }
}

fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Recorder, Error> {
    let mut parser = Parser::new(crate::Limits::default().header());
    let mut recorder = Recorder::default();
    for piece in pieces {
        parser.feed(piece, &mut recorder)?;
    }
    parser.finish()?;
    Ok(recorder)
}

fn names(bytes: &[u8]) -> Vec<String> {
    parse([bytes]).unwrap().entries.into_iter().map(|(name, _)| name).collect()
}

fn kinds(bytes: &[u8]) -> Vec<String> {
    let entries = parse([bytes]).unwrap().entries;
    entries.into_iter().map(|(_, rest)| rest.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
fn the_prefix_depends_on_the_dialect() {
    let raw = |magic: &[u8; 8]| Raw { magic: *magic, prefix: b"dir/sub".to_vec(), ..Raw::new(b'0', b"name") };
    let ustar = Archive::default().raw(&raw(b"ustar\x0000"), b"").bytes;
    assert_eq!(names(&ustar), ["dir/sub/name"]);
    let v7 = Archive::default().raw(&raw(b"\0\0\0\0\0\0\0\0"), b"").bytes;
    assert_eq!(names(&v7), ["name"]);
    // GNU headers have times where ustar has the prefix; Go before 1.8 mixed the two.
    assert_eq!(names(&Archive::default().raw(&raw(b"ustar  \0"), b"").bytes), ["dir/sub/name"]);
    let mut gnu = Raw { magic: *b"ustar  \0", ..Raw::new(b'0', b"name") }.block();
    gnu[345..369].copy_from_slice(b"00000000001\x0000000000002\0");
    seal(&mut gnu);
    assert_eq!(names(&gnu), ["name"]);
    // star has a shorter prefix and its mark at the end.
    let mut star = Raw { prefix: vec![b'p'; 155], ..Raw::new(b'0', b"name") }.block();
    star[508..].copy_from_slice(b"tar\0");
    seal(&mut star);
    assert_eq!(names(&star), [format!("{}/name", "p".repeat(131))]);
}

#[test]
fn types_are_what_writers_mean_by_them() {
    let raw = |typeflag, name: &[u8], data: &[u8]| {
        Archive::default().raw(&Raw { size: data.len() as u64, ..Raw::new(typeflag, name) }, data).bytes
    };
    assert_eq!(kinds(&raw(0, b"f", b"1")), ["Regular"]);
    assert_eq!(kinds(&raw(b'7', b"f", b"1")), ["Regular"]);
    assert_eq!(kinds(&raw(0, b"d/", b"")), ["Directory"]);
    assert_eq!(kinds(&raw(b'0', b"d/", b"")), ["Directory"]);
    // Data of what has none are not read as data, those of an old directory are passed over.
    let old = parse([&raw(0, b"d/", b"junk")[..]]).unwrap();
    assert_eq!((old.entries.len(), old.data.len()), (1, 0));
    for typeflag in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let header = Raw { size: 1 << 30, link: b"x".to_vec(), ..Raw::new(typeflag, b"n") };
        let bytes = Archive::default().raw(&header, b"").file("next", b"1").end();
        assert_eq!(names(&bytes), ["n", "next"], "{typeflag}");
    }
}

#[test]
fn extension_headers_override_in_order() {
    let long = |typeflag, text: &[u8]| {
        Archive::default().raw(&Raw { size: text.len() as u64, ..Raw::new(typeflag, b"././@LongLink") }, text)
    };
    let chain =
        |parts: Vec<Archive>| parts.into_iter().flat_map(|archive| archive.bytes).collect::<Vec<u8>>();
    let bytes = chain(vec![
        Archive::default().pax(&[(b"path", b"from pax"), (b"uid", b"7"), (b"mtime", b"-1.5")]),
        long(b'L', b"from gnu\0junk"),
        long(b'K', b"target\0"),
        Archive::default().symlink("short", "x"),
        Archive::default().file("plain", b""),
    ]);
    let entries = parse([&bytes[..]]).unwrap().entries;
    assert_eq!(entries[0].0, "from gnu");
    assert!(entries[0].1.contains("7:0") && entries[0].1.ends_with("target"), "{}", entries[0].1);
    assert!(entries[0].1.contains("seconds: -2, nanoseconds: 500000000"), "{}", entries[0].1);
    assert_eq!(entries[1].0, "plain");
    // A global header says nothing about any file.
    let text = b"12 path=xyz\n";
    let global = Archive::default().raw(&Raw { size: 12, ..Raw::new(b'g', b"g") }, text).file("f", b"").end();
    assert_eq!(names(&global), ["f"]);
    // The size of PAX counts, whatever the header says (CVE-2025-62518).
    let inner = Archive::default().file("smuggled", b"").bytes;
    let mut bytes = Archive::default().pax(&[(b"size", inner.len().to_string().as_bytes())]).bytes;
    bytes.extend(Raw::new(b'0', b"outer").block());
    bytes.extend(&inner);
    let read = parse([&bytes[..]]).unwrap();
    assert_eq!((read.entries.len(), read.data), (1, inner));
}

#[test]
fn what_follows_the_end_is_ignored() {
    let mut bytes = Archive::default().file("f", b"1").end();
    bytes.extend(Archive::default().file("after", b"2").bytes);
    bytes.extend(b"and no whole block");
    assert_eq!(names(&bytes), ["f"]);
    assert_eq!(names(&[0; 512]), Vec::<String>::new());
    assert_eq!(names(&[]), Vec::<String>::new());
}

fn sample() -> Vec<u8> {
    Archive::default()
        .dir("d/", 0o755)
        .pax(&[(b"path", &[b'p'; 300]), (b"SCHILY.xattr.user.x", b"v")])
        .file("a", &[1; 1000])
        .pax(&[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"5000")])
        .file("s", &[b"1\n4000\n100\n".as_slice(), &[0; 501], &[3; 100]].concat())
        .pax(&[(b"GNU.sparse.map", b"0,512,1024,3"), (b"GNU.sparse.size", b"1027")])
        .file("t", &[4; 515])
        .symlink("l", "t")
        .end()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// However the stream is cut, it means the same.
    #[test]
    fn pieces_do_not_matter(cuts in prop::collection::vec(1..700_usize, 1..40)) {
        let bytes = sample();
        let whole = parse([&bytes[..]]).unwrap();
        let mut rest = &bytes[..];
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at(rest.len().min(*cut));
            pieces.push(piece);
            rest = tail;
        }
        prop_assert_eq!(parse(pieces).unwrap(), whole);
    }

    /// Damage is an answer, never a panic; the checksums are made good, or nothing would get far.
    #[test]
    fn damage_is_no_panic(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let mut bytes = sample();
        for (place, value) in places {
            let index = place.index(bytes.len());
            bytes[index] = value;
            let start = index / 512 * 512;
            let block: &mut [u8; 512] = (&mut bytes[start..start + 512]).try_into().unwrap();
            if block.iter().any(|byte| *byte != 0) && index % 512 < 400 {
                seal(block);
            }
        }
        let _: Result<Recorder, Error> = parse([&bytes[..]]);
    }
}
