//! Comparison with GNU tar: what it extracts is what a container sees.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::{FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::view::{assert_same, look};
use super::{Fixture, both_forms};
use crate::{LayerCheck, LayerForm, MountOptions};

both_forms!(
    a_rich_tree_in_every_format,
    sparse_files_in_every_format,
    a_directory_with_many_entries,
    random_trees,
);

const FORMATS: [&[&str]; 3] = [
    &["--format=gnu"],
    &["--format=posix", "--xattrs", "--xattrs-include=*"],
    &["--format=posix", "--pax-option=delete=atime,delete=ctime"],
];

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn archive(tree: &Path, to: &Path, arguments: &[&str]) -> Vec<u8> {
    run(Command::new("tar")
        .arg("-C")
        .arg(tree)
        .args(arguments)
        .args(["--numeric-owner", "-cf"])
        .arg(to)
        .arg("."));
    std::fs::read(to).unwrap()
}

/// Ingests an archive of `tree` and compares the mount with what GNU tar makes of the archive.
fn compare(fixture: &Fixture, tree: &Path, arguments: &[&str], key: &str) {
    let outside = fixture.outside();
    let tar_path = outside.join(format!("{key}.tar"));
    let extracted = outside.join(format!("{key}.extracted"));
    let bytes = archive(tree, &tar_path, arguments);
    std::fs::create_dir(&extracted).unwrap();
    run(Command::new("tar")
        .arg("-C")
        .arg(&extracted)
        .args(["--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(&tar_path));
    let info = fixture.ingest(&bytes).unwrap_or_else(|error| panic!("{arguments:?}: {error:?}"));
    fixture.store.prepare(key, &[info.diff_id]).unwrap();
    let root = fixture.store.mount(key, &MountOptions::default()).unwrap();
    let expected = look(&std::fs::File::open(&extracted).unwrap());
    assert_same(&look(&root), &expected, &format!("{arguments:?}"));
    let check = fixture.store.check_layer(&info.diff_id).unwrap();
    assert!(check == LayerCheck::Whole || info.form == LayerForm::Directory, "{check:?}");
    // The layer itself, without overlay, is the same as well.
    let layer = fixture.store.layer_root(&info.diff_id).unwrap();
    assert_same(&look(&layer), &expected, &format!("{arguments:?}, the layer"));
    std::fs::remove_dir_all(&extracted).unwrap();
    std::fs::remove_file(&tar_path).unwrap();
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn node(path: &Path, kind: FileType, mode: u32, device: (u32, u32)) {
    let device = rustix::fs::makedev(device.0, device.1);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::from_raw_mode(mode), device).unwrap();
}

fn a_rich_tree_in_every_format(form: LayerForm) {
    let fixture = Fixture::new(form);
    let tree = fixture.outside().join("tree");
    let at = |path: &str| tree.join(path);
    std::fs::create_dir_all(at("usr/bin")).unwrap();
    for (name, size) in [("empty", 0), ("511", 511), ("512", 512), ("513", 513), ("big", 3_000_001)] {
        let content: Vec<u8> = (0..size).map(|i: u32| u8::try_from(i * 7 % 251).unwrap()).collect();
        std::fs::write(at(name), content).unwrap();
    }
    // Names around the dots in the order of bytes, and in no particular encoding.
    for name in ["!", "-", "..a", ".a", "...", "a", "a.b", "a-b", "ab", "~", "with space", "new\nline"] {
        std::fs::write(at(name), name).unwrap();
    }
    std::fs::write(tree.join(OsStr::from_bytes(b"latin-\xe9")), b"1").unwrap();
    let long = "n".repeat(255);
    std::fs::write(at(&long), "long").unwrap();
    let mut deep: PathBuf = at("deep");
    for level in 0..12 {
        deep.push(format!("{level}-{}", "d".repeat(97)));
    }
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("leaf"), "far down").unwrap();
    symlink("usr/bin", at("bin")).unwrap();
    symlink("/no/such/place", at("dangling")).unwrap();
    symlink("t".repeat(99), at("link99")).unwrap();
    symlink("t".repeat(400), at("link400")).unwrap();
    symlink("t".repeat(1500), at("link1500")).unwrap();
    symlink("t".repeat(4095), at("link4095")).unwrap();
    for name in ["hard1", "usr/bin/hard2", "zzz-hard3"] {
        std::fs::hard_link(at("513"), at(name)).unwrap();
    }
    std::fs::hard_link(at("link400"), at("hard-symlink")).unwrap();
    node(&at("fifo"), FileType::Fifo, 0o640, (0, 0));
    node(&at("char"), FileType::CharacterDevice, 0o620, (4, 64));
    node(&at("block"), FileType::BlockDevice, 0o660, (259, 70_000));
    std::fs::hard_link(at("fifo"), at("fifo2")).unwrap();
    std::fs::write(at("setuid"), "s").unwrap();
    std::os::unix::fs::chown(at("setuid"), Some(12345), Some(70_000)).unwrap();
    std::fs::set_permissions(at("setuid"), PermissionsExt::from_mode(0o6755)).unwrap();
    std::os::unix::fs::lchown(at("dangling"), Some(1_000_000), Some(7)).unwrap();
    std::fs::create_dir(at("tmp")).unwrap();
    std::fs::set_permissions(at("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    std::fs::set_permissions(at("empty"), PermissionsExt::from_mode(0o000)).unwrap();
    set_xattr(&at("512"), "user.short", b"v");
    set_xattr(&at("512"), "user.empty", b"");
    set_xattr(&at("512"), "user.long", &[0xa5; 3000]);
    set_xattr(&at("usr"), "user.on-dir", b"d");
    set_xattr(&at("511"), "trusted.kept", b"t");
    // VFS_CAP_REVISION_2 with CAP_NET_RAW permitted and effective.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set_xattr(&at("setuid"), "security.capability", &capability);
    set_time(&at("a"), 1_234_567_890, 123_456_789);
    set_time(&at("dangling"), 1_000_000_000, 1);
    set_time(&at("ab"), 5_000_000_000, 999_999_999);
    set_time(&at("a.b"), 0, 0);
    for (index, format) in FORMATS.iter().enumerate() {
        compare(&fixture, &tree, format, &format!("rich{index}"));
    }
    // Times before 1970 exist only in these formats.
    set_time(&at("a-b"), -2, 500_000_000);
    compare(&fixture, &tree, FORMATS[1], "before-1970");
    for name in ["link4095", "link1500", "link400", "hard-symlink", "link99", &long, "new\nline", "deep"] {
        let path = at(name);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap()
        } else {
            std::fs::remove_file(path).unwrap()
        }
    }
    for name in ["a-b", "ab", "dangling", "char", "block"] {
        std::fs::remove_file(at(name)).unwrap();
    }
    std::os::unix::fs::chown(at("setuid"), Some(1234), Some(7000)).unwrap();
    compare(&fixture, &tree, &["--format=ustar"], "ustar");
    std::fs::remove_file(at("fifo")).unwrap();
    std::fs::remove_file(at("fifo2")).unwrap();
    compare(&fixture, &tree, &["--format=v7"], "v7");
}

fn sparse_files_in_every_format(form: LayerForm) {
    let fixture = Fixture::new(form);
    let tree = fixture.outside().join("tree");
    std::fs::create_dir(&tree).unwrap();
    let sparse = |name: &str, size: u64, regions: &[(u64, usize)]| {
        let file = std::fs::File::create(tree.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in regions {
            let data: Vec<u8> = (0..*length).map(|i| u8::try_from((i * 31 + 1) % 256).unwrap()).collect();
            file.write_all_at(&data, *offset).unwrap();
        }
    };
    sparse("hole", 1 << 20, &[]);
    sparse("head", 1 << 20, &[(0, 4096)]);
    sparse("tail", (1 << 20) + 77, &[(1 << 20, 77)]);
    sparse("middle", 10 << 20, &[(4096, 8192), (1 << 20, 12_288), (9 << 20, 4096)]);
    sparse("many", 16 << 20, &(0..200).map(|i| (i * 40_960 * 2, 4096)).collect::<Vec<_>>());
    sparse("huge", 5 << 30, &[(0, 4096), (4 << 30, 70_000), ((5 << 30) - 4096, 4096)]);
    std::fs::write(tree.join("plain"), "not sparse").unwrap();
    for (index, format) in [
        &["-S", "--format=gnu"][..],
        &["-S", "--format=posix", "--sparse-version=0.0"],
        &["-S", "--format=posix", "--sparse-version=0.1"],
        &["-S", "--format=posix", "--sparse-version=1.0"],
    ]
    .iter()
    .enumerate()
    {
        compare(&fixture, &tree, format, &format!("sparse{index}"));
    }
}

fn a_directory_with_many_entries(form: LayerForm) {
    let fixture = Fixture::new(form);
    let tree = fixture.outside().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for index in 0..3000_u32 {
        // Lengths that fill directory blocks in every way.
        let name = format!("{index}-{}", "x".repeat(usize::try_from(index * 7 % 240).unwrap()));
        std::fs::write(tree.join(name), index.to_string()).unwrap();
    }
    compare(&fixture, &tree, &["--format=gnu"], "many");
}

#[derive(Clone, Debug)]
enum What {
    File(Vec<u8>),
    Dir,
    Link(String),
    Hard(usize),
    Fifo,
}

#[derive(Clone, Debug)]
struct Made {
    parent: usize,
    name: String,
    what: What,
    mode: u32,
    owner: (u32, u32),
    seconds: i64,
    xattr: Option<(String, Vec<u8>)>,
}

fn made() -> impl Strategy<Value = Made> {
    let what = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..2000).prop_map(What::File),
        3 => Just(What::Dir),
        2 => "[a-z/.]{1,300}".prop_map(What::Link),
        1 => any::<usize>().prop_map(What::Hard),
        1 => Just(What::Fifo),
    ];
    let owner = (0..70_000_u32, 0..70_000_u32);
    let xattr = prop::option::of(("[a-z.]{1,60}", prop::collection::vec(any::<u8>(), 0..300)));
    (any::<usize>(), "[!-.0-~]{1,120}", what, 0..0o10_000_u32, owner, 0..4_000_000_000_i64, xattr).prop_map(
        |(parent, name, what, mode, owner, seconds, xattr)| Made {
            parent,
            name,
            what,
            mode,
            owner,
            seconds,
            xattr,
        },
    )
}

fn plant(tree: &Path, made: &[Made]) {
    let mut dirs = vec![tree.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    for file in made {
        let path = dirs[file.parent % dirs.len()].join(&file.name);
        if file.name == "." || file.name == ".." || path.symlink_metadata().is_ok() {
            continue;
        }
        match &file.what {
            What::File(content) => std::fs::write(&path, content).unwrap(),
            What::Dir => std::fs::create_dir(&path).unwrap(),
            What::Link(target) => symlink(target, &path).unwrap(),
            What::Hard(_) if files.is_empty() => continue,
            What::Hard(index) => {
                std::fs::hard_link(&files[index % files.len()], &path).unwrap();
                continue;
            }
            What::Fifo => node(&path, FileType::Fifo, 0o600, (0, 0)),
        }
        rustix::fs::chownat(
            rustix::fs::CWD,
            &path,
            Some(Uid::from_raw(file.owner.0)),
            Some(Gid::from_raw(file.owner.1)),
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        if !matches!(file.what, What::Link(_)) {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(file.mode)).unwrap();
        }
        if let (Some((name, value)), What::File(_) | What::Dir) = (&file.xattr, &file.what) {
            set_xattr(&path, &format!("user.{name}"), value);
        }
        set_time(&path, file.seconds, file.seconds % 1_000_000_000);
        if matches!(file.what, What::Dir) { dirs.push(path) } else { files.push(path) }
    }
}

fn random_trees(form: LayerForm) {
    let fixture = Fixture::new(form);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let rounds = std::cell::Cell::new(0);
    runner
        .run(&(prop::collection::vec(made(), 1..60), 0..FORMATS.len()), |(made, format)| {
            let round = rounds.replace(rounds.get() + 1);
            let tree = fixture.outside().join(format!("tree{round}"));
            std::fs::create_dir(&tree).unwrap();
            plant(&tree, &made);
            compare(&fixture, &tree, FORMATS[format], &format!("round{round}"));
            std::fs::remove_dir_all(&tree).unwrap();
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_layer_takes_four_inodes_and_proves_itself() {
    let fixture = Fixture::new(LayerForm::TarErofs);
    let tree = fixture.outside().join("tree");
    std::fs::create_dir(&tree).unwrap();
    for index in 0..500 {
        std::fs::write(tree.join(index.to_string()), "x").unwrap();
    }
    let bytes = archive(&tree, &fixture.outside().join("a.tar"), &["--format=gnu"]);
    let info = fixture.ingest(&bytes).unwrap();
    assert_eq!(info.disk_inodes, 4);
    assert!(info.disk_bytes < info.tar_bytes + info.tar_bytes / 5, "{info:?}");
    let layers = fixture.root().join("layers");
    let layer = std::fs::read_dir(&layers).unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::metadata(layer.join("layer.tar")).unwrap().size(), info.tar_bytes);
    // One flipped bit anywhere is found.
    let damaged = [
        ("layer.tar", 700, LayerCheck::Damaged),
        ("layer.tar", info.tar_bytes - 1, LayerCheck::Damaged),
        ("meta.erofs", 5000, LayerCheck::DamagedMetadata),
    ];
    for (file, position, expected) in damaged {
        let file = std::fs::File::options().read(true).write(true).open(layer.join(file)).unwrap();
        let mut byte = [0];
        assert_eq!(fixture.store.check_layer(&info.diff_id).unwrap(), LayerCheck::Whole);
        file.read_exact_at(&mut byte, position).unwrap();
        file.write_all_at(&[byte[0] ^ 4], position).unwrap();
        assert_eq!(fixture.store.check_layer(&info.diff_id).unwrap(), expected);
        file.write_all_at(&byte, position).unwrap();
    }
}
