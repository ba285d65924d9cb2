//! What procfs(5) tells of a container's processes and of a pod's interfaces.
//!
//! Reading only: values that a process can choose are parsed as numbers or dropped.

use std::path::{Path, PathBuf};

/// Processes of a container, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    /// How many.
    pub count: u64,
    /// Open file descriptors.
    pub file_descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
    /// Soft limits of the first process; `None` as value is unlimited.
    pub soft_limits: Vec<(&'static str, Option<u64>)>,
}

/// The limits that are shown, as proc_pid_limits(5) names them and as metrics do.
const LIMITS: [(&str, &str); 2] = [("Max open files", "max_open_files"), ("Max processes", "max_processes")];

impl Processes {
    /// Looks at them; those that end meanwhile count as far as they were seen.
    pub fn of(pids: impl IntoIterator<Item = i32>) -> Self {
        let mut processes = Self::default();
        for pid in pids {
            let directory = PathBuf::from(format!("/proc/{pid}"));
            let Ok(descriptors) = std::fs::read_dir(directory.join("fd")) else { continue };
            processes.count += 1;
            for descriptor in descriptors.flatten() {
                processes.file_descriptors += 1;
                let is_socket = std::fs::read_link(descriptor.path())
                    .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
                processes.sockets += u64::from(is_socket);
            }
            if processes.soft_limits.is_empty() {
                let text = std::fs::read_to_string(directory.join("limits")).unwrap_or_default();
                processes.soft_limits = parse_limits(&text);
            }
        }
        processes
    }
}

fn parse_limits(text: &str) -> Vec<(&'static str, Option<u64>)> {
    let soft = |title: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(title))?.split_whitespace().next()?;
        Some(value.parse().ok())
    };
    LIMITS.into_iter().filter_map(|(title, name)| Some((name, soft(title)?))).collect()
}

/// What passed through an interface in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets that were dropped.
    pub dropped: u64,
}

/// A network interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name in the pod.
    pub name: String,
    /// What came in.
    pub received: Counters,
    /// What went out.
    pub sent: Counters,
}

/// The interfaces in the network namespace of a process, without the loopback; whatever attached them. Nobody has to enter
/// the namespace for it.
pub fn interfaces(pid: i32) -> Vec<Interface> {
    let path = Path::new("/proc").join(pid.to_string()).join("net/dev");
    parse_interfaces(&std::fs::read_to_string(path).unwrap_or_default())
}

/// Two lines of headings, then `name: bytes packets errs drop fifo frame compressed multicast` and the same for what was
/// sent.
fn parse_interfaces(text: &str) -> Vec<Interface> {
    let parse = |line: &str| {
        let (name, numbers) = line.rsplit_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map_while(|word| word.parse().ok()).collect();
        let direction = |first: usize| {
            let &[bytes, packets, errors, dropped, ..] = numbers.get(first..)? else { return None };
            Some(Counters { bytes, packets, errors, dropped })
        };
        Some(Interface { name: name.trim().to_owned(), received: direction(0)?, sent: direction(8)? })
    };
    text.lines().skip(2).filter_map(parse).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_those_of_the_kernel_without_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
            eth0:1234 5 6 7 0 0 0 0 4321 8 9 10 0 0 0 0\n  \
            torn: 1 2\n";
        let received = Counters { bytes: 1234, packets: 5, errors: 6, dropped: 7 };
        let sent = Counters { bytes: 4321, packets: 8, errors: 9, dropped: 10 };
        assert_eq!(parse_interfaces(text), [Interface { name: "eth0".to_owned(), received, sent }]);
        assert_eq!(parse_interfaces(""), []);
    }

    #[test]
    fn this_process_is_seen() {
        let _socket = std::os::unix::net::UnixStream::pair().unwrap();
        let own = Processes::of([i32::try_from(std::process::id()).unwrap(), 0]);
        assert_eq!(own.count, 1);
        assert!(own.sockets >= 2 && own.file_descriptors > own.sockets, "{own:?}");
        assert_eq!(own.soft_limits.len(), LIMITS.len());
    }
}
