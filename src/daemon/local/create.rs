//! Create: layers, volumes, record; all of it or nothing.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Config as ImageConfig, ImageConfiguration};
use pinnace_spec::{image, signal};
use pinnace_store::{ImageRecord, MountOptions, Persistence};

use super::record::{self, HealthCheck, MountKind, Record, Settings, State};
use super::{LocalContainer, names, volumes};
use crate::clock;
use crate::error::{Error, Within as _};
use crate::id::ContainerId;
use crate::node::Node;
use crate::record as disk;

/// Names that are tried for a container without one.
const NAMES: u32 = 64;

/// What was made.
#[derive(Debug)]
pub struct Created {
    /// The container.
    pub container: Arc<LocalContainer>,
    /// What the caller should know.
    pub warnings: Vec<String>,
}

/// Makes a container.
pub async fn create(node: &Node, name: &str, settings: Settings) -> Result<Created, Error> {
    let wanted = Some(name).filter(|name| !name.is_empty()).map(names::check).transpose()?;
    node.mutation(|node| async move {
        let id = ContainerId::random();
        let name = reserve(&node, wanted, &id)?;
        let what = format!("create container {name}");
        let (own, made) = (id.clone(), name.clone());
        let built = node
            .blocking(move |node| build(node, &own, &made, settings).inspect_err(|_| undo(node, &own)))
            .await;
        match built {
            Ok(created) => {
                let container = Arc::clone(&created.container);
                node.local.containers.insert(id.as_str(), Arc::clone(&container));
                container.tell(&node.local, "create", &[]);
                tracing::info!(container_id = %id, name, "local container created");
                Ok(created)
            }
            Err(error) => {
                node.local.containers.release(&name, id.as_str());
                Err(error.within(what))
            }
        }
    })
    .await
}

/// Takes a name, the wanted one or a free one.
fn reserve(node: &Node, wanted: Option<String>, id: &ContainerId) -> Result<String, Error> {
    let containers = &node.local.containers;
    if let Some(name) = wanted {
        return match containers.reserve(&name, id.as_str()) {
            Ok(()) => Ok(name),
            Err(holder) => Err(Error::Taken { kind: "container name", name, holder }),
        };
    }
    let candidates = (0..NAMES).map(|attempt| names::random(id.as_str(), attempt));
    let mut free = candidates.filter(|name| containers.reserve(name, id.as_str()).is_ok());
    free.next().ok_or_else(|| Error::invalid("name", "no free name was found; give one (--name)"))
}

fn build(node: &Node, id: &ContainerId, name: &str, settings: Settings) -> Result<Created, Error> {
    let image = crate::image::find(node, &settings.image)
        .ok_or_else(|| Error::ImageNotFound(settings.image.clone()))?;
    let image_config = configuration(node, &image)?;
    let config = image_part(&image_config)?;
    check(node, &settings, config.as_ref())?;
    let key = id.as_str();
    node.store.prepare(key, &image.layers)?;
    let mut warnings = Vec::new();
    let volumes = volumes(node, key, &settings, config.as_ref(), &mut warnings)?;
    let directory = node.local.containers_directory().join(key);
    disk::make_directory(&directory)?;
    let record = Record {
        version: record::VERSION,
        id: id.clone(),
        name: name.to_owned(),
        created_at_ns: clock::realtime_ns(),
        settings,
        image_id: image.id.to_string(),
        image_config,
        layers: image.layers.clone(),
        volumes,
        state: State::Created { code: 0, error: String::new() },
        restarts: 0,
        stopped_by_hand: false,
        ports: Vec::new(),
    };
    record::write(&directory.join("record.json"), &record)?;
    Ok(Created { container: Arc::new(LocalContainer::new(record, directory)), warnings })
}

fn undo(node: &Node, id: &ContainerId) {
    let directory = node.local.containers_directory().join(id.as_str());
    let undone = disk::remove_directory(&directory).map_err(Error::from);
    let undone = undone.and(node.store.remove(id.as_str()).map(drop).map_err(Error::from));
    let undone = undone.and(volumes::remove_made_for(node, id.as_str()));
    if let Err(error) = undone {
        tracing::error!(container_id = %id, error = error.chain(), "undo a failed container");
    }
}

/// The image's configuration with everything in it, also what the OCI's words do not cover.
fn configuration(node: &Node, image: &ImageRecord) -> Result<serde_json::Value, Error> {
    let what = || format!("configuration of image {}", image.id);
    let bytes = node.store.blob(image.id.digest()).within(what)?;
    let json = |source| disk::Error::Json { path: image.id.to_string().into(), source };
    serde_json::from_slice(&bytes).map_err(json).within(what)
}

/// The part of it that says how containers run.
pub fn image_part(configuration: &serde_json::Value) -> Result<Option<ImageConfig>, Error> {
    let parsed: ImageConfiguration = serde_json::from_value(configuration.clone())
        .map_err(|source| disk::Error::Json { path: "image configuration".into(), source })?;
    Ok(parsed.config().clone())
}

/// Entry point and arguments, as docker puts them together: an entry point of the container's own clears the image's
/// command.
pub fn argv(settings: &Settings, image: Option<&ImageConfig>) -> (Vec<String>, Vec<String>) {
    let of_image = |list: Option<&Option<Vec<String>>>| list.and_then(Clone::clone).unwrap_or_default();
    let command = || {
        if settings.command.is_empty() {
            of_image(image.map(ImageConfig::cmd))
        } else {
            settings.command.clone()
        }
    };
    match &settings.entrypoint {
        // An empty one means none.
        Some(own) => {
            let own = own.iter().filter(|part| !part.is_empty()).cloned().collect();
            (own, settings.command.clone())
        }
        None => (of_image(image.map(ImageConfig::entrypoint)), command()),
    }
}

/// What can be known to be wrong before anything is made.
fn check(node: &Node, settings: &Settings, image: Option<&ImageConfig>) -> Result<(), Error> {
    let (entrypoint, command) = argv(settings, image);
    if entrypoint.is_empty() && command.is_empty() {
        let reason = "the image has none; say what to run";
        return Err(Error::invalid("command", reason));
    }
    if !settings.stop_signal.is_empty() {
        signal::parse(&settings.stop_signal)
            .map_err(|error| Error::invalid("stop_signal", error.to_string()))?;
    } else {
        image::stop_signal(image)?;
    }
    image::working_dir(image, &settings.working_dir)?;
    for mount in &settings.mounts {
        let target = Path::new(&mount.target);
        if !target.is_absolute() || target == Path::new("/") {
            let reason = format!("{:?} is no absolute path below the root", mount.target);
            return Err(Error::invalid("mounts.target", reason));
        }
        match mount.kind {
            MountKind::Bind if !Path::new(&mount.source).is_absolute() => {
                return Err(Error::invalid("mounts.source", format!("{:?} is not absolute", mount.source)));
            }
            MountKind::Bind if !mount.make_source && !Path::new(&mount.source).exists() => {
                let reason = format!("{:?} does not exist", mount.source);
                return Err(Error::invalid("mounts.source", reason));
            }
            MountKind::Volume if !mount.source.is_empty() => drop(volumes::check_name(&mount.source)?),
            MountKind::Image if crate::image::find(node, &mount.source).is_none() => {
                return Err(Error::ImageNotFound(mount.source.clone()));
            }
            MountKind::Bind | MountKind::Volume | MountKind::Tmpfs | MountKind::Image => {}
        }
    }
    if settings.auto_remove && settings.restart != record::Restart::No {
        return Err(Error::invalid(
            "restart",
            "goes against removing the container when it has ended (--rm)",
        ));
    }
    Ok(())
}

/// Makes the volumes that it mounts, and fills those that are new; the names of those that were made for it alone.
fn volumes(
    node: &Node,
    id: &str,
    settings: &Settings,
    image: Option<&ImageConfig>,
    warnings: &mut Vec<String>,
) -> Result<BTreeMap<String, String>, Error> {
    let of_settings = settings.mounts.iter().filter(|mount| mount.kind == MountKind::Volume);
    let mut wanted: Vec<(PathBuf, String, bool)> = of_settings
        .map(|mount| (PathBuf::from(&mount.target), mount.source.clone(), !mount.no_copy))
        .collect();
    for path in image::volumes(image)? {
        if settings.mounts.iter().all(|mount| Path::new(&mount.target) != path) {
            wanted.push((path, String::new(), true));
        }
    }
    let mut own = BTreeMap::new();
    if wanted.is_empty() {
        return Ok(own);
    }
    let options = MountOptions { persistence: Persistence::Durable, ..MountOptions::default() };
    let rootfs = node.store.mount(id, &options)?;
    for (target, name, fill) in wanted {
        let volume = if name.is_empty() {
            volumes::create(node, "", BTreeMap::new(), Some(id))?
        } else {
            volumes::create(node, &name, BTreeMap::new(), None)?
        };
        if name.is_empty() {
            own.insert(target.display().to_string(), volume.name.clone());
        }
        let data = volumes::data(node, &volume.name);
        if fill && volumes::is_empty(&data)? {
            crate::container::volumes::fill(rootfs.as_fd(), &target, &data, (0, 0))?;
        } else if fill && name.is_empty() {
            warnings.push(format!("volume {} is not empty", volume.name));
        }
    }
    Ok(own)
}

/// The check of its health: the container's own, else that of the image; `None` without one.
pub fn health(record: &Record) -> Option<HealthCheck> {
    let image = image_health(&record.image_config);
    let health = match (&record.settings.health, image) {
        (None, image) => image?,
        (Some(own), image) => {
            let mut own = own.clone();
            if let Some(image) = image {
                if own.test.is_empty() {
                    own.test = image.test;
                }
                for (own, image) in [
                    (&mut own.interval, image.interval),
                    (&mut own.timeout, image.timeout),
                    (&mut own.start_period, image.start_period),
                    (&mut own.start_interval, image.start_interval),
                ] {
                    if own.is_zero() {
                        *own = image;
                    }
                }
                if own.retries == 0 {
                    own.retries = image.retries;
                }
            }
            own
        }
    };
    let kind = health.test.first().map(String::as_str);
    (matches!(kind, Some("CMD" | "CMD-SHELL")) && health.test.len() > 1).then_some(health)
}

fn image_health(configuration: &serde_json::Value) -> Option<HealthCheck> {
    let check = configuration.get("config")?.get("Healthcheck")?;
    let duration = |name: &str| {
        let nanoseconds = check.get(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
        std::time::Duration::from_nanos(nanoseconds)
    };
    let test = check.get("Test")?.as_array()?;
    Some(HealthCheck {
        test: test.iter().filter_map(|part| part.as_str().map(ToOwned::to_owned)).collect(),
        interval: duration("Interval"),
        timeout: duration("Timeout"),
        start_period: duration("StartPeriod"),
        start_interval: duration("StartInterval"),
        retries: check
            .get("Retries")
            .and_then(serde_json::Value::as_u64)
            .and_then(|retries| u32::try_from(retries).ok())
            .unwrap_or(0),
    })
}
