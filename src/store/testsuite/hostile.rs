//! Hostile layers: an error or contained, the outside untouched, nothing left behind.
//!
//! Every case is a way in which a tar has led some unpacker out of its directory, or made it eat
//! the node. The canary is a tree next to the store and it is compared as a whole.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::archive::{Archive, Raw, record, seal};
use super::view::{Tree, look};
use super::{Fixture, both_forms, read};
use crate::{Algorithm, Code, DiffId, Digest, Error, LayerForm, MountOptions, TarError};

both_forms!(
    malformed_streams_are_refused_without_trace,
    names_cannot_lead_out,
    links_on_the_way_stay_inside,
    bombs_hit_limits,
    overlay_attributes_and_labels_are_dropped,
    a_wrong_digest_commits_nothing,
    cut_streams_are_refused_at_every_block,
);

/// Files outside of the store that must not change.
struct Canary {
    path: std::path::PathBuf,
    before: Tree,
}

impl Canary {
    fn new(fixture: &Fixture) -> Self {
        let path = fixture.outside().join("canary");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("file"), "alive").unwrap();
        std::fs::create_dir(path.join("dir")).unwrap();
        symlink("file", path.join("link")).unwrap();
        std::fs::write(path.join("setuid"), "x").unwrap();
        std::fs::set_permissions(path.join("setuid"), PermissionsExt::from_mode(0o4755)).unwrap();
        let before = look(&std::fs::File::open(&path).unwrap());
        Self { path, before }
    }

    fn assert_alive(&self, case: &str) {
        let after = look(&std::fs::File::open(&self.path).unwrap());
        assert_eq!(after, self.before, "{case}");
    }
}

fn assert_clean(fixture: &Fixture, case: &str) {
    for place in ["work", "trash", "layers"] {
        let left: Vec<_> = std::fs::read_dir(fixture.root().join(place)).unwrap().collect();
        assert!(left.is_empty(), "{case}: {place} holds {left:?}");
    }
}

fn tar_error(result: crate::Result<crate::LayerInfo>) -> Option<TarError> {
    match result {
        Err(Error::Tar(error)) => Some(error),
        other => panic!("not refused as a tar: {other:?}"),
    }
}

fn malformed_streams_are_refused_without_trace(form: LayerForm) {
    let fixture = Fixture::new(form);
    let raw = |header: &Raw, data: &[u8]| Archive::default().raw(header, data);
    let entry = |typeflag, name: &[u8]| raw(&Raw::new(typeflag, name), b"");
    let link = |typeflag, name: &[u8], target: &[u8]| {
        raw(&Raw { link: target.to_vec(), ..Raw::new(typeflag, name) }, b"")
    };
    let mut bad_sum = Archive::default().file("a", b"1").bytes;
    bad_sum[0] ^= 1;
    let mut bad_size = Archive::default().file("a", b"1").bytes;
    bad_size[124..136].copy_from_slice(b"12x45678901\0");
    let mut block: [u8; 512] = bad_size[..512].try_into().unwrap();
    seal(&mut block);
    bad_size[..512].copy_from_slice(&block);
    let mut lone_zero = vec![0; 512];
    lone_zero.extend(Archive::default().file("a", b"1").bytes);
    let pax = |text: &[u8]| {
        let header = Raw { size: text.len() as u64, ..Raw::new(b'x', b"x") };
        raw(&header, text).file("a", b"1").bytes
    };
    let sparse =
        |records: &[(&[u8], &[u8])], data: &[u8]| Archive::default().pax(records).file("a", data).bytes;
    let long = |text: &[u8], typeflag| {
        raw(&Raw { size: text.len() as u64, ..Raw::new(typeflag, b"././@LongLink") }, text)
            .file("a", b"1")
            .bytes
    };
    let huge_id = Raw { uid: 1 << 32, ..Raw::new(b'0', b"a") };
    let old_sparse = |size: u64, regions: &[(u64, u64)], real: u64, data: &[u8]| {
        let mut block = Raw { size, magic: *b"ustar  \0", ..Raw::new(b'S', b"a") }.block();
        for (index, (offset, length)) in regions.iter().enumerate() {
            let at = 386 + index * 24;
            block[at..at + 24].copy_from_slice(format!("{offset:011o}\0{length:011o}\0").as_bytes());
        }
        block[483..495].copy_from_slice(format!("{real:011o}\0").as_bytes());
        seal(&mut block);
        let mut bytes = block.to_vec();
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", vec![b'x'; 2048]),
        ("checksum", bad_sum),
        ("size", bad_size),
        ("negative size", raw(&Raw { size: u64::MAX, ..Raw::new(b'0', b"a") }, b"").bytes),
        ("lone zero block", lone_zero),
        ("unknown type", entry(b'Z', b"a").bytes),
        ("multi-volume", entry(b'M', b"a").bytes),
        ("old sparse outside of gnu", entry(b'S', b"a").bytes),
        ("empty name", entry(b'0', b"").bytes),
        ("parent", entry(b'0', b"../a").bytes),
        ("parent inside", entry(b'0', b"a/../../b").bytes),
        ("absolute parent", entry(b'5', b"/../../etc").bytes),
        ("just parent", entry(b'5', b"..").bytes),
        ("root as link", link(b'2', b".", b"/etc").bytes),
        ("root as link, spelled out", link(b'2', b"./", b"/etc").bytes),
        ("root as link, absolute", link(b'2', b"/", b"/etc").bytes),
        ("root as file", entry(b'0', b"./.").bytes),
        (
            "root as hard link",
            Archive::default()
                .file("a", b"1")
                .bytes
                .into_iter()
                .chain(link(b'1', b"./.", b"a").bytes)
                .collect(),
        ),
        ("root as device", entry(b'3', b".").bytes),
        ("whiteout of nothing", entry(b'0', b".wh.").bytes),
        ("whiteout of itself", entry(b'0', b"d/.wh..").bytes),
        ("whiteout of the parent", entry(b'0', b"d/.wh...").bytes),
        ("hard link to nothing", link(b'1', b"a", b"b").bytes),
        ("hard link out", link(b'1', b"a", b"../../canary/file").bytes),
        ("hard link to absolute", link(b'1', b"a", b"/etc/passwd").bytes),
        ("hard link to a directory", Archive::default().dir("d", 0o755).hard_link("a", "d").bytes),
        ("hard link to the root", link(b'1', b"a", b".").bytes),
        ("hard link to what it replaces", Archive::default().file("d/f", b"1").hard_link("d", "d/f").bytes),
        ("hard link without target", link(b'1', b"a", b"").bytes),
        ("link without target", link(b'2', b"a", b"").bytes),
        ("file below a file", Archive::default().file("a", b"1").file("a/b", b"2").bytes),
        (
            "file below a device",
            entry(b'6', b"p").bytes.into_iter().chain(entry(b'0', b"p/x").bytes).collect(),
        ),
        (
            "link loop on the way",
            Archive::default().symlink("a", "b").symlink("b", "a").file("a/x", b"1").bytes,
        ),
        ("huge uid", raw(&huge_id, b"").bytes),
        ("device number", raw(&Raw { device: (4096, 0), ..Raw::new(b'3', b"a") }, b"").bytes),
        ("pax without length", pax(b"path=x\n")),
        ("pax length 0", pax(b"0 path=x\n")),
        ("pax length beyond", pax(b"99 path=x\n")),
        ("pax without newline", pax(b"9 path=x9")),
        ("pax nul in path", pax(&record(b"path", b"a\0b"))),
        ("pax nul in link", pax(&record(b"linkpath", b"a\0b"))),
        ("pax huge uid", pax(&record(b"uid", b"4294967296"))),
        ("pax negative size", pax(&record(b"size", b"-1"))),
        ("pax overflowing size", pax(&record(b"size", b"99999999999999999999999"))),
        ("pax size beyond the stream", pax(&record(b"size", b"18446744073709551615"))),
        ("pax escaping path", pax(&record(b"path", b"../../canary/file"))),
        ("pax dangling", Archive::default().pax(&[(b"path", b"x")]).end()),
        ("pax dangling at the end", Archive::default().pax(&[(b"path", b"x")]).bytes),
        ("long component", long(&[b'n'; 256], b'L')),
        ("long path", long(&b"d/".repeat(2100), b'L')),
        ("deep path", long(&b"d/".repeat(1100), b'L')),
        ("long link target", {
            let text = [b't'; 4097];
            let header = Raw { size: text.len() as u64, ..Raw::new(b'K', b"././@LongLink") };
            raw(&header, &text).symlink("a", "x").bytes
        }),
        ("sparse without size", sparse(&[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], b"0\n")),
        ("sparse future", sparse(&[(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")], b"0\n")),
        (
            "sparse map not numbers",
            sparse(
                &[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")],
                &[b'x'; 512],
            ),
        ),
        (
            "sparse map endless",
            sparse(
                &[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")],
                &[b'1'; 4096],
            ),
        ),
        (
            "sparse map longer than data",
            sparse(
                &[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9")],
                b"3\n0\n1\n",
            ),
        ),
        (
            "sparse overlap",
            sparse(&[(b"GNU.sparse.map", b"0,5,4,5"), (b"GNU.sparse.size", b"100")], &[1; 10]),
        ),
        (
            "sparse beyond the end",
            sparse(&[(b"GNU.sparse.map", b"96,5"), (b"GNU.sparse.size", b"100")], &[1; 5]),
        ),
        (
            "sparse overflow",
            sparse(&[(b"GNU.sparse.map", b"18446744073709551615,5"), (b"GNU.sparse.size", b"100")], &[1; 5]),
        ),
        ("sparse less data", sparse(&[(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"100")], &[1; 4])),
        ("sparse more data", sparse(&[(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"100")], &[1; 6])),
        ("sparse odd map", sparse(&[(b"GNU.sparse.map", b"0,5,6"), (b"GNU.sparse.size", b"100")], &[1; 5])),
        (
            "sparse name out",
            sparse(
                &[(b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"9"), (b"GNU.sparse.name", b"../x")],
                &[1; 5],
            ),
        ),
        ("old sparse overlap", old_sparse(10, &[(0, 5), (4, 5)], 100, &[1; 10])),
        ("old sparse beyond", old_sparse(5, &[(96, 5)], 100, &[1; 5])),
        ("old sparse size", old_sparse(5, &[(0, 4)], 100, &[1; 5])),
    ];
    for (case, mut bytes) in cases {
        // Whatever the end looks like, it is the case that has to be refused.
        if !case.starts_with("pax dangling") {
            bytes.extend([0; 1024]);
        }
        let error = tar_error(fixture.ingest(&bytes)).map(|error| error.to_string()).unwrap();
        assert!(!error.is_empty() && error.len() < 2000, "{case}: {error}");
        assert_clean(&fixture, case);
    }
}

fn names_cannot_lead_out(form: LayerForm) {
    let fixture = Fixture::new(form);
    let canary = Canary::new(&fixture);
    let path = canary.path.to_str().unwrap().to_owned();
    // Contained rather than refused: these have a meaning inside the layer.
    let tar = Archive::default()
        .file("/absolute", b"1")
        .file("//twice//over", b"2")
        .file("./././dots", b"3")
        .file("up/../down", b"4")
        .file(&format!("{path}/file"), b"5")
        .dir(&format!("{path}/setuid"), 0o777)
        .end();
    let root = fixture.mount("names", &[&tar]);
    assert_eq!(read(&root, "absolute"), b"1");
    assert_eq!(read(&root, "twice/over"), b"2");
    assert_eq!(read(&root, "dots"), b"3");
    assert_eq!(read(&root, "down"), b"4");
    assert_eq!(read(&root, &format!(".{path}/file")), b"5");
    assert!(!look(&root).contains_key("up"));
    canary.assert_alive("names");
}

fn links_on_the_way_stay_inside(form: LayerForm) {
    let fixture = Fixture::new(form);
    let canary = Canary::new(&fixture);
    let path = canary.path.to_str().unwrap().to_owned();
    let tar = Archive::default()
        // CVE-2021-32760: a link, then a directory of that name with another mode.
        .symlink("a", &path)
        .dir("a/", 0o777)
        // A file, a directory, a hard link and a whiteout through a link.
        .symlink("b", &path)
        .file("b/file", b"inside")
        .dir("b/dir", 0o777)
        .hard_link("b/hard", "b/file")
        .file("b/.wh.link", b"")
        .file("b/.wh..wh..opq", b"")
        // Up and out by a relative link.
        .symlink("up", "../../../../../../../../..")
        .file("up/climbed", b"no further than the root")
        .symlink("self", "self/../chained")
        .symlink("chained", "b")
        .hard_link("setuid", "b/file")
        .symlink("end", &format!("{path}/setuid"))
        .file("end", b"replaced, not followed")
        .end();
    let root = fixture.mount("links", &[&tar]);
    let tree = look(&root);
    assert_eq!(tree["a"].kind, rustix::fs::FileType::Directory);
    assert_eq!(read(&root, &format!(".{path}/file")), b"inside");
    assert_eq!(tree[&format!("{}/hard", &path[1..])].links, 3);
    assert_eq!(read(&root, "climbed"), b"no further than the root");
    assert_eq!(read(&root, "end"), b"replaced, not followed");
    canary.assert_alive("links");
    // And nothing that a container writes through these links leaves its root.
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::TRUNC;
    let resolve = rustix::fs::ResolveFlags::IN_ROOT;
    let file = rustix::fs::openat2(&root, "b/file", flags, rustix::fs::Mode::empty(), resolve).unwrap();
    rustix::io::write(&file, b"changed").unwrap();
    canary.assert_alive("written");
}

fn bombs_hit_limits(form: LayerForm) {
    let fixture = Fixture::with(form, |options| {
        options.limits.entries = 1000;
        options.limits.layer_bytes = 4 << 20;
        options.limits.metadata_bytes = 1 << 20;
    });
    let many = (0..1001).fold(Archive::default(), |archive, index| archive.file(&index.to_string(), b""));
    let links = (0..1001).fold(Archive::default().file("f", b"1"), |archive, index| {
        archive.hard_link(&index.to_string(), "f")
    });
    // Parents without entries count as well.
    let implied =
        (0..999).fold(Archive::default(), |archive, index| archive.file(&format!("a{index}/b/c/d"), b""));
    let value = vec![b'v'; 60_000];
    let attributes = (0..30).fold(Archive::default(), |archive, index| {
        archive.pax(&[(b"SCHILY.xattr.user.x", &value)]).file(&index.to_string(), b"")
    });
    let fat = vec![b'v'; 70_000];
    let map: Vec<u8> = (0..70_000).flat_map(|i: u32| format!("{},1,", i * 2).into_bytes()).collect();
    let header = Raw { size: 1 << 30, ..Raw::new(b'x', b"x") };
    let name = Raw { size: 2 << 20, ..Raw::new(b'L', b"x") };
    let mut zeros = Archive::default().end();
    zeros.resize(5 << 20, 0);
    let cases = [
        ("entries", many.end()),
        ("hard links", links.end()),
        ("implied parents", implied.end()),
        ("attributes of many", attributes.end()),
        ("attributes of one", Archive::default().pax(&[(b"SCHILY.xattr.user.x", &fat)]).file("a", b"").end()),
        ("pax header", Archive::default().raw(&header, b"").end()),
        ("long name", Archive::default().raw(&name, b"").end()),
        (
            "sparse map",
            Archive::default()
                .pax(&[(b"GNU.sparse.map", &map[..map.len() - 1]), (b"GNU.sparse.size", b"999999")])
                .file("a", &[0; 70_000])
                .end(),
        ),
        (
            "huge sparse file",
            Archive::default()
                .pax(&[(b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"9000000000000000000")])
                .file("a", b"1")
                .end(),
        ),
        (
            "sparse count",
            Archive::default()
                .pax(&[
                    (b"GNU.sparse.major", b"1"),
                    (b"GNU.sparse.minor", b"0"),
                    (b"GNU.sparse.realsize", b"9"),
                ])
                .file("a", &[&b"9999999999\n"[..], &[0; 600]].concat())
                .end(),
        ),
        ("bytes", Archive::default().file("a", &vec![1; 5 << 20]).end()),
        ("zeros after the end", zeros),
    ];
    for (case, bytes) in cases {
        let error = fixture.ingest(&bytes).expect_err(case);
        assert_eq!(error.code(), Code::ResourceExhausted, "{case}: {error:?}");
        assert_clean(&fixture, case);
    }
    // A terabyte of hole with data at both ends is no bomb.
    let map = format!("0,512,{},512", (1_u64 << 40) - 512);
    let size = (1_u64 << 40).to_string();
    let records: [(&[u8], &[u8]); 2] =
        [(b"GNU.sparse.map", map.as_bytes()), (b"GNU.sparse.size", size.as_bytes())];
    let info = fixture.ingest(&Archive::default().pax(&records).file("a", &[7; 1024]).end()).unwrap();
    assert!(info.disk_bytes < 20 << 20, "{info:?}");
}

fn overlay_attributes_and_labels_are_dropped(form: LayerForm) {
    let fixture = Fixture::new(form);
    let records: [(&[u8], &[u8]); 7] = [
        (b"SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
        (b"SCHILY.xattr.user.overlay.opaque", b"y"),
        (b"SCHILY.xattr.trusted.overlay.overlay.opaque", b"y"),
        (b"SCHILY.xattr.security.selinux", b"system_u:object_r:etc_t:s0"),
        (b"SCHILY.xattr.bogus.namespace", b"1"),
        (b"SCHILY.xattr.user.kept", b"1"),
    ];
    let base = Archive::default().file("d/below", b"still here").end();
    let top = Archive::default().pax(&records).dir("d/", 0o755).pax(&records).file("f", b"").end();
    let root = fixture.mount("attributes", &[&base, &top]);
    assert_eq!(read(&root, "d/below"), b"still here");
    for path in ["d", "f"] {
        let names: Vec<_> = look(&root)[path].xattrs.keys().cloned().collect();
        assert_eq!(names, ["user.kept"], "{path}");
    }
    let layer = fixture.store.layers().into_iter().find(|info| info.entries == 2).unwrap();
    let layer = fixture.store.layer_root(&layer.diff_id).unwrap();
    assert_eq!(look(&layer)["d"].xattrs.keys().collect::<Vec<_>>(), ["user.kept"]);
}

fn a_wrong_digest_commits_nothing(form: LayerForm) {
    let fixture = Fixture::new(form);
    let tar = Archive::default().file("a", b"1").end();
    let mut ingest = fixture.store.ingest_layer(&fixture.store.lease(), Algorithm::Sha256).unwrap();
    ingest.push(&tar).unwrap();
    let wrong = DiffId::new(Digest::sha256(b"something else"));
    let error = ingest.finish(&wrong).unwrap_err();
    assert!(matches!(&error, Error::DigestMismatch { actual, .. } if **actual == Digest::sha256(&tar)));
    assert_eq!(error.code(), Code::InvalidArgument);
    assert_clean(&fixture, "wrong digest");
    // Bytes after the end of the archive count: one more changes the layer.
    let mut longer = tar.clone();
    longer.push(0);
    let mut ingest = fixture.store.ingest_layer(&fixture.store.lease(), Algorithm::Sha256).unwrap();
    ingest.push(&longer).unwrap();
    assert!(ingest.finish(&DiffId::new(Digest::sha256(&tar))).is_err());
    fixture.ingest(&longer).unwrap();
    // A stream that was refused stays refused, even if the digest would be right.
    let bad = Archive::default().file("../a", b"1").end();
    let mut ingest = fixture.store.ingest_layer(&fixture.store.lease(), Algorithm::Sha256).unwrap();
    assert!(matches!(ingest.push(&bad), Err(Error::Tar(_))));
    assert!(matches!(ingest.push(&bad), Err(Error::Refused)));
    assert!(matches!(ingest.finish_new(), Err(Error::Refused)));
    let mut ingest = fixture.store.ingest_layer(&fixture.store.lease(), Algorithm::Sha256).unwrap();
    std::io::copy(&mut &bad[..], &mut ingest).unwrap_err();
    let bad = DiffId::new(Digest::sha256(&bad));
    assert!(matches!(ingest.finish(&bad), Err(Error::Tar(_))));
    // An ingest that is dropped leaves nothing either.
    let mut ingest = fixture.store.ingest_layer(&fixture.store.lease(), Algorithm::Sha256).unwrap();
    ingest.push(&tar[..700]).unwrap();
    drop(ingest);
    assert_eq!(std::fs::read_dir(fixture.root().join("work")).unwrap().count(), 0);
    // The other algorithm works as well.
    let mut hasher = crate::Hasher::new(Algorithm::Sha512);
    hasher.update(&tar);
    let long = DiffId::new(hasher.finish());
    let mut ingest = fixture.store.ingest_layer(&fixture.store.lease(), Algorithm::Sha512).unwrap();
    ingest.push(&tar).unwrap();
    ingest.finish(&long).unwrap();
    fixture.store.prepare("long", &[long]).unwrap();
    assert_eq!(read(&fixture.store.mount("long", &MountOptions::default()).unwrap(), "a"), b"1");
}

fn cut_streams_are_refused_at_every_block(form: LayerForm) {
    let fixture = Fixture::new(form);
    let whole = Archive::default()
        .pax(&[(b"path", b"renamed"), (b"SCHILY.xattr.user.a", &[1; 700])])
        .file("a", &[2; 1300])
        .dir("d", 0o755)
        .bytes;
    // Ends between entries are ends of the archive, with or without the marker.
    let boundaries = [0, whole.len() - 512, whole.len()];
    for cut in (0..=whole.len()).step_by(128) {
        let accepted = fixture.ingest(&whole[..cut]).is_ok();
        // Missing padding after the last data is what every reader forgives.
        let in_padding = (whole.len() - 512 - 1536 + 1300..whole.len() - 512).contains(&cut);
        assert_eq!(accepted, boundaries.contains(&cut) || in_padding, "cut at {cut} of {}", whole.len());
    }
}
