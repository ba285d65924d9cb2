//! Ports of the host that lead to pods: what a pod asks for, and who has which.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::address::IpFamily;

/// Why a pod cannot have its host ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostPortError {
    /// Another pod has the port.
    #[error("host port {port} is taken by sandbox {sandbox}")]
    Taken {
        /// What was asked for.
        port: HostPort,
        /// Who has it.
        sandbox: String,
    },
    /// Two mappings of one pod exclude each other.
    #[error("host port {port} is asked for twice with different targets")]
    Ambiguous {
        /// What was asked for.
        port: HostPort,
    },
    /// A mapping without the port it leads to.
    #[error("host port {port} has no container port")]
    NoContainerPort {
        /// What was asked for.
        port: HostPort,
    },
    /// The host address is of a family that the pod has no address of.
    #[error("host port {port} needs an address of its family, the pod has none")]
    NoAddress {
        /// What was asked for.
        port: HostPort,
    },
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// A port of a pod and the port of the host that leads to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// The protocol.
    pub protocol: Protocol,
    /// The port inside the pod.
    pub container_port: u16,
    /// The port of the host; 0 is none.
    pub host_port: u16,
    /// The only address of the host where it counts. None: all; `0.0.0.0` and `::`: all of that family.
    pub host_ip: Option<IpAddr>,
}

/// A port at one or all addresses of the host, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The family.
    pub family: IpFamily,
    /// The port.
    pub port: u16,
    /// The address; none is all.
    pub address: Option<IpAddr>,
}

impl HostPort {
    fn excludes(&self, other: &HostPort) -> bool {
        let same_address = match (self.address, other.address) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        (self.protocol, self.family, self.port) == (other.protocol, other.family, other.port) && same_address
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.address, self.family) {
            (Some(IpAddr::V6(address)), _) => write!(f, "[{address}]:{}/{}", self.port, self.protocol),
            (Some(IpAddr::V4(address)), _) => write!(f, "{address}:{}/{}", self.port, self.protocol),
            (None, IpFamily::V4) => write!(f, "0.0.0.0:{}/{}", self.port, self.protocol),
            (None, IpFamily::V6) => write!(f, "[::]:{}/{}", self.port, self.protocol),
        }
    }
}

/// Where a host port leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// The port of the host.
    pub host: HostPort,
    /// The pod's address.
    pub address: IpAddr,
    /// The pod's port.
    pub port: u16,
}

/// What the mappings of a pod mean for its addresses: one or two forwards each. Repeated mappings count once.
pub fn forwards(mappings: &[PortMapping], addresses: &[IpAddr]) -> Result<Vec<Forward>, HostPortError> {
    let mut forwards: Vec<Forward> = Vec::new();
    for mapping in mappings.iter().filter(|mapping| mapping.host_port != 0) {
        let families = match mapping.host_ip {
            None => vec![IpFamily::V4, IpFamily::V6],
            Some(address) => vec![IpFamily::of(address)],
        };
        let host = |family| HostPort {
            protocol: mapping.protocol,
            family,
            port: mapping.host_port,
            address: mapping.host_ip.filter(|address| !address.is_unspecified()),
        };
        if mapping.container_port == 0 {
            return Err(HostPortError::NoContainerPort { port: host(families[0]) });
        }
        let before = forwards.len();
        let mut repeated = false;
        for family in &families {
            let Some(address) = addresses.iter().find(|address| IpFamily::of(**address) == *family) else {
                continue;
            };
            let forward = Forward { host: host(*family), address: *address, port: mapping.container_port };
            if forwards.contains(&forward) {
                repeated = true;
            } else if forwards.iter().any(|other| other.host.excludes(&forward.host)) {
                return Err(HostPortError::Ambiguous { port: forward.host });
            } else {
                forwards.push(forward);
            }
        }
        if forwards.len() == before && !repeated {
            return Err(HostPortError::NoAddress { port: host(families[0]) });
        }
    }
    Ok(forwards)
}

/// Who has which ports of the host.
#[derive(Debug, Default)]
pub struct HostPorts {
    by_sandbox: BTreeMap<String, Vec<Forward>>,
}

impl HostPorts {
    /// Whether the sandbox may have these; if not, the error names who is in the way.
    pub fn check(&self, sandbox: &str, forwards: &[Forward]) -> Result<(), HostPortError> {
        for (owner, theirs) in self.by_sandbox.iter().filter(|(owner, _)| *owner != sandbox) {
            for forward in forwards {
                if theirs.iter().any(|other| other.host.excludes(&forward.host)) {
                    return Err(HostPortError::Taken { port: forward.host, sandbox: owner.clone() });
                }
            }
        }
        Ok(())
    }

    /// Gives the ports to the sandbox.
    pub fn insert(&mut self, sandbox: &str, forwards: Vec<Forward>) {
        if !forwards.is_empty() {
            self.by_sandbox.insert(sandbox.to_owned(), forwards);
        }
    }

    /// Takes all ports from the sandbox.
    pub fn remove(&mut self, sandbox: &str) -> Option<Vec<Forward>> {
        self.by_sandbox.remove(sandbox)
    }

    /// Those of a sandbox.
    pub fn of(&self, sandbox: &str) -> &[Forward] {
        self.by_sandbox.get(sandbox).map_or(&[], Vec::as_slice)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Forward)> {
        self.by_sandbox
            .iter()
            .flat_map(|(sandbox, forwards)| forwards.iter().map(|forward| (sandbox.as_str(), forward)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: &str, host_port: u16, container_port: u16) -> PortMapping {
        let host_ip = (!host_ip.is_empty()).then(|| host_ip.parse().unwrap());
        PortMapping { protocol: Protocol::Tcp, container_port, host_port, host_ip }
    }

    fn dual() -> Vec<IpAddr> {
        vec!["10.88.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]
    }

    fn hosts(mappings: &[PortMapping]) -> Vec<String> {
        forwards(mappings, &dual()).unwrap().iter().map(|forward| forward.host.to_string()).collect()
    }

    #[test]
    fn families_follow_the_host_address() {
        assert_eq!(hosts(&[mapping("", 80, 8080)]), ["0.0.0.0:80/tcp", "[::]:80/tcp"]);
        assert_eq!(hosts(&[mapping("0.0.0.0", 80, 8080)]), ["0.0.0.0:80/tcp"]);
        assert_eq!(hosts(&[mapping("::", 80, 8080)]), ["[::]:80/tcp"]);
        assert_eq!(hosts(&[mapping("127.0.0.1", 80, 8080)]), ["127.0.0.1:80/tcp"]);
        assert!(hosts(&[mapping("", 0, 8080)]).is_empty());
    }

    #[test]
    fn what_cannot_work_is_refused() {
        let v4 = &dual()[..1];
        let refused = |mappings: &[PortMapping], addresses: &[IpAddr]| {
            forwards(mappings, addresses).unwrap_err().to_string()
        };
        assert_eq!(
            refused(&[mapping("::", 80, 1)], v4),
            "host port [::]:80/tcp needs an address of its family, the pod has none"
        );
        assert_eq!(refused(&[mapping("", 80, 0)], v4), "host port 0.0.0.0:80/tcp has no container port");
        assert_eq!(
            refused(&[mapping("", 80, 1), mapping("10.0.0.1", 80, 2)], v4),
            "host port 10.0.0.1:80/tcp is asked for twice with different targets"
        );
        assert_eq!(forwards(&[mapping("", 80, 1), mapping("", 80, 1)], v4).unwrap().len(), 1);
    }

    #[test]
    fn a_conflict_names_the_owner() {
        let mut ports = HostPorts::default();
        ports.insert("one", forwards(&[mapping("10.0.0.1", 80, 8080)], &dual()).unwrap());
        let wanted = |host_ip| forwards(&[mapping(host_ip, 80, 1)], &dual()).unwrap();
        let error = ports.check("two", &wanted("")).unwrap_err();
        assert_eq!(error.to_string(), "host port 0.0.0.0:80/tcp is taken by sandbox one");
        assert!(ports.check("two", &wanted("10.0.0.2")).is_ok());
        assert!(ports.check("two", &wanted("::")).is_ok());
        assert!(ports.check("one", &wanted("")).is_ok());
        let udp = PortMapping { protocol: Protocol::Udp, ..mapping("", 80, 1) };
        assert!(ports.check("two", &forwards(&[udp], &dual()).unwrap()).is_ok());
        ports.remove("one");
        assert!(ports.check("two", &wanted("")).is_ok());
    }
}
