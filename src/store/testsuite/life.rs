//! Blobs, images, leases, collection, crashes.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};

use super::archive::Archive;
use super::{Fixture, both_forms, read};
use crate::overlay::Method;
use crate::{
    Algorithm, Code, DiffId, Digest, Durability, Error, ImageId, LayerForm, Lease, ManifestRecord,
    MountOptions, NewImage, Store,
};

both_forms!(
    a_second_store_on_the_root_is_refused,
    tags_move_and_dangling_images_stay,
    removal_is_synchronous_and_spares_what_is_used,
    leases_protect_and_orphans_are_collected,
    a_crash_leaves_whole_layers_or_none,
    unflushed_layers_are_of_this_boot_only,
    damage_is_found_after_a_boot,
    concurrent_ingests_of_one_layer_agree,
    everything_at_once,
    layers_are_mounted_once_and_released,
    nothing_is_mounted_where_others_see_it,
);

pub(super) fn tar(name: &str) -> Vec<u8> {
    Archive::default().file(name, name.as_bytes()).end()
}

pub(super) fn pushed(store: &Store, lease: &Lease, tar: &[u8]) -> DiffId {
    let mut ingest = store.ingest_layer(lease, Algorithm::Sha256).unwrap();
    ingest.push(tar).unwrap();
    ingest.finish(&DiffId::new(Digest::sha256(tar))).unwrap().diff_id
}

pub(super) fn new_image(
    store: &Store,
    lease: &Lease,
    config: &str,
    layers: &[DiffId],
    names: &[&str],
) -> NewImage {
    let manifest = format!("manifest of {config}");
    let (id, digest) = (Digest::sha256(config.as_bytes()), Digest::sha256(manifest.as_bytes()));
    lease.put_blob(&id, config.as_bytes()).unwrap();
    lease.put_blob(&digest, manifest.as_bytes()).unwrap();
    assert!(store.has_blob(&id));
    NewImage {
        id: ImageId::new(id),
        manifests: vec![ManifestRecord {
            digest,
            media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        }],
        layers: layers.to_vec(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        created: None,
        user: "1000".into(),
        labels: BTreeMap::from([("k".into(), "v".into())]),
        pinned: false,
    }
}

/// An image of one layer, each made from the text.
pub(super) fn image(store: &Store, config: &str, names: &[&str]) -> ImageId {
    let lease = store.lease();
    let layer = pushed(store, &lease, &tar(config));
    let image = new_image(store, &lease, config, &[layer], names);
    store.commit_image(&lease, image).unwrap().id
}

fn a_second_store_on_the_root_is_refused(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let mut options = fixture.options.clone();
    options.run = fixture.outside().join("other-run");
    let error = Store::open(options.clone()).unwrap_err();
    assert!(matches!(&error, Error::Locked { root } if *root == fixture.root()), "{error}");
    assert_eq!(error.code(), Code::FailedPrecondition);
    // The lock goes with the last handle.
    let handle = fixture.store.clone();
    fixture.close();
    assert!(Store::open(options.clone()).is_err());
    drop(handle);
    Store::open(options).unwrap();
    assert_eq!(
        std::fs::metadata(fixture.root()).map(|m| std::os::unix::fs::MetadataExt::mode(&m)).unwrap() & 0o777,
        0o700
    );
}

fn tags_move_and_dangling_images_stay(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let latest = "docker.io/library/app:latest";
    let digest = format!("docker.io/library/app@{}", Digest::sha256(b"x"));
    let old = image(&fixture.store, "old", &[latest, "docker.io/library/app:1", &digest]);
    let new = image(&fixture.store, "new", &[latest]);
    for _ in 0..2 {
        let store = &fixture.store;
        assert_eq!(store.image(latest).unwrap().id, new);
        assert_eq!(store.image("docker.io/library/app:1").unwrap().id, old);
        assert_eq!(store.image(&digest).unwrap().id, old);
        let record = store.image(&old.to_string()).unwrap();
        assert_eq!(record.tags().collect::<Vec<_>>(), ["docker.io/library/app:1"]);
        assert_eq!(record.digests().collect::<Vec<_>>(), [&digest]);
        assert_eq!((record.user.as_str(), record.labels["k"].as_str()), ("1000", "v"));
        assert_eq!(store.image(&old.hex()).unwrap().id, old);
        assert_eq!(store.image(&old.hex()[..12]).unwrap().id, old);
        assert_eq!(store.image(&format!("sha256:{}", &new.hex()[..9])).unwrap().id, new);
        for junk in ["", "zz", "deadbeefdeadbeef", "sha256:", "app", "docker.io/library/app", &"0".repeat(65)]
        {
            assert!(store.image(junk).is_none(), "{junk:?}");
        }
        assert_eq!(store.images().len(), 2);
        // All of it can be rebuilt from disk.
        fixture.reopen();
    }
    let store = &fixture.store;
    // An image that loses its last name is still there.
    assert_eq!(store.tag(&new, "docker.io/library/app:1").unwrap().id, new);
    assert_eq!(store.untag(&digest).unwrap().unwrap().id, old);
    assert!(store.untag(&digest).unwrap().is_none());
    assert_eq!(store.image(&old.hex()).unwrap().names().count(), 0);
    assert_eq!(store.images().len(), 2);
    // The same image again: names add up, the pin stays.
    store.pin(&old, true).unwrap();
    assert_eq!(image(store, "old", &["docker.io/library/app:again"]), old);
    let record = store.image(&old.hex()).unwrap();
    assert!(record.pinned);
    assert_eq!(record.names().collect::<Vec<_>>(), ["docker.io/library/app:again"]);
    assert!(!store.pin(&old, false).unwrap().pinned);
    // A record whose parts are missing is not committed.
    let lease = store.lease();
    let absent = DiffId::new(Digest::sha256(b"absent"));
    let incomplete = new_image(store, &lease, "incomplete", &[absent], &["x"]);
    assert!(
        matches!(store.commit_image(&lease, incomplete), Err(Error::LayerNotFound(layer)) if layer == absent)
    );
    let mut incomplete = new_image(store, &lease, "incomplete", &[], &["x"]);
    incomplete.id = ImageId::new(Digest::sha256(b"no such config"));
    assert_eq!(store.commit_image(&lease, incomplete).unwrap_err().code(), Code::NotFound);
    assert!(store.image("x").is_none());
    // A prefix of several is none of them: two of twenty share their first digit.
    for index in 0..20 {
        image(store, &format!("image {index}"), &[]);
    }
    let firsts: Vec<String> = store.images().iter().map(|image| image.id.hex()[..1].to_owned()).collect();
    let shared =
        firsts.iter().find(|first| firsts.iter().filter(|other| other == first).count() > 1).unwrap();
    assert!(store.image(shared).is_none());
}

fn removal_is_synchronous_and_spares_what_is_used(form: LayerForm) {
    let fixture = Fixture::new(form);
    let store = &fixture.store;
    let lease = store.lease();
    let shared = pushed(store, &lease, &tar("shared"));
    let own = pushed(store, &lease, &Archive::default().file("own", &[1; 3 << 20]).end());
    let a = new_image(store, &lease, "a", &[shared, own], &["r/a:1", "r/a:2"]);
    let b = new_image(store, &lease, "b", &[shared], &["r/b:1"]);
    let (a, b) = (store.commit_image(&lease, a).unwrap(), store.commit_image(&lease, b).unwrap());
    assert!(a.size_bytes > 3 << 20 && b.size_bytes < 1 << 20, "{} {}", a.size_bytes, b.size_bytes);
    drop(lease);
    let usage = store.images_usage();
    assert!(usage.bytes < a.size_bytes + b.size_bytes, "the shared layer counts once");
    // A container uses it: the image goes, its layers stay.
    store.prepare("c", &a.layers).unwrap();
    let root = store.mount("c", &MountOptions::default()).unwrap();
    let collected = store.remove_image(&a.id).unwrap().unwrap();
    assert_eq!((collected.layers, collected.blobs), (0, 2));
    assert!(store.image("r/a:1").is_none() && store.image("r/a:2").is_none());
    assert!(store.remove_image(&a.id).unwrap().is_none());
    assert_eq!(read(&root, "own"), [1; 3 << 20]);
    drop(root);
    assert!(store.remove("c").unwrap());
    assert!(!store.remove("c").unwrap());
    let collected = store.gc().unwrap();
    assert_eq!((collected.layers, collected.blobs), (1, 0));
    assert!(!store.has_layer(&own) && store.has_layer(&shared));
    // Without a container everything goes with the image, before the call returns.
    let collected = store.remove_image(&b.id).unwrap().unwrap();
    assert_eq!((collected.layers, collected.blobs), (1, 2));
    assert_eq!(store.images_usage(), crate::Usage::default());
    store.flush();
    for place in ["layers", "blobs", "images", "trash", "work"] {
        assert_eq!(std::fs::read_dir(fixture.root().join(place)).unwrap().count(), 0, "{place}");
    }
}

fn leases_protect_and_orphans_are_collected(form: LayerForm) {
    let fixture = Fixture::new(form);
    let store = &fixture.store;
    let lease = store.lease();
    let layer = pushed(store, &lease, &tar("a"));
    let blob = Digest::sha256(b"blob");
    lease.put_blob(&blob, b"blob").unwrap();
    assert_eq!(store.blob(&blob).unwrap(), b"blob");
    let wrong = lease.put_blob(&Digest::sha256(b"other"), b"blob").unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let large = vec![0; crate::MAX_BLOB_BYTES + 1];
    assert_eq!(lease.put_blob(&Digest::sha256(&large), &large).unwrap_err().code(), Code::ResourceExhausted);
    // A blob is known to be a layer only if somebody has unpacked it.
    let compressed = Digest::sha256(b"compressed");
    assert!(lease.hold_layer_of_blob(&compressed).is_none());
    store.record_layer_blob(&layer, &compressed).unwrap();
    let second = lease.clone();
    drop(lease);
    assert_eq!(store.gc().unwrap().layers, 0);
    let third = store.lease();
    assert_eq!(third.hold_layer_of_blob(&compressed).unwrap().diff_id, layer);
    assert!(third.hold_layer(&DiffId::new(blob)).is_none());
    drop(second);
    let collected = store.gc().unwrap();
    assert_eq!((collected.layers, collected.blobs), (0, 1));
    assert_eq!(store.blob(&blob).unwrap_err().code(), Code::NotFound);
    drop(third);
    assert_eq!(store.gc().unwrap().layers, 1);
    assert!(store.lease().hold_layer_of_blob(&compressed).is_none());
    assert_eq!(store.gc().unwrap(), crate::Collected::default());
}

fn a_crash_leaves_whole_layers_or_none(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let id = image(&fixture.store, "kept", &["r/kept:1"]);
    let layer = fixture.store.image("r/kept:1").unwrap().layers[0];
    fixture.store.record_layer_blob(&layer, &Digest::sha256(b"compressed")).unwrap();
    fixture.store.prepare("c", &[layer]).unwrap();
    fixture.close();
    let root = fixture.root();
    // What an interrupted process leaves in every corner.
    std::fs::create_dir_all(root.join("work/dead/objects")).unwrap();
    std::fs::write(root.join("work/dead/layer.tar"), "half").unwrap();
    std::fs::create_dir_all(root.join("trash/dead/deep")).unwrap();
    std::fs::write(root.join("trash/dead/deep/x"), "x").unwrap();
    std::fs::write(root.join("blobs/.sha256-00.1-2"), "half").unwrap();
    std::fs::write(root.join("images/.sha256-00.json.1-2"), "half").unwrap();
    let torn = DiffId::new(Digest::sha256(b"torn"));
    let torn_dir = root.join(format!("layers/sha256-{}", torn.hex()));
    std::fs::create_dir(&torn_dir).unwrap();
    std::fs::write(torn_dir.join("layer.tar"), "half").unwrap();
    std::fs::create_dir(root.join("layers/not-a-digest")).unwrap();
    std::fs::create_dir_all(root.join("snapshots/half/upper")).unwrap();
    std::fs::write(root.join("snapshots/half/snapshot.json"), "").unwrap();
    let run = fixture.options.run.clone();
    std::fs::write(run.join("volatile/gone"), "").unwrap();
    std::fs::write(run.join("volatile/c"), "").unwrap();
    std::fs::write(run.join(format!("layers/sha256-{}", torn.hex())), "").unwrap();
    std::fs::write(run.join("layers/.sha256-00.1-2"), "").unwrap();
    fixture.reopen();
    let store = &fixture.store;
    store.flush();
    assert_eq!(store.recovered().removed_layers, [torn]);
    assert!(store.recovered().removed_images.is_empty());
    assert_eq!(store.layers().len(), 1);
    assert_eq!(store.image("r/kept:1").unwrap().id, id);
    assert!(store.has_snapshot("c") && !store.has_snapshot("half"));
    assert!(store.lease().hold_layer_of_blob(&Digest::sha256(b"compressed")).is_some());
    assert_eq!(read(&store.mount("c", &MountOptions::default()).unwrap(), "kept"), b"kept");
    for place in ["work", "trash"] {
        assert_eq!(std::fs::read_dir(root.join(place)).unwrap().count(), 0, "{place}");
    }
    for (place, count) in [("layers", 1), ("blobs", 2), ("images", 1), ("snapshots", 1)] {
        assert_eq!(std::fs::read_dir(root.join(place)).unwrap().count(), count, "{place}");
    }
    // Marks are kept as long as what they are about.
    assert!(run.join("volatile/c").exists() && !run.join("volatile/gone").exists());
    assert_eq!(std::fs::read_dir(run.join("layers")).unwrap().count(), 0);
}

fn unflushed_layers_are_of_this_boot_only(form: LayerForm) {
    let mut fixture = Fixture::with(form, |options| options.durability = Durability::Background);
    image(&fixture.store, "a", &["r/a:1"]);
    let layer = fixture.store.image("r/a:1").unwrap().layers[0];
    fixture.store.flush();
    let dir = fixture.root().join(format!("layers/sha256-{}", layer.hex()));
    let registered = fixture.options.run.join(format!("layers/sha256-{}", layer.hex()));
    assert!(dir.join("durable").exists(), "the flusher has marked it");
    assert!(!registered.exists());
    // Killed before the flush: registered, so it is good, and it is flushed now.
    fixture.close();
    std::fs::remove_file(dir.join("durable")).unwrap();
    std::fs::write(&registered, "").unwrap();
    fixture.reopen();
    assert!(fixture.store.has_layer(&layer));
    fixture.store.flush();
    assert!(dir.join("durable").exists() && !registered.exists());
    // Power lost before the flush: neither marker nor registration, so layer and image are gone.
    fixture.close();
    std::fs::remove_file(dir.join("durable")).unwrap();
    fixture.reboot();
    assert!(!fixture.store.has_layer(&layer));
    assert_eq!(fixture.store.recovered().removed_layers, [layer]);
    assert_eq!(fixture.store.recovered().removed_images[0].tags().collect::<Vec<_>>(), ["r/a:1"]);
    assert!(fixture.store.images().is_empty());
    // And it can be pulled again.
    image(&fixture.store, "a", &["r/a:1"]);
}

fn damage_is_found_after_a_boot(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let a = image(&fixture.store, "a", &["r/a:1"]);
    image(&fixture.store, "b", &["r/b:1"]);
    image(&fixture.store, "c", &["r/c:1"]);
    // A config of the right length but with other bytes, and a record that is empty.
    let config = fixture.root().join(format!("blobs/sha256-{}", a.hex()));
    std::fs::write(config, "X").unwrap();
    let record = fixture.store.image("r/b:1").unwrap();
    std::fs::write(fixture.root().join(format!("images/sha256-{}.json", record.id.hex())), "").unwrap();
    assert_eq!(fixture.store.blob(a.digest()).unwrap_err().code(), Code::NotFound);
    fixture.reboot();
    let store = &fixture.store;
    assert_eq!(store.images().len(), 1);
    assert!(store.image("r/c:1").is_some());
    assert_eq!(store.recovered().removed_images.iter().map(|image| image.id).collect::<Vec<_>>(), [a]);
    if form == LayerForm::TarErofs {
        let layer = store.image("r/c:1").unwrap().layers[0];
        let tar = fixture.root().join(format!("layers/sha256-{}/layer.tar", layer.hex()));
        std::fs::OpenOptions::new().write(true).open(tar).unwrap().set_len(512).unwrap();
        fixture.reboot();
        assert_eq!(fixture.store.recovered().removed_layers, [layer]);
        assert!(fixture.store.images().is_empty());
    }
}

fn concurrent_ingests_of_one_layer_agree(form: LayerForm) {
    let fixture = Fixture::new(form);
    let tar = Archive::default().file("a", &[5; 200_000]).end();
    let barrier = Arc::new(Barrier::new(4));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (store, tar, barrier) = (fixture.store.clone(), tar.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                let lease = store.lease();
                let mut ingest = store.ingest_layer(&lease, Algorithm::Sha256).unwrap();
                ingest.push(&tar[..100_000]).unwrap();
                barrier.wait();
                ingest.push(&tar[100_000..]).unwrap();
                let info = ingest.finish(&DiffId::new(Digest::sha256(&tar))).unwrap();
                (lease, info)
            })
        })
        .collect();
    let done: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(done.iter().all(|(_, info)| info.diff_id == done[0].1.diff_id));
    assert_eq!(fixture.store.layers().len(), 1);
    assert_eq!(std::fs::read_dir(fixture.root().join("work")).unwrap().count(), 0);
    // Every one of the leases protects it.
    let (last, rest): (Vec<_>, Vec<_>) = done.into_iter().enumerate().partition(|(index, _)| *index == 2);
    drop(rest);
    assert_eq!(fixture.store.gc().unwrap().layers, 0);
    drop(last);
    assert_eq!(fixture.store.gc().unwrap().layers, 1);
}

/// Pulls, containers and removals of the same few images, all at the same time.
fn everything_at_once(form: LayerForm) {
    let fixture = Fixture::with(form, |options| options.durability = Durability::Background);
    let base = tar("base");
    let threads: Vec<_> = (0..4)
        .map(|worker| {
            let (store, base) = (fixture.store.clone(), base.clone());
            std::thread::spawn(move || {
                for round in 0..12 {
                    let which = (worker + round) % 3;
                    let name = format!("r/app:{which}");
                    let lease = store.lease();
                    let layers =
                        [pushed(&store, &lease, &base), pushed(&store, &lease, &tar(&format!("top{which}")))];
                    let image = new_image(&store, &lease, &format!("config{which}"), &layers, &[&name]);
                    let image = store.commit_image(&lease, image).unwrap();
                    let key = format!("c{worker}-{round}");
                    store.prepare(&key, &image.layers).unwrap();
                    drop(lease);
                    let root = store.mount(&key, &MountOptions::default()).unwrap();
                    assert_eq!(read(&root, "base"), b"base");
                    assert_eq!(read(&root, &format!("top{which}")), format!("top{which}").as_bytes());
                    drop(root);
                    store.remove_image(&image.id).unwrap();
                    store.remove(&key).unwrap();
                    store.gc().unwrap();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let store = &fixture.store;
    store.flush();
    for image in store.images() {
        store.remove_image(&image.id).unwrap();
    }
    store.gc().unwrap();
    assert_eq!(store.images_usage(), crate::Usage::default());
    for place in ["layers", "blobs", "images", "snapshots", "trash", "work"] {
        assert_eq!(std::fs::read_dir(fixture.root().join(place)).unwrap().count(), 0, "{place}");
    }
    assert_eq!(store.release_idle().unwrap(), 0, "mounts of removed layers are left");
    assert_eq!(std::fs::read_dir(fixture.options.run.join("layers")).unwrap().count(), 0);
}

fn device_of(root: &std::os::fd::OwnedFd) -> u64 {
    rustix::fs::fstat(root).unwrap().st_dev
}

fn layers_are_mounted_once_and_released(form: LayerForm) {
    let mut fixture = Fixture::new(form);
    let layer = fixture.ingest(&tar("a")).unwrap().diff_id;
    fixture.store.prepare("c", &[layer]).unwrap();
    let container = fixture.store.mount("c", &MountOptions::default()).unwrap();
    let first = fixture.store.layer_root(&layer).unwrap();
    assert_eq!(device_of(&first), device_of(&fixture.store.layer_root(&layer).unwrap()));
    // The daemon restarts: the same superblock, so the page cache is still shared.
    fixture.reopen();
    assert_eq!(device_of(&first), device_of(&fixture.store.layer_root(&layer).unwrap()));
    assert_eq!(fixture.store.release_idle().unwrap(), 0, "a container uses it");
    drop(container);
    fixture.store.remove("c").unwrap();
    let expected = usize::from(form == LayerForm::TarErofs);
    assert_eq!(fixture.store.release_idle().unwrap(), expected);
    assert_eq!(fixture.store.release_idle().unwrap(), 0);
    // What was handed out stays good, and the next use mounts anew.
    assert_eq!(read(&first, "a"), b"a");
    drop(first);
    assert_eq!(read(&fixture.store.layer_root(&layer).unwrap(), "a"), b"a");
    fixture.store.release_pins().unwrap();
    assert_eq!(read(&fixture.store.layer_root(&layer).unwrap(), "a"), b"a");
}

fn nothing_is_mounted_where_others_see_it(form: LayerForm) {
    let fixture = Fixture::new(form);
    let layer = fixture.ingest(&tar("a")).unwrap().diff_id;
    fixture.store.prepare("c", &[layer]).unwrap();
    let _root = fixture.store.mount("c", &MountOptions::default()).unwrap();
    let own = fixture.outside();
    let mine = || {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mine: Vec<_> =
            table.lines().filter(|line| line.contains(own.to_str().unwrap())).map(str::to_owned).collect();
        mine
    };
    let pins = mine();
    match (form, fixture.store.inner.method) {
        (LayerForm::Directory, Method::Descriptors) => assert_eq!(pins, Vec::<String>::new()),
        _ => {
            assert!(
                pins.len() == 2
                    && pins[0].contains("run/pin ")
                    && pins[1].contains("run/pin/mounts ")
                    && pins[1].contains("nsfs"),
                "{pins:?}"
            );
        }
    }
    fixture.store.release_pins().unwrap();
    assert_eq!(mine(), Vec::<String>::new());
}
