//! SELinux labels of pods and containers (rule R18).
//!
//! ```text
//! policy's defaults ──► pod: what it asks for, part by part; a level of its own unless it names one
//!                        └──► container: the same over the pod's ──► process label   ─► /proc/…/attr/exec, read back
//!                                                                └─► file label      ─► context= of every mount of ours,
//!                                                                                       volumes that are to be relabelled
//! ```
//! Where the kernel runs SELinux, a label that cannot be had is an error. Where it does not, what a pod asks for has no
//! meaning: that is what Kubernetes promises of `seLinuxOptions`, and charts for all kinds of nodes rely on it.
//! `container.selinux = "required"` is for nodes on which that must not happen.

mod context;
pub mod relabel;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use crate::config::SelinuxMode;
use crate::error::Error;
use crate::table::lock;
use context::{Context, Defaults};

/// Categories of the level that a pod gets: `c0` to `c1023`, as policies have them.
const CATEGORIES: u32 = 1024;

/// Parts of a label that are asked for; an empty one is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// SELinux user.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type, or domain.
    #[serde(rename = "type")]
    pub kind: String,
    /// Level or range: `s0:c1,c2`.
    pub level: String,
}

impl Options {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses what would be another part of the label, or no label at all.
    pub fn check(&self, field: &str) -> Result<(), Error> {
        for (name, part, extra) in [
            ("user", &self.user, ""),
            ("role", &self.role, ""),
            ("type", &self.kind, ""),
            ("level", &self.level, ":,"),
        ] {
            let fine = |byte: u8| {
                byte.is_ascii_alphanumeric() || b"_.-".contains(&byte) || extra.as_bytes().contains(&byte)
            };
            if part.len() > 1024 || !part.bytes().all(fine) {
                let reason = format!("{part:?} is no part of an SELinux label");
                return Err(Error::invalid(format!("{field}.{name}"), reason));
            }
        }
        Ok(())
    }
}

/// What processes and files are labelled with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Of processes; empty for those of privileged containers, which have what the policy gives them.
    pub process: String,
    /// Of files.
    pub file: String,
}

/// The node's SELinux.
#[derive(Debug)]
pub struct Selinux {
    mode: SelinuxMode,
    /// None where the kernel runs without it.
    defaults: Option<Defaults>,
    /// Levels of living pods.
    levels: Mutex<HashSet<String>>,
}

impl Selinux {
    /// With the defaults of the policy that this machine has.
    pub fn new(is_enabled: bool, mode: SelinuxMode) -> Self {
        let defaults = is_enabled.then(|| Defaults::read(Path::new("/etc/selinux")));
        Self { mode, defaults, levels: Mutex::default() }
    }

    /// Labels of a new pod; its level is nobody else's until it is released.
    pub fn of_pod(&self, asked: &Options) -> Result<Option<Labels>, Error> {
        let Some(defaults) = self.defaults(asked)? else { return Ok(None) };
        let mut labels = defaults.labels();
        let mut levels = lock(&self.levels);
        // So many pods have no room on a machine that each random pair is taken.
        let own = (0..CATEGORIES).map(|_| random_level()).find(|level| !levels.contains(level));
        let own = own.ok_or_else(|| Error::State {
            subject: "SELinux".to_owned(),
            state: "out of levels".to_owned(),
            hint: "every pair of categories is a pod's; remove pods".to_owned(),
        })?;
        let level = if asked.level.is_empty() { own } else { asked.level.clone() };
        labels.merge(&Options { level: level.clone(), ..asked.clone() });
        if asked.level.is_empty() {
            levels.insert(level);
        }
        Ok(Some(labels.finish()))
    }

    /// Labels of a container of a pod.
    pub fn of_container(
        &self,
        pod: Option<&Labels>,
        asked: &Options,
        privileged: bool,
    ) -> Result<Option<Labels>, Error> {
        let Some(defaults) = self.defaults(asked)? else { return Ok(None) };
        // A pod of before SELinux was enabled has none.
        let mut labels = pod.map_or_else(|| defaults.labels(), Pair::of);
        labels.merge(asked);
        let mut labels = labels.finish();
        if privileged {
            labels.process.clear();
        }
        Ok(Some(labels))
    }

    /// A pod of an earlier daemon has these.
    pub fn found(&self, labels: &Labels) {
        lock(&self.levels).extend(Context::parse(&labels.file).map(|context| context.level));
    }

    /// A pod that had these is gone.
    pub fn release(&self, labels: &Labels) {
        if let Some(context) = Context::parse(&labels.file) {
            lock(&self.levels).remove(&context.level);
        }
    }

    fn defaults(&self, asked: &Options) -> Result<Option<&Defaults>, Error> {
        if self.defaults.is_none() && self.mode == SelinuxMode::Required && !asked.is_empty() {
            return Err(Error::State {
                subject: "SELinux".to_owned(),
                state: "not enabled in this kernel".to_owned(),
                hint: "selinux_options are asked for, and container.selinux = \"required\"".to_owned(),
            });
        }
        Ok(self.defaults.as_ref())
    }
}

/// Both labels while they are put together.
struct Pair {
    process: Context,
    file: Context,
}

impl Pair {
    fn of(labels: &Labels) -> Self {
        let of = |label: &str, other: &str| {
            Context::parse(label).or_else(|| Context::parse(other)).unwrap_or_default()
        };
        Self { process: of(&labels.process, &labels.file), file: of(&labels.file, &labels.process) }
    }

    /// All parts count for the process; of a file's, role and type are the policy's.
    fn merge(&mut self, asked: &Options) {
        let set = |part: &mut String, asked: &str| {
            if !asked.is_empty() {
                asked.clone_into(part);
            }
        };
        set(&mut self.process.user, &asked.user);
        set(&mut self.process.role, &asked.role);
        set(&mut self.process.kind, &asked.kind);
        set(&mut self.process.level, &asked.level);
        set(&mut self.file.user, &asked.user);
        set(&mut self.file.level, &asked.level);
    }

    fn finish(self) -> Labels {
        Labels { process: self.process.to_string(), file: self.file.to_string() }
    }
}

fn random_level() -> String {
    let mut bytes = [0_u8; 8];
    crate::id::fill_random(&mut bytes);
    let [a, b] = [&bytes[..4], &bytes[4..]].map(|half| {
        let mut number = [0_u8; 4];
        number.copy_from_slice(half);
        u32::from_ne_bytes(number) % CATEGORIES
    });
    let (low, high) = (a.min(b), a.max(b));
    // A pair, as policies and tools expect it.
    if low == high { format!("s0:c{low}") } else { format!("s0:c{low},c{high}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selinux() -> Selinux {
        let defaults = Some(Defaults::built_in());
        Selinux { mode: SelinuxMode::Auto, defaults, levels: Mutex::default() }
    }

    fn asked(user: &str, role: &str, kind: &str, level: &str) -> Options {
        let [user, role, kind, level] = [user, role, kind, level].map(str::to_owned);
        Options { user, role, kind, level }
    }

    fn level(label: &str) -> String {
        Context::parse(label).unwrap().level
    }

    #[test]
    fn pods_have_levels_of_their_own() {
        let selinux = selinux();
        let mut seen = HashSet::new();
        for _ in 0..300 {
            let labels = selinux.of_pod(&Options::default()).unwrap().unwrap();
            assert!(labels.process.starts_with("system_u:system_r:container_t:s0:c"), "{labels:?}");
            assert!(labels.file.starts_with("system_u:object_r:container_file_t:s0:c"), "{labels:?}");
            assert_eq!(level(&labels.process), level(&labels.file));
            assert!(seen.insert(level(&labels.file)), "{labels:?}");
        }
        let labels = selinux.of_pod(&Options::default()).unwrap().unwrap();
        selinux.release(&labels);
        assert!(!lock(&selinux.levels).contains(&level(&labels.file)));
        selinux.found(&labels);
        assert!(lock(&selinux.levels).contains(&level(&labels.file)));
    }

    #[test]
    fn parts_that_are_asked_for_replace_those_that_are_not() {
        let selinux = selinux();
        let pod = selinux.of_pod(&asked("", "", "svirt_t", "s0:c1,c2")).unwrap().unwrap();
        assert_eq!(pod.process, "system_u:system_r:svirt_t:s0:c1,c2");
        assert_eq!(pod.file, "system_u:object_r:container_file_t:s0:c1,c2");
        let of = |asked: &Options, privileged| {
            selinux.of_container(Some(&pod), asked, privileged).unwrap().unwrap()
        };
        assert_eq!(of(&Options::default(), false), pod);
        let own = of(&asked("u", "r", "spc_t", "s0"), false);
        assert_eq!((&*own.process, &*own.file), ("u:r:spc_t:s0", "u:object_r:container_file_t:s0"));
        let typed = of(&asked("", "", "spc_t", ""), false);
        assert_eq!(typed.process, "system_u:system_r:spc_t:s0:c1,c2", "the level is the pod's");
        let privileged = of(&Options::default(), true);
        assert_eq!((&*privileged.process, &*privileged.file), ("", &*pod.file));
    }

    #[test]
    fn without_selinux_labels_mean_nothing_unless_they_must() {
        let without = |mode| Selinux { mode, defaults: None, levels: Mutex::default() };
        let some = asked("", "", "spc_t", "");
        assert_eq!(without(SelinuxMode::Auto).of_pod(&some).unwrap(), None);
        assert_eq!(without(SelinuxMode::Auto).of_container(None, &some, false).unwrap(), None);
        assert_eq!(without(SelinuxMode::Required).of_pod(&Options::default()).unwrap(), None);
        assert!(without(SelinuxMode::Required).of_pod(&some).is_err());
        assert!(without(SelinuxMode::Required).of_container(None, &some, false).is_err());
    }

    #[test]
    fn parts_are_parts() {
        for wrong in ["a:b", "a b", "a\n", "a\0", "\u{e9}", "a\""] {
            assert!(asked("", "", wrong, "").check("f").is_err(), "{wrong:?}");
        }
        for wrong in ["s0 ", "s0\n", "s0;x"] {
            assert!(asked("", "", "", wrong).check("f").is_err(), "{wrong:?}");
        }
        assert!(asked("user_u", "role_r", "type_t", "s0-s15:c0.c1023").check("f").is_ok());
        assert!(asked("", "", "", "s0:c1,c2").check("f").is_ok());
    }
}
