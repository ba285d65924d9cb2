//! Checks, repairs and accounts.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::archive::Archive;
use super::life::{image, new_image, pushed, tar};
use super::{Fixture, both_forms, read};
use crate::{DiffId, Digest, Fault, ImageId, LayerForm, MountOptions, Outcome, Repair, Usage};

both_forms!(
    a_whole_store_has_no_findings,
    damaged_blobs_and_records_are_found_and_healed,
    what_holds_what_and_takes_how_much,
    strays_are_found_and_swept,
);

fn layer_dir(fixture: &Fixture, layer: &DiffId) -> PathBuf {
    fixture.root().join(format!("layers/sha256-{}", layer.hex()))
}

fn flip(path: PathBuf, position: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 4], position).unwrap();
}

fn findings(fixture: &Fixture, repair: Repair) -> Vec<(Fault, Outcome)> {
    let report = fixture.store.fsck(repair).unwrap();
    report.findings.into_iter().map(|finding| (finding.fault, finding.outcome)).collect()
}

fn a_whole_store_has_no_findings(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    image(&fixture.store, "a", &["r/a:1"]);
    image(&fixture.store, "b", &["r/b:1", "r/b:2"]);
    for repair in [Repair::No, Repair::Yes] {
        let report = fixture.store.fsck(repair).unwrap();
        assert_eq!(report.findings, []);
        assert_eq!(report.whole_layers + report.unprovable_layers, 2);
        assert_eq!(report.whole_layers, if form == LayerForm::TarErofs { 2 } else { 0 });
        assert_eq!((report.whole_blobs, report.whole_images), (4, 2));
        fixture.reopen();
    }
    assert_eq!(std::fs::read_dir(fixture.root().join("work")).unwrap().count(), 0);
}

fn damaged_blobs_and_records_are_found_and_healed(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let (a, b) = (image(&fixture.store, "a", &["r/a:1"]), image(&fixture.store, "b", &["r/b:1"]));
    let blob = |id: &ImageId| fixture.root().join(format!("blobs/sha256-{}", id.hex()));
    let (config, record) = (blob(&a), fixture.root().join(format!("images/sha256-{}.json", b.hex())));
    std::fs::write(config, "X").unwrap();
    std::fs::write(record, "{").unwrap();
    let (bad_blob, bad_record) = (Fault::Blob(*a.digest()), Fault::ImageRecord(b));
    let reported = [(bad_blob.clone(), Outcome::Reported), (bad_record.clone(), Outcome::Reported)];
    assert_eq!(findings(&fixture, Repair::No), reported);
    assert_eq!(findings(&fixture, Repair::No), reported, "looking changes nothing");
    assert_eq!(
        findings(&fixture, Repair::Yes),
        [(bad_blob, Outcome::Dropped), (bad_record, Outcome::Rebuilt)]
    );
    assert_eq!(findings(&fixture, Repair::No), []);
    // The image without its config is gone, so that it is pulled again; the other one survives a start.
    assert!(fixture.store.image("r/a:1").is_none());
    fixture.reboot();
    assert!(fixture.store.recovered().removed_images.is_empty());
    assert_eq!(fixture.store.image("r/b:1").unwrap().id, b);
    image(&fixture.store, "a", &["r/a:1"]);
    assert_eq!(findings(&fixture, Repair::No), []);
}

#[test]
fn damaged_metadata_are_made_again() {
    let fixture = Fixture::new(LayerForm::TarErofs);
    image(&fixture.store, "a", &["r/a:1"]);
    let layer = fixture.store.image("r/a:1").unwrap().layers[0];
    let meta = layer_dir(&fixture, &layer).join("meta.erofs");
    let before = std::fs::read(&meta).unwrap();
    for spoil in [0, 1, 2] {
        match spoil {
            0 => flip(meta.clone(), 1300),
            1 => std::fs::write(&meta, &before[..before.len() - 512]).unwrap(),
            _ => std::fs::remove_file(&meta).unwrap(),
        }
        let fault = Fault::LayerMetadata(layer);
        assert_eq!(findings(&fixture, Repair::No), [(fault.clone(), Outcome::Reported)], "{spoil}");
        assert_eq!(findings(&fixture, Repair::Yes), [(fault, Outcome::Rebuilt)], "{spoil}");
        assert_eq!(std::fs::read(&meta).unwrap(), before);
    }
    assert_eq!(findings(&fixture, Repair::No), []);
    fixture.store.prepare("k", &[layer]).unwrap();
    assert_eq!(read(&fixture.store.mount("k", &MountOptions::default()).unwrap(), "a"), b"a");
}

#[test]
fn damaged_layers_go_and_a_pull_brings_them_back() {
    let mut fixture = Fixture::new(LayerForm::TarErofs);
    let bytes = tar("a");
    for case in ["flipped", "shorter", "removed", "removed with its directory"] {
        let id = image(&fixture.store, "a", &["r/a:1"]);
        let layer = fixture.store.image("r/a:1").unwrap().layers[0];
        let dir = layer_dir(&fixture, &layer);
        let file = dir.join("layer.tar");
        match case {
            "flipped" => flip(file, 512),
            "shorter" => std::fs::write(file, &bytes[..1024]).unwrap(),
            "removed" => std::fs::remove_file(file).unwrap(),
            _ => std::fs::remove_dir_all(dir).unwrap(),
        }
        let report = fixture.store.fsck(Repair::No).unwrap();
        assert_eq!(report.findings[0].fault, Fault::Layer(layer), "{case}");
        assert_eq!(report.findings[0].images, [id], "{case}");
        assert_eq!(findings(&fixture, Repair::Yes), [(Fault::Layer(layer), Outcome::Dropped)], "{case}");
        assert!(!fixture.store.has_layer(&layer) && fixture.store.images().is_empty(), "{case}");
        assert_eq!(findings(&fixture, Repair::No), [], "{case}");
    }
    // A container uses it: the files stay, the image goes, and a pull replaces the layer.
    image(&fixture.store, "a", &["r/a:1"]);
    let layer = fixture.store.image("r/a:1").unwrap().layers[0];
    fixture.store.prepare("k", &[layer]).unwrap();
    drop(fixture.store.mount("k", &MountOptions::default()).unwrap());
    flip(layer_dir(&fixture, &layer).join("layer.tar"), 512);
    let report = fixture.store.fsck(Repair::Yes).unwrap();
    assert_eq!(report.findings[0].outcome, Outcome::Condemned);
    assert_eq!(report.findings[0].snapshots, ["k"]);
    assert!(fixture.store.has_layer(&layer) && fixture.store.images().is_empty());
    fixture.reopen();
    assert!(fixture.store.lease().hold_layer(&layer).is_none(), "not taken for good after a restart either");
    image(&fixture.store, "a", &["r/a:1"]);
    assert!(fixture.store.lease().hold_layer(&layer).is_some());
    assert_eq!(findings(&fixture, Repair::No), []);
    assert_eq!(read(&fixture.store.mount("k", &MountOptions::default()).unwrap(), "a"), b"a");
}

fn strays_are_found_and_swept(form: LayerForm) {
    let fixture = Fixture::new(form);
    image(&fixture.store, "a", &["r/a:1"]);
    let stray = format!("sha256-{}", Digest::sha256(b"stray").hex());
    for name in ["what", &stray] {
        std::fs::create_dir(fixture.root().join("layers").join(name)).unwrap();
    }
    let both =
        |outcome| [(Fault::StrayLayer(stray.clone()), outcome), (Fault::StrayLayer("what".into()), outcome)];
    assert_eq!(findings(&fixture, Repair::No), both(Outcome::Reported));
    assert_eq!(findings(&fixture, Repair::Yes), both(Outcome::Dropped));
    assert_eq!(findings(&fixture, Repair::No), []);
    assert_eq!(fixture.store.layers().len(), 1);
}

fn what_holds_what_and_takes_how_much(form: LayerForm) {
    let fixture = Fixture::new(form);
    let store = &fixture.store;
    let lease = store.lease();
    let shared = pushed(store, &lease, &tar("shared"));
    let own = pushed(store, &lease, &Archive::default().file("own", &[1; 1 << 20]).end());
    let a = new_image(store, &lease, "a", &[shared, own], &["r/a:1", "r/a:2"]);
    let b = new_image(store, &lease, "b", &[shared], &["r/b:1"]);
    let (a, b) = (store.commit_image(&lease, a).unwrap(), store.commit_image(&lease, b).unwrap());
    let loose = pushed(store, &lease, &tar("loose"));
    assert_eq!(store.holders(&loose).unwrap().leases, 1);
    drop(lease);
    store.prepare("c", &a.layers).unwrap();
    let root = store.mount("c", &MountOptions::default()).unwrap();
    rustix::fs::mkdirat(&root, "made", 0o755.into()).unwrap();
    let holders = store.holders(&shared).unwrap();
    let mut images = [a.id, b.id];
    images.sort_unstable();
    assert_eq!((holders.images.as_slice(), holders.leases), (&images[..], 0));
    assert_eq!(holders.snapshots, ["c"]);
    assert!(store.holders(&DiffId::new(Digest::sha256(b"none"))).is_err());

    let accounts = store.accounts().unwrap();
    let of = |id: &ImageId| accounts.images.iter().find(|image| image.id == *id).unwrap();
    assert_eq!((of(&a.id).names.len(), of(&a.id).snapshots.as_slice()), (2, &["c".to_owned()][..]));
    assert!(of(&a.id).own.bytes > 1 << 20 && of(&b.id).own.bytes < 1 << 20);
    assert_eq!(of(&a.id).shared, of(&b.id).shared);
    for image in [&a, &b] {
        assert_eq!(of(&image.id).own.bytes + of(&image.id).shared.bytes, image.size_bytes);
    }
    let loose = store.layer(&loose).unwrap();
    let loose = Usage { bytes: loose.disk_bytes, inodes: loose.disk_inodes };
    assert_eq!((accounts.without_image, accounts.reclaimable), (loose, loose));
    let mut sum = accounts.images_total;
    sum += accounts.without_image;
    assert_eq!(sum, store.images_usage());
    assert_eq!((accounts.snapshots[0].key.as_str(), accounts.snapshots[0].usage.inodes), ("c", 2));
    assert_eq!(store.gc().unwrap().freed, loose);
}
