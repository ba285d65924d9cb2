//! The life of a container's file system.

use super::archive::Archive;
use super::{Fixture, both_forms, read};
use crate::LayerForm;

both_forms!(layers_stack_and_writes_stay_apart);

fn layers_stack_and_writes_stay_apart(form: LayerForm) {
    let fixture = Fixture::new(form);
    let base = Archive::default().dir("etc/", 0o755).file("etc/a", b"one").file("etc/b", b"two").end();
    let top = Archive::default().dir("etc/", 0o700).file("etc/.wh.a", b"").file("etc/c", &[7; 100_000]).end();
    let root = fixture.mount("c1", &[&base, &top]);
    assert_eq!(read(&root, "etc/b"), b"two");
    assert_eq!(read(&root, "etc/c"), [7; 100_000]);
    assert!(rustix::fs::statat(&root, "etc/a", rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_err());
}
