//! The way out: the tar of a layer is the very same, a commit shows what the container saw, an export is all of it.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, AtFlags, Dev, FileType, Mode, OFlags, XattrFlags};

use super::archive::{Archive, Raw};
use super::{Fixture, both_forms};
use crate::{CachedStep, CommitOptions, Digest, LayerForm, MountOptions};

both_forms!(
    the_tar_of_a_layer_is_the_very_same,
    a_commit_shows_what_the_container_saw,
    what_mounts_have_left_is_not_committed,
    times_are_set_back,
    an_export_is_everything_at_once,
    a_remembered_step_keeps_its_layer,
);

fn bytes_of(fixture: &Fixture, tar: &[u8]) -> Vec<u8> {
    let info = fixture.ingest(tar).unwrap();
    let mut bytes = Vec::new();
    fixture.store.layer_reader(&info.diff_id).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn the_tar_of_a_layer_is_the_very_same(form: LayerForm) {
    let fixture = Fixture::new(form);
    let large = (0..300_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>();
    let plain = Archive::default()
        .dir("d", 0o750)
        .file("d/large", &large)
        .file("d/empty", b"")
        .symlink("l", "d/large");
    let overwritten = Archive::default()
        .file("twice", b"the first is hidden by the second")
        .file("twice", b"second")
        .file("gone/below", b"replaced by a file")
        .file("gone", b"file")
        .hard_link("third", "twice");
    let odd = Archive::default()
        .raw(&Raw { magic: *b"ustar  \0", mtime: -5, uid: 1 << 25, ..Raw::new(b'5', b"./gnu/") }, b"")
        .pax(&[(b"path", &b"long/".repeat(60)), (b"SCHILY.xattr.user.a", b"\0\xff")])
        .file("short", b"x")
        .file(".wh.lower", b"")
        .raw(&Raw { device: (1, 3), ..Raw::new(b'3', b"null") }, b"");
    let mut trailing = plain.clone().end();
    trailing.extend([0; 9 * 512]);
    for tar in [plain.end(), overwritten.end(), odd.end(), trailing, Archive::default().end()] {
        assert_eq!(bytes_of(&fixture, &tar), tar);
    }
}

/// Every path with what can be seen of it.
fn listing(root: &OwnedFd) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![String::from(".")];
    while let Some(path) = pending.pop() {
        let dir = fs::openat(root, &path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for (name, _) in crate::dir::list(dir.as_fd()).unwrap() {
            let below = format!("{path}/{}", name.to_string_lossy());
            let stat = fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let kind = FileType::from_raw_mode(stat.st_mode);
            let mut text = format!("{kind:?} {:o} {}:{}", stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
            match kind {
                FileType::Directory => pending.push(below.clone()),
                FileType::RegularFile => {
                    let content = super::read(root, &below);
                    text += &format!(" {} {} {}", stat.st_nlink, stat.st_mtime, Digest::sha256(&content));
                    let file = fs::openat(root, &below, OFlags::RDONLY, Mode::empty()).unwrap();
                    let mut value = [0; 64];
                    if let Ok(length) = fs::fgetxattr(&file, c"user.colour", &mut value) {
                        text += &format!(" {:?}", &value[..length]);
                    }
                }
                FileType::Symlink => {
                    text += &format!(" {:?}", fs::readlinkat(&dir, &name, Vec::new()).unwrap())
                }
                _ => text += &format!(" {:x}", stat.st_rdev),
            }
            found.insert(below, text);
        }
    }
    found
}

fn write(root: &OwnedFd, path: &str, content: &[u8]) {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC;
    let file = fs::openat(root, path, flags, Mode::from_raw_mode(0o640)).unwrap();
    rustix::io::write(&file, content).unwrap();
}

fn base() -> Vec<u8> {
    Archive::default()
        .dir("etc", 0o755)
        .file("etc/passwd", b"root")
        .file("etc/removed", b"x")
        .dir("replaced", 0o755)
        .file("replaced/old", b"old")
        .dir("untouched", 0o711)
        .file("untouched/file", b"same")
        .dir("changed", 0o755)
        .file("becomes-a-directory", b"file")
        .end()
}

fn a_commit_shows_what_the_container_saw(form: LayerForm) {
    let fixture = Fixture::new(form);
    let base = fixture.ingest(&base()).unwrap().diff_id;
    fixture.store.prepare("container", &[base]).unwrap();
    let root = fixture.store.mount("container", &MountOptions::default()).unwrap();
    write(&root, "etc/passwd", b"root and more");
    fs::unlinkat(&root, "etc/removed", AtFlags::empty()).unwrap();
    fs::unlinkat(&root, "replaced/old", AtFlags::empty()).unwrap();
    fs::unlinkat(&root, "replaced", AtFlags::REMOVEDIR).unwrap();
    fs::mkdirat(&root, "replaced", Mode::from_raw_mode(0o700)).unwrap();
    write(&root, "replaced/new", b"new");
    fs::unlinkat(&root, "becomes-a-directory", AtFlags::empty()).unwrap();
    fs::mkdirat(&root, "becomes-a-directory", Mode::from_raw_mode(0o1777)).unwrap();
    fs::chmodat(&root, "changed", Mode::from_raw_mode(0o4700), AtFlags::empty()).unwrap();
    fs::mkdirat(&root, "new", Mode::from_raw_mode(0o755)).unwrap();
    write(&root, "new/one", b"linked");
    fs::linkat(&root, "new/one", &root, "new/two", AtFlags::empty()).unwrap();
    fs::symlinkat("../etc/passwd", &root, "new/link").unwrap();
    fs::mknodat(&root, "new/pipe", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let device: Dev = fs::makedev(1, 5);
    fs::mknodat(&root, "new/zero", FileType::CharacterDevice, Mode::from_raw_mode(0o666), device).unwrap();
    let file = fs::openat(&root, "new/one", OFlags::RDWR, Mode::empty()).unwrap();
    fs::fsetxattr(&file, CString::new("user.colour").unwrap(), b"blue\0", XattrFlags::empty()).unwrap();
    let long = format!("new/{}", "n".repeat(200));
    write(&root, &long, b"a name longer than a header");

    let lease = fixture.store.lease();
    let committed = fixture.store.commit_snapshot(&lease, "container", &CommitOptions::default()).unwrap();
    let mut tar = Vec::new();
    fixture.store.layer_reader(&committed.diff_id).unwrap().read_to_end(&mut tar).unwrap();
    assert_eq!(Digest::sha256(&tar), *committed.diff_id.digest());
    assert!(!tar.windows(9).any(|name| name == b"untouched"), "what was not changed is in the layer");
    let again = fixture.store.commit_snapshot(&lease, "container", &CommitOptions::default()).unwrap();
    assert_eq!(again.diff_id, committed.diff_id, "the same files are another layer");

    fixture.store.view("committed", &[base, committed.diff_id]).unwrap();
    let view = fixture.store.mount("committed", &MountOptions::default()).unwrap();
    assert_eq!(listing(&view), listing(&root));
    assert_eq!(fixture.store.snapshots().len(), 2, "a commit leaves nothing");
}

fn what_mounts_have_left_is_not_committed(form: LayerForm) {
    let fixture = Fixture::new(form);
    let base = fixture.ingest(&base()).unwrap().diff_id;
    fixture.store.prepare("container", &[base]).unwrap();
    let root = fixture.store.mount("container", &MountOptions::default()).unwrap();
    for dir in ["proc", "run", "run/secrets", "kept"] {
        fs::mkdirat(&root, dir, Mode::from_raw_mode(0o755)).unwrap();
    }
    for file in ["etc/hosts", "etc/resolv.conf", "run/secrets/token"] {
        write(&root, file, b"");
    }
    write(&root, "etc/resolv.conf", b"the container's own");
    let targets = ["/proc", "/etc/hosts", "/etc/resolv.conf", "/run/secrets/token", "/etc/passwd"];
    let options = CommitOptions {
        mount_targets: targets.iter().map(|path| path.as_bytes().to_vec()).collect(),
        mtime_max: None,
    };
    let lease = fixture.store.lease();
    let committed = fixture.store.commit_snapshot(&lease, "container", &options).unwrap();
    fixture.store.view("committed", &[committed.diff_id]).unwrap();
    let view = fixture.store.mount("committed", &MountOptions::default()).unwrap();
    let names: Vec<String> = listing(&view).into_keys().collect();
    assert_eq!(names, ["./etc", "./etc/resolv.conf", "./kept"]);
}

fn times_are_set_back(form: LayerForm) {
    let fixture = Fixture::new(form);
    fixture.store.prepare("container", &[]).unwrap();
    let root = fixture.store.mount("container", &MountOptions::default()).unwrap();
    write(&root, "file", b"now");
    let options = CommitOptions { mtime_max: Some(1000), ..CommitOptions::default() };
    let lease = fixture.store.lease();
    let committed = fixture.store.commit_snapshot(&lease, "container", &options).unwrap();
    fixture.store.view("committed", &[committed.diff_id]).unwrap();
    let view = fixture.store.mount("committed", &MountOptions::default()).unwrap();
    assert_eq!(fs::statat(&view, "file", AtFlags::empty()).unwrap().st_mtime, 1000);
}

fn an_export_is_everything_at_once(form: LayerForm) {
    let fixture = Fixture::new(form);
    let upper = Archive::default().file("etc/.wh.removed", b"").file("etc/added", b"y").end();
    let root = fixture.mount("container", &[&base(), &upper]);
    write(&root, "written", b"z");
    let mut tar = Vec::new();
    crate::export(root.as_fd(), &mut tar).unwrap();
    let flat = fixture.mount("flat", &[&tar]);
    assert_eq!(listing(&flat), listing(&root));
}

fn a_remembered_step_keeps_its_layer(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let layer = fixture.ingest(&Archive::default().file("f", b"1").end()).unwrap().diff_id;
    let key = "ab".repeat(32);
    let step = CachedStep::new(key.clone(), Some(layer), "1970-01-01T00:00:00Z".into(), "RUN true".into(), 1);
    fixture.store.remember_step(step.clone()).unwrap();
    assert_eq!(fixture.store.gc().unwrap().layers, 0);
    fixture.reopen();
    assert_eq!(*fixture.store.cached_step(&fixture.store.lease(), &key).unwrap(), step);
    assert_eq!(fixture.store.cached_step(&fixture.store.lease(), &"cd".repeat(32)), None);
    assert_eq!(fixture.store.forget_steps(|step| step.used_at > 1).unwrap(), 0);
    assert_eq!(fixture.store.forget_steps(|_| true).unwrap(), 1);
    assert_eq!(fixture.store.gc().unwrap().layers, 1);
    assert!(fixture.store.cached_steps().is_empty());
    let mut bad = step;
    bad.key = "../x".into();
    assert!(fixture.store.remember_step(bad).is_err());
}
