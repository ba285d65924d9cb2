//! What a node does to its store: pulls, retags, removals, restarts; and what it was promised meanwhile.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use pinnace_store::{
    Algorithm, DiffId, Digest, Durability, ImageId, LayerForm, ManifestRecord, NewImage, Options, Store,
};
use rustix::fs::{Mode, OFlags};

use crate::Fault;
use crate::disk::Disk;
use crate::random::Random;

/// What has to be there after a cut between these two moments, counted in events of the disk.
#[derive(Clone, Debug)]
pub struct Promise {
    pub from: usize,
    pub until: Option<usize>,
    pub image: ImageId,
    pub layers: Vec<DiffId>,
}

/// How the store under test is opened.
pub fn options(root: &Path, run: &Path, form: LayerForm, durability: Durability) -> Options {
    let mut options = Options::new(root, run);
    options.form = Some(form);
    options.durability = durability;
    options.limits.reserve_bytes = 1 << 20;
    options
}

/// A layer of files whose names say what is in them.
fn layer(random: &mut Random) -> Result<Vec<u8>, Fault> {
    let mut builder = tar::Builder::new(Vec::new());
    for _ in 0..1 + random.below(12) {
        let seed = random.next();
        let length = if random.percent(10) { random.below(1 << 20) } else { random.below(30_000) };
        let content = Random::new(seed).bytes(length);
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(length)?);
        header.set_mode(0o644);
        header.set_mtime(1);
        builder.append_data(&mut header, format!("{seed}-{length}"), content.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

/// Reads all files of a layer and compares them with their names; answers how many there are.
pub fn verify_files(root: &impl std::os::fd::AsFd) -> Result<usize, Fault> {
    let mut seen = 0;
    let dir = rustix::fs::openat(root, ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name().to_str()?.to_owned();
        let Some((seed, length)) = name.split_once('-') else { continue };
        let file = rustix::fs::openat(&dir, name.as_str(), OFlags::RDONLY, Mode::empty())?;
        let mut found = Vec::new();
        std::io::Read::read_to_end(&mut fs::File::from(file), &mut found)?;
        if found != Random::new(seed.parse()?).bytes(length.parse()?) {
            return Err(format!("file {name} of a layer is torn").into());
        }
        seen += 1;
    }
    Ok(seen)
}

/// Does `steps` things to a store on the disk, and answers the promises it was given.
pub fn run(
    disk: &Disk,
    mount: &Path,
    run: &Path,
    form: LayerForm,
    durability: Durability,
    steps: usize,
    random: &mut Random,
) -> Result<Vec<Promise>, Fault> {
    let root = mount.join("store");
    let open = || Store::open(options(&root, run, form, durability));
    let mut store = open()?;
    let mut promises: Vec<Promise> = Vec::new();
    let mut images: BTreeMap<ImageId, Vec<DiffId>> = BTreeMap::new();
    for step in 0..steps {
        match random.below(10) {
            0..=4 => {
                let lease = store.lease();
                let mut layers = Vec::new();
                // Most images share a layer with another one.
                if random.percent(60)
                    && let Some(base) =
                        images.values().nth(random.below(images.len())).and_then(|l| l.first())
                    && lease.hold_layer(base).is_some()
                {
                    layers.push(*base);
                }
                for _ in 0..1 + random.below(3) {
                    let bytes = layer(random)?;
                    let mut ingest = store.ingest_layer(&lease, Algorithm::Sha256)?;
                    for piece in bytes.chunks(64 << 10) {
                        ingest.push(piece)?;
                    }
                    layers.push(ingest.finish(&DiffId::new(Digest::sha256(&bytes)))?.diff_id);
                }
                let (config, manifest) = (random.bytes(700), random.bytes(900));
                let (id, digest) = (Digest::sha256(&config), Digest::sha256(&manifest));
                lease.put_blob(&id, &config)?;
                lease.put_blob(&digest, &manifest)?;
                store.commit_image(
                    &lease,
                    NewImage {
                        id: ImageId::new(id),
                        manifests: vec![ManifestRecord { digest, media_type: "manifest".to_owned() }],
                        layers: layers.clone(),
                        names: vec![format!("r/app:{}", random.below(6))],
                        created: None,
                        user: String::new(),
                        labels: BTreeMap::new(),
                        pinned: false,
                    },
                )?;
                if durability == Durability::Background && random.percent(30) {
                    store.flush();
                }
                if durability == Durability::Eager {
                    let (from, image) = (disk.events(), ImageId::new(id));
                    promises.push(Promise { from, until: None, image, layers: layers.clone() });
                }
                images.insert(ImageId::new(id), layers);
            }
            5 | 6 => {
                let chosen = images.keys().nth(random.below(images.len())).copied();
                if let Some(id) = chosen {
                    let now = disk.events();
                    for promise in promises.iter_mut().filter(|promise| promise.image == id) {
                        promise.until.get_or_insert(now);
                    }
                    store.remove_image(&id)?;
                    images.remove(&id);
                }
            }
            7 => {
                if let Some(id) = images.keys().nth(random.below(images.len())) {
                    store.tag(id, &format!("r/app:{}", random.below(6)))?;
                }
            }
            8 => {
                store.gc()?;
            }
            _ => {
                // A daemon that is replaced without a boot.
                store.release_pins()?;
                drop(store);
                store = open()?;
            }
        }
        if random.percent(60) {
            // Somebody else's fsync(2): it commits whatever the store has half done.
            let mut noise = fs::File::create(mount.join(format!("noise{}", step % 3)))?;
            noise.write_all(&random.bytes(100))?;
            noise.sync_all()?;
        }
    }
    if durability == Durability::Background {
        store.flush();
        let from = disk.events();
        let kept = images.into_iter().map(|(image, layers)| Promise { from, until: None, image, layers });
        promises.extend(kept);
        fs::File::create(mount.join("noise"))?.sync_all()?;
    }
    store.release_pins()?;
    Ok(promises)
}
