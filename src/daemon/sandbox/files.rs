//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod, bound into its containers.
//!
//! The kubelet mounts its own `/etc/hosts`, which then wins over this one.

use std::path::Path;

use super::record::{Dns, SandboxConfig};
use crate::error::Error;
use crate::record::write_file;
use crate::selinux::relabel;

/// The host's resolver configuration, for pods that bring none.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// The host's table of names.
const HOST_HOSTS: &str = "/etc/hosts";

const NAMES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Readable by whatever user the container runs as.
const MODE: u32 = 0o644;

/// Writes the three files into the sandbox's directory.
pub fn write(directory: &Path, config: &SandboxConfig, hostname: &str) -> Result<(), Error> {
    let resolv_conf = match &config.dns {
        Some(dns) => resolv_conf(dns).into_bytes(),
        None => host_file(HOST_RESOLV_CONF)?,
    };
    write_file(&directory.join("resolv.conf"), &resolv_conf, MODE)?;
    write_file(&directory.join("hosts"), &host_file(HOST_HOSTS)?, MODE)?;
    write_file(&directory.join("hostname"), format!("{hostname}\n").as_bytes(), MODE)?;
    if let Some(map) = &config.user_namespace {
        // The pod's root may edit its own files.
        let (uid, gid) = map.root();
        for name in NAMES {
            let path = directory.join(name);
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(Error::io("give away", &path))?;
        }
    }
    Ok(())
}

/// Labels them for the pod's processes.
pub fn label(directory: &Path, label: &str) -> Result<(), Error> {
    NAMES.iter().try_for_each(|name| relabel::file(&directory.join(name), label))
}

/// A host without the file gives its pods an empty one.
fn host_file(path: &str) -> Result<Vec<u8>, Error> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(Error::io("read", path)),
    }
}

/// In the order that resolv.conf(5) readers expect.
fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    let mut line = |keyword: &str, values: &[String]| {
        if !values.is_empty() {
            text.push_str(keyword);
            for value in values {
                text.push(' ');
                text.push_str(value);
            }
            text.push('\n');
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_a_line_per_server_and_nothing_for_what_is_empty() {
        let dns = Dns {
            servers: vec!["10.0.0.1".into(), "fd00::1".into()],
            searches: vec!["a.local".into(), "b.local".into()],
            options: vec!["ndots:5".into()],
        };
        let expected = "search a.local b.local\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), expected);
        assert_eq!(resolv_conf(&Dns::default()), "");
    }
}
