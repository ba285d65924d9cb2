//! PodSandboxConfig to and from our own types; everything about it that can be wrong is found here.

use std::net::IpAddr;
use std::path::Path;

use pinnace_cri_api::v1;
use pinnace_network::{PortMapping, Protocol};

use super::container_config::resources;
use crate::container::record::Resources;
use crate::error::Error;
use crate::owner_map::{IdRange, OwnerMap};
use crate::sandbox::record::{Dns, NamespaceMode, Namespaces, SandboxConfig, SandboxName};

/// Longest host name the kernel takes (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES: usize = 64;

/// Reads a request's configuration.
pub fn parse(config: Option<v1::PodSandboxConfig>, runtime_handler: String) -> Result<SandboxConfig, Error> {
    let config = config.ok_or_else(|| Error::invalid("config", "is missing"))?;
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata", "is missing"))?;
    for (field, value) in
        [("name", &metadata.name), ("uid", &metadata.uid), ("namespace", &metadata.namespace)]
    {
        if value.is_empty() {
            return Err(Error::invalid(format!("config.metadata.{field}"), "is empty"));
        }
    }
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return Err(Error::invalid("config.linux.security_context.run_as_group", "needs run_as_user"));
    }
    let namespaces = namespaces(security.namespace_options.as_ref())?;
    let user = security.namespace_options.as_ref().and_then(|options| options.userns_options.as_ref());
    let user_namespace = user_namespace(user)?;
    if user_namespace.is_some()
        && (namespaces.pid == NamespaceMode::Node || namespaces.ipc == NamespaceMode::Node)
    {
        let field = "config.linux.security_context.namespace_options.userns_options";
        return Err(Error::invalid(field, "excludes the host's PID and IPC namespaces"));
    }
    let hostname = hostname(config.hostname, namespaces.network)?;
    if !config.log_directory.is_empty() {
        absolute("config.log_directory", &config.log_directory)?;
    }
    Ok(SandboxConfig {
        name: SandboxName {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            attempt: metadata.attempt,
        },
        hostname,
        log_directory: config.log_directory,
        dns: config.dns_config.map(dns).transpose()?,
        port_mappings: port_mappings(config.port_mappings)?,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        cgroup_parent: Some(linux.cgroup_parent).filter(|parent| !parent.is_empty()),
        sysctls: linux.sysctls.into_iter().collect(),
        namespaces,
        user_namespace,
        privileged: security.privileged,
        selinux: super::security::selinux(
            "config.linux.security_context.selinux_options",
            security.selinux_options,
        )?,
        runtime_handler,
        overhead: limits("overhead", linux.overhead)?,
        resources: limits("resources", linux.resources)?,
        local: None,
    })
}

fn limits(name: &str, given: Option<v1::LinuxContainerResources>) -> Result<Option<Resources>, Error> {
    given.map(|given| resources(&format!("config.linux.{name}"), given)).transpose()
}

/// An absolute path without `..`, NUL or line breaks.
pub fn absolute(field: &str, path: &str) -> Result<(), Error> {
    let parts_fine =
        Path::new(path).components().all(|part| !matches!(part, std::path::Component::ParentDir));
    match path {
        path if !path.starts_with('/') => Err(Error::invalid(field, format!("{path:?} is not absolute"))),
        path if !parts_fine => Err(Error::invalid(field, format!("{path:?} contains \"..\""))),
        path if path.contains(['\0', '\n', '\r']) => {
            Err(Error::invalid(field, format!("{path:?} contains a control character")))
        }
        path if path.len() > 4096 => Err(Error::invalid(field, "is longer than 4096 bytes")),
        _ => Ok(()),
    }
}

/// A namespace mode as the CRI's number.
pub fn mode(field: &str, value: i32) -> Result<NamespaceMode, Error> {
    match v1::NamespaceMode::try_from(value) {
        Ok(v1::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(v1::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(v1::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        Ok(v1::NamespaceMode::Target) => Ok(NamespaceMode::Target),
        Err(_) => Err(Error::invalid(field, format!("{value} is no namespace mode"))),
    }
}

/// The CRI's number of a namespace mode.
pub fn mode_number(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod.into(),
        NamespaceMode::Container => v1::NamespaceMode::Container.into(),
        NamespaceMode::Node => v1::NamespaceMode::Node.into(),
        NamespaceMode::Target => v1::NamespaceMode::Target.into(),
    }
}

fn namespaces(options: Option<&v1::NamespaceOption>) -> Result<Namespaces, Error> {
    let Some(options) = options else {
        return Ok(Namespaces {
            network: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
        });
    };
    let field = |name: &str| format!("config.linux.security_context.namespace_options.{name}");
    let shared = |name: &str, value: i32| match mode(&field(name), value)? {
        mode @ (NamespaceMode::Pod | NamespaceMode::Node) => Ok(mode),
        other => Err(Error::invalid(field(name), format!("a pod's is POD or NODE, not {other:?}"))),
    };
    let pid = match mode(&field("pid"), options.pid)? {
        NamespaceMode::Target => return Err(Error::invalid(field("pid"), "TARGET is for containers")),
        pid => pid,
    };
    Ok(Namespaces { network: shared("network", options.network)?, ipc: shared("ipc", options.ipc)?, pid })
}

/// A user namespace of the pod; `None` is the host's.
pub fn user_namespace(options: Option<&v1::UserNamespace>) -> Result<Option<OwnerMap>, Error> {
    const FIELD: &str = "config.linux.security_context.namespace_options.userns_options";
    let Some(options) = options else { return Ok(None) };
    match mode(&format!("{FIELD}.mode"), options.mode)? {
        NamespaceMode::Node => return Ok(None),
        NamespaceMode::Pod => {}
        other => {
            return Err(Error::invalid(format!("{FIELD}.mode"), format!("{other:?} does not exist for it")));
        }
    }
    let one = |name: &str, ranges: &[v1::IdMapping]| {
        let field = format!("{FIELD}.{name}");
        match id_ranges(&field, ranges)?.as_slice() {
            [range] if range.container == 0 => Ok(vec![*range]),
            [_] => Err(Error::invalid(field, "does not map id 0 of the container")),
            list => Err(Error::invalid(field, format!("{} mappings instead of exactly one", list.len()))),
        }
    };
    Ok(Some(OwnerMap { uids: one("uids", &options.uids)?, gids: one("gids", &options.gids)? }))
}

/// The CRI's form of it.
pub fn user_namespace_message(map: &OwnerMap) -> v1::UserNamespace {
    v1::UserNamespace {
        mode: v1::NamespaceMode::Pod.into(),
        uids: id_mappings(&map.uids),
        gids: id_mappings(&map.gids),
    }
}

/// Ranges of ids; none is empty or leaves the 32 bits.
pub fn id_ranges(field: &str, ranges: &[v1::IdMapping]) -> Result<Vec<IdRange>, Error> {
    let one = |range: &v1::IdMapping| {
        let fits = |first: u32| first.checked_add(range.length).is_some();
        if range.length == 0 || !fits(range.host_id) || !fits(range.container_id) {
            return Err(Error::invalid(field, format!("{range:?} is no range of ids")));
        }
        Ok(IdRange { host: range.host_id, container: range.container_id, length: range.length })
    };
    ranges.iter().map(one).collect()
}

/// The CRI's form of ranges.
pub fn id_mappings(ranges: &[IdRange]) -> Vec<v1::IdMapping> {
    let one = |range: &IdRange| v1::IdMapping {
        host_id: range.host,
        container_id: range.container,
        length: range.length,
    };
    ranges.iter().map(one).collect()
}

fn hostname(hostname: String, network: NamespaceMode) -> Result<String, Error> {
    if network == NamespaceMode::Node {
        // The pod shares the host's UTS namespace; what it says of a name is moot.
        return Ok(String::new());
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_';
    match hostname {
        name if name.len() > HOSTNAME_BYTES => {
            Err(Error::invalid("config.hostname", format!("is longer than {HOSTNAME_BYTES} bytes")))
        }
        name if !name.bytes().all(legal) => {
            Err(Error::invalid("config.hostname", format!("{name:?} has characters that no host name has")))
        }
        name => Ok(name),
    }
}

fn dns(config: v1::DnsConfig) -> Result<Dns, Error> {
    let lines = [("servers", &config.servers), ("searches", &config.searches), ("options", &config.options)];
    for (name, values) in lines {
        if let Some(bad) = values.iter().find(|value| value.contains(['\n', '\r', '\0'])) {
            return Err(Error::invalid(
                format!("config.dns_config.{name}"),
                format!("{bad:?} contains a control character"),
            ));
        }
    }
    Ok(Dns { servers: config.servers, searches: config.searches, options: config.options })
}

fn port_mappings(mappings: Vec<v1::PortMapping>) -> Result<Vec<PortMapping>, Error> {
    // A mapping without a host port is information for others.
    let wanted = mappings.into_iter().enumerate().filter(|(_, mapping)| mapping.host_port != 0);
    wanted
        .map(|(index, mapping)| {
            let field = |name: &str| format!("config.port_mappings[{index}].{name}");
            let port = |name: &str, value: i32| match u16::try_from(value) {
                Ok(port) if port != 0 => Ok(port),
                _ => Err(Error::invalid(field(name), format!("{value} is not within 1..=65535"))),
            };
            let host_ip =
                match mapping.host_ip.as_str() {
                    "" => None,
                    text => Some(text.parse::<IpAddr>().map_err(|_| {
                        Error::invalid(field("host_ip"), format!("{text:?} is no IP address"))
                    })?),
                };
            Ok(PortMapping {
                protocol: match v1::Protocol::try_from(mapping.protocol) {
                    Ok(v1::Protocol::Tcp) => Protocol::Tcp,
                    Ok(v1::Protocol::Udp) => Protocol::Udp,
                    Ok(v1::Protocol::Sctp) => Protocol::Sctp,
                    Err(_) => {
                        let reason = format!("{} is no protocol", mapping.protocol);
                        return Err(Error::invalid(field("protocol"), reason));
                    }
                },
                container_port: port("container_port", mapping.container_port)?,
                host_port: port("host_port", mapping.host_port)?,
                host_ip,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "pod".into(),
                uid: "u".into(),
                namespace: "ns".into(),
                attempt: 1,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        type Break = fn(&mut v1::PodSandboxConfig);
        let cases: [(&str, Break); 7] = [
            ("config.metadata", |config| config.metadata = None),
            ("config.metadata.uid", |config| config.metadata.as_mut().unwrap().uid.clear()),
            ("config.hostname", |config| config.hostname = "a b".into()),
            ("config.hostname", |config| config.hostname = "a".repeat(65)),
            ("config.log_directory", |config| config.log_directory = "/var/../etc".into()),
            ("config.dns_config.servers", |config| {
                config.dns_config =
                    Some(v1::DnsConfig { servers: vec!["1.1.1.1\nx".into()], ..Default::default() });
            }),
            ("config.port_mappings[0].container_port", |config| {
                config.port_mappings = vec![v1::PortMapping { host_port: 80, ..Default::default() }];
            }),
        ];
        for (field, spoil) in cases {
            let mut spoilt = config();
            spoil(&mut spoilt);
            let error = parse(Some(spoilt), String::new()).unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
        assert!(parse(None, String::new()).is_err());
    }

    #[test]
    fn an_unmapped_port_is_information_only() {
        let mut config = config();
        config.port_mappings = vec![v1::PortMapping { container_port: 80, ..Default::default() }];
        assert!(parse(Some(config), String::new()).unwrap().port_mappings.is_empty());
    }
}
