//! Why a killed container has not ended: which of its processes waits for what.

use std::fmt;

use pinnace_cgroup::{Cgroup, CgroupPath};

use crate::error::Error;
use crate::node::Node;

/// Most processes that are named.
const NAMED: usize = 8;

/// A process that is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// Its id on the host.
    pub pid: i32,
    /// Name of its program.
    pub name: String,
    /// As ps(1) has it: `D` waits and cannot be interrupted, not even to be killed.
    pub state: char,
    /// Function of the kernel in which it waits; empty where the kernel does not tell.
    pub place: String,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, name, state, place } = self;
        write!(f, "process {pid} ({name}) is in state {state}")?;
        if !place.is_empty() {
            write!(f, " in the kernel's {place}")?;
        }
        Ok(())
    }
}

/// The processes of a cgroup that cannot be killed just now, else all that are left. Blocks no longer than procfs does.
pub fn processes(node: &Node, cgroup: &str) -> Result<Vec<Stuck>, Error> {
    let pids = Cgroup::open(&node.hierarchy, &CgroupPath::try_from(cgroup)?)?.pids()?;
    let found = pids.iter().filter_map(|pid| look(pid.as_raw_nonzero().get()));
    let (mut waiting, others): (Vec<_>, Vec<_>) = found.partition(|process| process.state == 'D');
    if waiting.is_empty() {
        waiting = others;
    }
    waiting.truncate(NAMED);
    Ok(waiting)
}

fn look(pid: i32) -> Option<Stuck> {
    // `pid (name) state ...`, where the name may hold anything, parentheses too (proc_pid_stat(5)).
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    let place = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    // 0 is what a kernel says that says nothing.
    let place = if place.trim() == "0" { String::new() } else { place.trim().to_owned() };
    Some(Stuck { pid, name, state: tail.chars().next()?, place })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_described() {
        let own = look(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!("RSD".contains(own.state) && !own.name.is_empty(), "{own:?}");
        assert_eq!(look(i32::MAX), None);
        let waiting = Stuck { pid: 7, name: "cat".into(), state: 'D', place: "request_wait_answer".into() };
        assert_eq!(waiting.to_string(), "process 7 (cat) is in state D in the kernel's request_wait_answer");
    }
}
