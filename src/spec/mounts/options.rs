//! Mount options of the OCI runtime spec, sorted into what the kernel takes them as.
//!
//! | option | becomes |
//! |---|---|
//! | `ro`, `nosuid`, `noexec`, `noatime`, ... | an attribute of the mount |
//! | `rro`, `rnosuid`, ... | the same, of the mount and everything below it (mount_setattr(2), `AT_RECURSIVE`) |
//! | `suid`, `exec`, `rrw`, ... | an attribute taken away from a bind mount |
//! | `private`, `rslave`, ... | propagation, always of the whole tree |
//! | `bind`, `rbind`, `tmpcopyup` | what is mounted |
//! | anything else | an option of the file system |
//!
//! Of contradicting options the last one counts. `rw` only takes back an earlier `ro`: every CRI mount that is not
//! read-only carries it, and a mount that the host made read-only stays so.

use pinnace_sys::mount as attr;

use crate::Error;

const NODIRATIME: u64 = 0x80;
const NOSYMFOLLOW: u64 = 0x20_0000;
const RELATIME: u64 = 0x00;
const NOATIME: u64 = 0x10;
const STRICTATIME: u64 = 0x20;

/// Attributes to set and to clear at one reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// One of the access time choices; these are values of one field, not bits.
    pub(crate) atime: Option<u64>,
}

/// Parsed options of one mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) bind: Option<Bind>,
    /// Of the mount itself.
    pub(crate) own: Attributes,
    /// Of the mount and everything below.
    pub(crate) tree: Attributes,
    /// `MS_*`, when one is named.
    pub(crate) propagation: Option<u64>,
    pub(crate) copy_up: bool,
    /// For the file system.
    pub(crate) data: Vec<String>,
}

/// How far a bind mount reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bind {
    Mount,
    Tree,
}

impl Attributes {
    /// Everything to set, the access time included.
    pub(crate) fn all_set(&self) -> u64 {
        self.set | self.atime.unwrap_or(0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn set(&mut self, bits: u64) {
        self.set |= bits;
        self.clear &= !bits;
    }

    fn clear(&mut self, bits: u64) {
        self.set &= !bits;
        self.clear |= bits;
    }
}

impl Options {
    /// `field` names the mount in errors.
    pub(crate) fn parse(field: &str, list: &[String]) -> Result<Self, Error> {
        let mut options = Self::default();
        for option in list {
            options.take(field, option)?;
        }
        Ok(options)
    }

    fn take(&mut self, field: &str, option: &str) -> Result<(), Error> {
        // fsconfig(2) takes keys and values of at most 255 bytes.
        if option.is_empty() || option.len() > 511 || option.contains('\0') {
            return Err(Error::invalid(
                field,
                format!("option {:?}", option.chars().take(64).collect::<String>()),
            ));
        }
        match option {
            "defaults" | "async" | "nomand" | "loud" | "noiversion" | "nolazytime" | "rnorelatime"
            | "norelatime" | "rnostrictatime" | "nostrictatime" => {}
            "bind" => self.bind = Some(Bind::Mount),
            "rbind" => self.bind = Some(Bind::Tree),
            "private" | "rprivate" => self.propagation = Some(attr::PRIVATE),
            "slave" | "rslave" => self.propagation = Some(attr::SLAVE),
            "shared" | "rshared" => self.propagation = Some(attr::SHARED),
            "tmpcopyup" => self.copy_up = true,
            "rw" => self.own.set &= !attr::RDONLY,
            "unbindable" | "runbindable" | "idmap" | "ridmap" | "remount" => {
                return Err(Error::unsupported(field, format!("mount option {option}")));
            }
            _ => {
                if !flag(&mut self.own, option)
                    && !option.strip_prefix('r').is_some_and(|name| flag(&mut self.tree, name))
                {
                    self.data.push(option.to_owned());
                }
            }
        }
        Ok(())
    }
}

/// Takes an attribute by its name; says whether it is one.
fn flag(attributes: &mut Attributes, name: &str) -> bool {
    match name {
        "ro" => attributes.set(attr::RDONLY),
        // Without a prefix taken care of before: here it is `rrw`, which says so on purpose.
        "rw" => attributes.clear(attr::RDONLY),
        "nosuid" => attributes.set(attr::NOSUID),
        "suid" => attributes.clear(attr::NOSUID),
        "nodev" => attributes.set(attr::NODEV),
        "dev" => attributes.clear(attr::NODEV),
        "noexec" => attributes.set(attr::NOEXEC),
        "exec" => attributes.clear(attr::NOEXEC),
        "nosymfollow" => attributes.set(NOSYMFOLLOW),
        "symfollow" => attributes.clear(NOSYMFOLLOW),
        "nodiratime" => attributes.set(NODIRATIME),
        "diratime" => attributes.clear(NODIRATIME),
        "relatime" | "atime" => attributes.atime = Some(RELATIME),
        "noatime" => attributes.atime = Some(NOATIME),
        "strictatime" => attributes.atime = Some(STRICTATIME),
        _ => return false,
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustix::mount::MountAttrFlags as Kernel;

    use super::*;

    fn parse(list: &[&str]) -> Options {
        let list: Vec<String> = list.iter().map(|option| (*option).to_owned()).collect();
        Options::parse("mount /x", &list).unwrap()
    }

    #[test]
    fn attribute_values_are_the_kernels() {
        for (ours, kernel) in [
            (attr::RDONLY, Kernel::MOUNT_ATTR_RDONLY),
            (attr::NOSUID, Kernel::MOUNT_ATTR_NOSUID),
            (attr::NODEV, Kernel::MOUNT_ATTR_NODEV),
            (attr::NOEXEC, Kernel::MOUNT_ATTR_NOEXEC),
            (attr::ATIME, Kernel::MOUNT_ATTR__ATIME),
            (RELATIME, Kernel::MOUNT_ATTR_RELATIME),
            (NOATIME, Kernel::MOUNT_ATTR_NOATIME),
            (STRICTATIME, Kernel::MOUNT_ATTR_STRICTATIME),
            (NODIRATIME, Kernel::MOUNT_ATTR_NODIRATIME),
            (NOSYMFOLLOW, Kernel::MOUNT_ATTR_NOSYMFOLLOW),
        ] {
            assert_eq!(ours, u64::from(kernel.bits()));
        }
    }

    #[test]
    fn the_last_of_contradicting_options_counts() {
        assert_eq!(parse(&["ro", "rw"]).own, Attributes::default());
        assert_eq!(parse(&["rw", "ro"]).own.set, attr::RDONLY);
        assert_eq!(parse(&["noexec", "exec"]).own, Attributes { clear: attr::NOEXEC, ..Default::default() });
        assert_eq!(parse(&["exec", "noexec"]).own, Attributes { set: attr::NOEXEC, ..Default::default() });
        assert_eq!(parse(&["noatime", "relatime"]).own.atime, Some(RELATIME));
        assert_eq!(parse(&["shared", "rprivate"]).propagation, Some(attr::PRIVATE));
    }

    #[test]
    fn recursive_options_stay_apart() {
        let options = parse(&["rbind", "rro", "nosuid", "rnodev", "rslave"]);
        assert_eq!(options.bind, Some(Bind::Tree));
        assert_eq!(options.own.set, attr::NOSUID);
        assert_eq!(options.tree.set, attr::RDONLY | attr::NODEV);
        assert_eq!(options.propagation, Some(attr::SLAVE));
        assert_eq!(parse(&["rrw"]).tree.clear, attr::RDONLY);
        assert_eq!(parse(&["rrelatime"]).tree.atime, Some(RELATIME));
        assert!(options.data.is_empty());
    }

    #[test]
    fn the_rest_is_for_the_file_system() {
        assert_eq!(
            parse(&["size=64m", "mode=1777", "newinstance", "nosuid"]).data,
            ["size=64m", "mode=1777", "newinstance"]
        );
        for refused in ["", "a\0b", "unbindable", "ridmap", "remount", &"x".repeat(512)] {
            assert!(Options::parse("f", &[refused.to_owned()]).is_err(), "{refused:?}");
        }
    }

    proptest! {
        #[test]
        fn set_and_clear_never_overlap(picks in proptest::collection::vec(
            proptest::sample::select(vec!["ro", "rw", "suid", "nosuid", "exec", "noexec", "rro", "rrw", "dev", "nodev", "noatime"]), 0..12)) {
            let options = parse(&picks);
            for attributes in [options.own, options.tree] {
                prop_assert_eq!(attributes.set & attributes.clear, 0);
                prop_assert_eq!(attributes.set & attr::ATIME, 0);
            }
        }
    }
}
