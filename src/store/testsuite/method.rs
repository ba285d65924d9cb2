//! Overlays however the kernel wants them: what a mount can be used for, and by-path overlays in
//! particular.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{self, MountPropagationFlags, MoveMountFlags};

use super::archive::Archive;
use super::view::look;
use super::{Fixture, both_forms, read};
use crate::overlay::Method;
use crate::{Access, Error, LayerForm, MountOptions, mounts};

both_forms!(
    a_mount_is_attached_in_another_namespace,
    a_view_of_nothing_is_empty,
    a_remnant_is_in_nobodys_way,
    a_label_stays_a_label,
    mounts_are_made_at_the_same_time,
    a_node_whose_mounts_propagate_keeps_the_pin,
);

fn attach_elsewhere(root: OwnedFd, place: std::path::PathBuf) -> (Vec<u8>, String) {
    let there = move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        mount::move_mount(&root, "", rustix::fs::CWD, &place, flags).unwrap();
        std::fs::write(place.join("written"), "by path").unwrap();
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(place.to_str().unwrap())).unwrap().to_owned();
        (std::fs::read(place.join("a")).unwrap(), line)
    };
    std::thread::spawn(there).join().unwrap()
}

fn a_mount_is_attached_in_another_namespace(form: LayerForm) {
    let fixture = Fixture::new(form);
    let root = fixture.mount("k", &[&Archive::default().file("a", b"1").end()]);
    let place = fixture.outside().join("place");
    std::fs::create_dir(&place).unwrap();
    let (content, line) = attach_elsewhere(root, place.clone());
    assert_eq!(content, b"1");
    assert!(line.contains(" - overlay pinnace ") && line.contains("volatile"), "{line}");
    // Nothing but the overlay shows: not the directory it was put together in.
    assert_eq!(line.split(' ').nth(3), Some("/"), "{line}");
    assert!(!place.join("a").exists());
    assert_eq!(read(&fixture.store.upper("k").unwrap(), "written"), b"by path");
}

fn a_view_of_nothing_is_empty(form: LayerForm) {
    let fixture = Fixture::new(form);
    fixture.store.view("v", &[]).unwrap();
    let root = fixture.store.mount("v", &MountOptions::default()).unwrap();
    assert_eq!(look(&root).into_keys().collect::<BTreeSet<_>>(), BTreeSet::from([".".to_owned()]));
}

/// A daemon that is killed while an overlay is put together leaves that in the pinned namespace.
fn a_remnant_is_in_nobodys_way(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let layer = fixture.ingest(&Archive::default().file("a", b"1").end()).unwrap().diff_id;
    let remnant = mounts::tmpfs("remnant").unwrap();
    rustix::fs::mkdirat(&remnant, "base", 0o700.into()).unwrap();
    drop(fixture.store.inner.mounts().unwrap().attach("overlay", remnant).unwrap());
    fixture.reopen();
    fixture.store.prepare("k", &[layer]).unwrap();
    assert_eq!(read(&fixture.store.mount("k", &MountOptions::default()).unwrap(), "a"), b"1");
    fixture.store.remove("k").unwrap();
    fixture.store.release_idle().unwrap();
    assert_eq!(fixture.store.inner.mounts().unwrap().names().unwrap(), Vec::<String>::new());
}

fn a_label_stays_a_label(form: LayerForm) {
    let fixture = Fixture::new(form);
    let secret = fixture.outside().join("secret");
    std::fs::create_dir(&secret).unwrap();
    fixture.store.prepare("k", &[]).unwrap();
    let label = format!("x\",upperdir={},volatile=\"", secret.display());
    let options = MountOptions { selinux_context: Some(&label), ..MountOptions::default() };
    let error = fixture.store.mount("k", &options).unwrap_err();
    if fixture.store.inner.method == Method::Paths {
        assert!(matches!(error, Error::Mount { step: "set context", .. }), "{error:?}");
    }
    assert!(std::fs::read_dir(&secret).unwrap().next().is_none());
}

fn mounts_are_made_at_the_same_time(form: LayerForm) {
    let fixture = Fixture::new(form);
    let layers: Vec<_> = (0..4_u8)
        .map(|n| {
            let tar = Archive::default().file("a", &[n]).file(&format!("d/{n}"), b"").end();
            fixture.ingest(&tar).unwrap().diff_id
        })
        .collect();
    std::thread::scope(|scope| {
        for n in 0..8_usize {
            let (store, layers) = (&fixture.store, &layers[..1 + n % 4]);
            scope.spawn(move || {
                let key = format!("k{n}");
                store.prepare(&key, layers).unwrap();
                let access = if n < 4 { Access::ReadWrite } else { Access::ReadOnly };
                let options = MountOptions { access, ..MountOptions::default() };
                let root = store.mount(&key, &options).unwrap();
                assert_eq!(read(&root, "a"), [u8::try_from(n % 4).unwrap()]);
                let written = rustix::fs::mkdirat(root.as_fd(), "new", 0o755.into());
                assert_eq!(written.is_ok(), n < 4, "{written:?}");
            });
        }
    });
}

/// On a systemd node every mount is shared, and services with a mount namespace of their own get copies.
fn a_node_whose_mounts_propagate_keeps_the_pin(form: LayerForm) {
    let method = super::METHOD.get();
    let node = move || {
        super::METHOD.set(method);
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount::mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).unwrap();
        let (ask, asked) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let service = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
            let table = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            tell.send(table()).unwrap();
            while asked.recv().is_ok() {
                tell.send(table()).unwrap();
            }
        });
        told.recv().unwrap();
        let mut fixture = Fixture::new(form);
        let root = fixture.mount("k", &[&Archive::default().file("a", b"1").end()]);
        assert_eq!(read(&root, "a"), b"1");
        let elsewhere = || {
            ask.send(()).unwrap();
            let own = fixture.outside();
            let table = told.recv().unwrap();
            table.lines().filter(|line| line.contains(own.to_str().unwrap())).count()
        };
        let pinned = mounts::is_pinned(&fixture.store.inner.run).unwrap();
        assert_eq!(elsewhere(), usize::from(pinned), "the private mount and nothing in it");
        fixture.store.release_pins().unwrap();
        assert_eq!(elsewhere(), 0);
        drop(root);
        fixture.reopen();
        let again = fixture.store.mount("k", &MountOptions::default()).unwrap();
        assert_eq!(read(&again, "a"), b"1");
        drop((again, fixture, ask));
        service.join().unwrap();
    };
    std::thread::spawn(node).join().unwrap();
}

#[test]
fn the_reason_names_the_method() {
    let forced = Fixture::with(LayerForm::Directory, |options| options.method = Some(Method::Paths));
    assert_eq!(forced.store.form_reason(), "configured; overlays from paths");
    let free = Fixture::with(LayerForm::Directory, |options| options.form = None);
    let reason = free.store.form_reason();
    assert!(reason.contains(&format!("overlays from {}", free.store.inner.method)), "{reason}");
}
