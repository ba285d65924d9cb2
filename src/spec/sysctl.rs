//! Kernel parameters of the namespaces that a pod or container owns.
//!
//! Only keys that exist once per namespace are let through, and only when that namespace is not the host's: a pod on the
//! host's network that could set `net.*` would set it for the machine (CVE-2022-0532). Each key is one `write(2)`; a value
//! never becomes part of a command line or of a list (CVE-2022-0811).
//!
//! Keys are written with dots (`net.ipv4.conf.eth0/100.forwarding`) or with slashes (`net/ipv4/conf/eth0.100/forwarding`):
//! the separator that comes first decides, and the other one then stands for itself within a name (sysctl.d(5)).
//! The plan has the dotted form.

use std::collections::BTreeMap;

use pinnace_launcher::plan;

use crate::{Error, validate};

/// Namespaces that the pod or container owns: neither the host's nor somebody else's that it joined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnedNamespaces {
    /// `net.*`
    pub network: bool,
    /// `kernel.shm*`, `kernel.msg*`, `kernel.sem`, `fs.mqueue.*`
    pub ipc: bool,
    /// `kernel.domainname`
    pub uts: bool,
}

/// Longest value: a page, which is what the kernel's handlers read at most.
const VALUE_BYTES: usize = 4095;
const KEY_BYTES: usize = 512;

/// Keys of the IPC namespace (ipc_namespaces(7)).
const IPC: [&str; 9] = [
    "kernel.auto_msgmni",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// Checks key and value of each, in the order of their keys.
pub fn sysctls<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
    owned: OwnedNamespaces,
) -> Result<Vec<plan::Sysctl>, Error> {
    let mut checked = BTreeMap::new();
    for (given, value) in pairs {
        let key = dotted(given)?;
        let field = format!("linux.sysctl {key}");
        allowed(&field, &key, owned)?;
        validate::line(&field, value, VALUE_BYTES)?;
        if checked.insert(key, value.to_owned()).is_some() {
            return Err(Error::invalid(field, "is given twice"));
        }
        if checked.len() > validate::SYSCTLS {
            return Err(Error::invalid("linux.sysctl", format!("more than {} keys", validate::SYSCTLS)));
        }
    }
    Ok(checked.into_iter().map(|(key, value)| plan::Sysctl { key, value }).collect())
}

/// The key with dots between its names.
fn dotted(given: &str) -> Result<String, Error> {
    let invalid = |reason: &str| Err(Error::invalid(format!("linux.sysctl {:?}", shortened(given)), reason));
    if given.len() > KEY_BYTES {
        return invalid("is longer than 512 bytes");
    }
    let taken = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:@+".contains(&byte);
    if !given.bytes().all(taken) {
        return invalid("has a character that no key has");
    }
    let swap = |c: char| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    let slashed = given.find(['.', '/']).is_some_and(|at| given.as_bytes()[at] == b'/');
    let key: String = if slashed { given.chars().map(swap).collect() } else { given.to_owned() };
    // As a path below /proc/sys the key must not climb: within a name `/` stands for a dot.
    let climbs = |name: &str| matches!(name, "" | "/" | "//");
    if key.split('.').any(climbs) || !key.contains('.') {
        return invalid("is not the name of a kernel parameter");
    }
    Ok(key)
}

fn allowed(field: &str, key: &str, owned: OwnedNamespaces) -> Result<(), Error> {
    let (namespace, has) = if key.starts_with("net.") {
        ("network", owned.network)
    } else if IPC.contains(&key) || key.starts_with("fs.mqueue.") {
        ("IPC", owned.ipc)
    } else if key == "kernel.domainname" {
        ("UTS", owned.uts)
    } else if key == "kernel.hostname" {
        return Err(Error::invalid(field, "the host name is a field of its own"));
    } else {
        return Err(Error::invalid(
            field,
            "is not a parameter of a namespace: it would change the whole machine",
        ));
    };
    if has { Ok(()) } else { Err(Error::invalid(field, format!("the {namespace} namespace is not its own"))) }
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: OwnedNamespaces = OwnedNamespaces { network: true, ipc: true, uts: true };

    fn one(key: &str, value: &str, owned: OwnedNamespaces) -> Option<(String, String)> {
        let mut list = sysctls([(key, value)], owned).ok()?;
        assert_eq!(list.len(), 1);
        list.pop().map(|sysctl| (sysctl.key, sysctl.value))
    }

    #[test]
    fn keys_in_both_forms() {
        let cases = [
            ("net.ipv4.ip_forward", Some("net.ipv4.ip_forward")),
            ("net/ipv4/ip_forward", Some("net.ipv4.ip_forward")),
            ("net.ipv4.conf.eth0/100.forwarding", Some("net.ipv4.conf.eth0/100.forwarding")),
            ("net/ipv4/conf/eth0.100/forwarding", Some("net.ipv4.conf.eth0/100.forwarding")),
            ("kernel.shmmax", Some("kernel.shmmax")),
            ("kernel/sem", Some("kernel.sem")),
            ("fs.mqueue.msg_max", Some("fs.mqueue.msg_max")),
            ("kernel.domainname", Some("kernel.domainname")),
            ("kernel.hostname", None),
            ("kernel.core_pattern", None),
            ("kernel.shmmax.x", None),
            ("vm.swappiness", None),
            ("fs.file-max", None),
            ("user.max_user_namespaces", None),
            ("network.x", None),
            ("net", None),
            ("", None),
            ("net.", None),
            (".net.x", None),
            ("net..x", None),
            ("net/../kernel/core_pattern", None),
            ("net.//.kernel.core_pattern", None),
            ("net./.x", None),
            ("/net/ipv4/ip_forward", None),
            ("net.ipv4 .x", None),
            ("net.ipv4.x\nkernel.y", None),
            ("net.ipv4.x=1", None),
            ("net.ïpv4", None),
        ];
        for (given, expected) in cases {
            assert_eq!(one(given, "1", ALL).map(|(key, _)| key).as_deref(), expected, "{given:?}");
        }
    }

    #[test]
    fn only_namespaces_that_are_owned() {
        let (net, ipc, uts) = ("net.core.somaxconn", "kernel.msgmax", "kernel.domainname");
        for (key, owned) in [
            (net, OwnedNamespaces { network: false, ..ALL }),
            (ipc, OwnedNamespaces { ipc: false, ..ALL }),
            ("fs.mqueue.queues_max", OwnedNamespaces { ipc: false, ..ALL }),
            (uts, OwnedNamespaces { uts: false, ..ALL }),
        ] {
            let error = sysctls([(key, "1")], owned).unwrap_err();
            assert_eq!(error.code(), crate::Code::InvalidArgument);
            assert!(error.to_string().contains("not its own"), "{error}");
            assert!(one(key, "1", ALL).is_some());
        }
    }

    #[test]
    fn values_are_one_line_and_otherwise_untouched() {
        assert_eq!(one(net(), "1 2 +3=x", ALL), Some((net().to_owned(), "1 2 +3=x".to_owned())));
        for value in ["1\n", "1\0", "a\rb", &"1".repeat(4096)] {
            assert!(one(net(), value, ALL).is_none(), "{value:?}");
        }
    }

    #[test]
    fn two_spellings_of_one_key_contradict() {
        let pairs = [("net.ipv4.ip_forward", "0"), ("net/ipv4/ip_forward", "1")];
        assert!(sysctls(pairs, ALL).unwrap_err().to_string().contains("twice"));
    }

    fn net() -> &'static str {
        "net.ipv4.ip_local_port_range"
    }

    proptest! {
        #[test]
        fn no_key_climbs(key in "[a-z./]{0,24}") {
            if let Some((key, _)) = one(&key, "1", ALL) {
                let swap = |c| match c { '.' => '/', '/' => '.', other => other };
                let path: String = key.chars().map(swap).collect();
                prop_assert!(path.split('/').all(|name| !matches!(name, "" | "." | "..")), "{}", path);
                prop_assert!(["net/", "kernel/", "fs/mqueue/"].iter().any(|start| path.starts_with(start)));
            }
        }
    }
}
