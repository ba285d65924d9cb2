//! Containers of the command line: made by people, kept until they are removed, over reboots too.
//!
//! Each is a record, a snapshot of the store and a log on disk. While one runs it has a pod sandbox and a container of its
//! own id, made by the same code as those of the kubelet and marked as local ([`crate::sandbox::record::LocalPod`]), so
//! that the CRI shows neither. When it ends both go, and the snapshot stays.
//!
//! ```text
//! <root>/local/containers/<id>/record.json   what it is and where it stands; flushed
//!                             /log           what it wrote, as the CRI writes logs
//! <root>/local/volumes/<name>/volume.json
//!                            /_data/         what is mounted
//! <root>/store/…/<id>                        its writable layer, which keeps the layers below it
//! <run>/sandboxes/<id>, <run>/containers/<id>   only while it runs
//! ```
//!
//! [`start::start`] makes a life, [`life::follow`] sees it to its end and asks the restart policy, [`recover`] takes up
//! what an earlier daemon, or the machine before its reboot, has left.

pub mod archive;
pub mod commit;
pub mod create;
pub mod diff;
pub mod events;
pub mod health;
pub mod inspect;
pub mod life;
pub mod limits;
pub mod logs;
pub mod names;
pub mod record;
pub mod recover;
pub mod remove;
pub mod start;
pub mod stop;
pub mod top;
pub mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::container::Container;
use crate::error::Error;
use crate::id::ContainerId;
use crate::table::{Lookup, Table, lock};
use record::{Record, State};

/// All of them.
#[derive(Debug)]
pub struct Local {
    /// By id and name.
    pub containers: Table<String, LocalContainer>,
    /// What happens to them.
    pub events: events::Events,
    /// Volumes are made and removed one at a time.
    pub volumes: Mutex<()>,
    directory: PathBuf,
}

/// One of them in memory.
#[derive(Debug)]
pub struct LocalContainer {
    /// Its id.
    pub id: ContainerId,
    /// Its directory.
    pub directory: PathBuf,
    /// One start, removal or change of name at a time; a stop needs no turn.
    pub turn: tokio::sync::Mutex<()>,
    /// Ends the wait of the restart policy.
    pub wake: Notify,
    /// How it is.
    pub health: Mutex<health::Health>,
    record: Mutex<Record>,
    state: watch::Sender<State>,
    removed: watch::Sender<bool>,
    live: Mutex<Option<Arc<Container>>>,
}

impl Local {
    /// None yet.
    pub fn new(config: &Config) -> Self {
        Self {
            containers: Table::default(),
            events: events::Events::default(),
            volumes: Mutex::new(()),
            directory: config.daemon.root.join("local"),
        }
    }

    /// Where their directories are.
    pub fn containers_directory(&self) -> PathBuf {
        self.directory.join("containers")
    }

    /// Where volumes are.
    pub fn volumes_directory(&self) -> PathBuf {
        self.directory.join("volumes")
    }

    /// Whether a snapshot or container id is one of theirs.
    pub fn owns(&self, id: &str) -> bool {
        self.containers.exact(id).is_some()
    }

    /// The one with this id, name, or unique beginning of an id.
    pub fn find(&self, name: &str) -> Result<Arc<LocalContainer>, Error> {
        let bare = name.strip_prefix('/').unwrap_or(name);
        if let Some(found) = self.containers.exact(bare).or_else(|| self.containers.named(&bare.to_owned())) {
            return Ok(found);
        }
        self.containers.find(bare).map_err(|lookup| match lookup {
            Lookup::Ambiguous => Error::AmbiguousId { kind: "container", prefix: name.to_owned() },
            Lookup::Missing => {
                let all = self.containers.all();
                let known: Vec<_> = all.iter().map(|container| container.record().name).collect();
                let like = names::like(bare, known.iter().map(String::as_str));
                Error::NoSuchContainer {
                    name: name.to_owned(),
                    hint: like.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default(),
                }
            }
        })
    }

    /// A container that was made from an image, or mounts it.
    pub fn user_of_image(&self, image_id: &str) -> Option<Arc<LocalContainer>> {
        self.containers.all().into_iter().find(|container| container.with(|it| it.image_id == image_id))
    }
}

impl LocalContainer {
    /// From its record.
    pub fn new(record: Record, directory: PathBuf) -> Self {
        Self {
            id: record.id.clone(),
            directory,
            turn: tokio::sync::Mutex::new(()),
            wake: Notify::new(),
            health: Mutex::default(),
            state: watch::Sender::new(record.state.clone()),
            removed: watch::Sender::new(false),
            record: Mutex::new(record),
            live: Mutex::new(None),
        }
    }

    /// Where its record is.
    pub fn record_path(&self) -> PathBuf {
        self.directory.join("record.json")
    }

    /// Where its log is.
    pub fn log_path(&self) -> PathBuf {
        self.directory.join(logs::NAME)
    }

    /// A copy of the record.
    pub fn record(&self) -> Record {
        lock(&self.record).clone()
    }

    /// Looks at the record.
    pub fn with<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&lock(&self.record))
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Follows where it stands.
    pub fn follow(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Follows whether it is gone.
    pub fn follow_removal(&self) -> watch::Receiver<bool> {
        self.removed.subscribe()
    }

    /// It is gone.
    pub fn set_removed(&self) {
        self.removed.send_replace(true);
    }

    /// Its container while it runs.
    pub fn live(&self) -> Option<Arc<Container>> {
        lock(&self.live).clone()
    }

    /// It runs, or has ended.
    pub fn set_live(&self, container: Option<Arc<Container>>) {
        *lock(&self.live) = container;
    }

    /// Its container; refuses one that does not run.
    pub fn running(&self) -> Result<Arc<Container>, Error> {
        self.live().ok_or_else(|| Error::State {
            subject: format!("container {}", self.record().name),
            state: self.state().name().to_owned(),
            hint: "it must be running; start it first".to_owned(),
        })
    }

    /// Changes the record, on disk first, and tells the followers. Blocks for a flush.
    pub fn change(&self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut record = lock(&self.record);
        let mut next = record.clone();
        change(&mut next);
        record::write(&self.record_path(), &next)?;
        self.state.send_replace(next.state.clone());
        *record = next;
        Ok(())
    }

    /// Records something that has happened, whether or not the disk takes it.
    pub fn observe(&self, change: impl Fn(&mut Record)) {
        if let Err(error) = self.change(&change) {
            tracing::error!(container_id = %self.id, error = error.chain(), "record not written");
            let mut record = lock(&self.record);
            change(&mut record);
            self.state.send_replace(record.state.clone());
        }
    }

    /// Tells the listeners of something that has happened to it.
    pub fn tell(&self, local: &Local, action: impl Into<String>, more: &[(&str, String)]) {
        let mut attributes: BTreeMap<String, String> = self.with(|record| {
            let mut attributes = record.settings.labels.clone();
            attributes.insert("name".to_owned(), record.name.clone());
            attributes.insert("image".to_owned(), record.settings.image.clone());
            attributes
        });
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        local.events.tell("container", action, self.id.as_str(), attributes);
    }
}
