//! Labels in their parts, and those that the machine's policy has for containers.

use std::fmt;
use std::path::Path;

use super::Pair;

/// `user:role:type:level`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Context {
    pub(super) user: String,
    pub(super) role: String,
    pub(super) kind: String,
    pub(super) level: String,
}

impl Context {
    /// A policy without levels has three parts only.
    pub(super) fn parse(label: &str) -> Option<Self> {
        let mut parts = label.splitn(4, ':').map(str::to_owned);
        Some(Self {
            user: parts.next().filter(|user| !user.is_empty())?,
            role: parts.next()?,
            kind: parts.next()?,
            level: parts.next().unwrap_or_default(),
        })
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        if self.level.is_empty() { Ok(()) } else { write!(f, ":{}", self.level) }
    }
}

/// What the policy has for containers.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    process: Context,
    file: Context,
}

impl Defaults {
    /// Those of container-selinux, which all current distributions with SELinux have.
    pub(super) fn built_in() -> Self {
        let of = |role: &str, kind: &str| Context {
            user: "system_u".to_owned(),
            role: role.to_owned(),
            kind: kind.to_owned(),
            level: "s0".to_owned(),
        };
        Self { process: of("system_r", "container_t"), file: of("object_r", "container_file_t") }
    }

    /// `<root>/config` names the policy, `<root>/<policy>/contexts/lxc_contexts` has the labels
    /// (selabel_lxc(5): `process = "..."`, `file = "..."`).
    pub(super) fn read(root: &Path) -> Self {
        let mut defaults = Self::built_in();
        let config = std::fs::read_to_string(root.join("config")).unwrap_or_default();
        let Some(policy) = setting(&config, "SELINUXTYPE").filter(|name| !name.contains('/')) else {
            return defaults;
        };
        let path = root.join(policy).join("contexts/lxc_contexts");
        let contexts = std::fs::read_to_string(path).unwrap_or_default();
        for (key, context) in [("process", &mut defaults.process), ("file", &mut defaults.file)] {
            if let Some(found) = setting(&contexts, key).and_then(Context::parse) {
                *context = found;
            }
        }
        defaults
    }

    pub(super) fn labels(&self) -> Pair {
        Pair { process: self.process.clone(), file: self.file.clone() }
    }
}

/// `KEY = "value"`, the last one.
fn setting<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let lines = text.lines().rev().map(str::trim).filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_parts() {
        let context = Context::parse("system_u:system_r:container_t:s0:c1,c2").unwrap();
        assert_eq!((&*context.kind, &*context.level), ("container_t", "s0:c1,c2"));
        assert_eq!(context.to_string(), "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(Context::parse("u:r:t").unwrap().to_string(), "u:r:t");
        for wrong in ["", "u", "u:r", ":r:t"] {
            assert_eq!(Context::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_policys_labels_are_found() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Defaults::read(root.path()).labels().finish(), Defaults::built_in().labels().finish());
        std::fs::write(root.path().join("config"), "# SELINUXTYPE=x\nSELINUX=enforcing\nSELINUXTYPE=mine\n")
            .unwrap();
        let contexts = root.path().join("mine/contexts");
        std::fs::create_dir_all(&contexts).unwrap();
        let text = "process = \"system_u:system_r:svirt_lxc_net_t:s0\"\nfile = \"system_u:object_r:svirt_f_t:s0\"\n\
                    sandbox_kvm_process = \"system_u:system_r:x_t:s0\"\n";
        std::fs::write(contexts.join("lxc_contexts"), text).unwrap();
        let labels = Defaults::read(root.path()).labels().finish();
        assert_eq!(labels.process, "system_u:system_r:svirt_lxc_net_t:s0");
        assert_eq!(labels.file, "system_u:object_r:svirt_f_t:s0");
    }
}
