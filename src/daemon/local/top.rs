//! Top: the processes of a container, as ps(1) shows them. Values that a process can choose are text, never control.

use std::fs;

use pinnace_cgroup::{Cgroup, CgroupPath};

use super::LocalContainer;
use crate::error::Error;
use crate::node::Node;

/// Columns without a wish.
pub const COLUMNS: [&str; 8] = ["uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];

/// Clock ticks in a second: USER_HZ, which is the same everywhere (proc(5)).
const TICKS: u64 = 100;

/// Titles, then a row for each process.
#[derive(Debug)]
pub struct Table {
    /// Titles of the columns.
    pub titles: Vec<String>,
    /// A row a process.
    pub rows: Vec<Vec<String>>,
}

/// Looks at the processes. Blocks.
pub fn top(node: &Node, local: &LocalContainer, columns: &[String]) -> Result<Table, Error> {
    let container = local.running()?;
    let columns: Vec<&str> =
        if columns.is_empty() { COLUMNS.to_vec() } else { columns.iter().map(String::as_str).collect() };
    let titles = columns.iter().map(|column| title(column)).collect::<Result<_, _>>()?;
    let path = container.record().cgroup_path;
    let cgroup = Cgroup::open(&node.hierarchy, &CgroupPath::try_from(path.as_str())?)?;
    let mut pids: Vec<i32> = cgroup.pids()?.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
    pids.sort_unstable();
    let boot_s = boot_time();
    // One that ends meanwhile has no row.
    let processes = pids.into_iter().filter_map(|pid| Process::read(pid, boot_s));
    let row = |process: Process| columns.iter().map(|column| process.value(column)).collect();
    Ok(Table { titles, rows: processes.map(row).collect() })
}

fn title(column: &str) -> Result<String, Error> {
    let title = match column {
        "comm" => "COMMAND",
        "args" | "command" => "COMMAND",
        "user" | "euser" => "USER",
        "pcpu" | "%cpu" => "%CPU",
        "uid" | "pid" | "ppid" | "c" | "stime" | "tty" | "time" | "cmd" | "vsz" | "rss" | "nlwp" | "stat"
        | "etime" => return Ok(column.to_uppercase()),
        _ => {
            let known = "user, uid, pid, ppid, c, pcpu, stime, etime, tty, time, cmd, args, comm, vsz, rss, nlwp, stat";
            return Err(Error::invalid("columns", format!("{column:?} is not known; known are {known}")));
        }
    };
    Ok(title.to_owned())
}

fn boot_time() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.and_then(|seconds| seconds.trim().parse().ok()).unwrap_or(0)
}

struct Process {
    pid: i32,
    uid: String,
    comm: String,
    cmd: String,
    /// Fields of proc_pid_stat(5) from the state on, which is field 3.
    stat: Vec<String>,
    boot_s: u64,
}

impl Process {
    fn read(pid: i32, boot_s: u64) -> Option<Self> {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let stat = String::from_utf8_lossy(&read("stat")?).into_owned();
        // The name may have parentheses and blanks in it.
        let (head, tail) = stat.rsplit_once(')')?;
        let comm = head.split_once('(')?.1.to_owned();
        let status = String::from_utf8_lossy(&read("status")?).into_owned();
        let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let arguments = read("cmdline")?;
        let arguments = arguments.strip_suffix(b"\0").unwrap_or(&arguments);
        let cmd = String::from_utf8_lossy(arguments).replace('\0', " ");
        Some(Self {
            pid,
            uid: uid.split_whitespace().nth(1)?.to_owned(),
            cmd: if cmd.is_empty() { format!("[{comm}]") } else { cmd },
            comm,
            stat: tail.split_whitespace().map(ToOwned::to_owned).collect(),
            boot_s,
        })
    }

    fn number(&self, field: usize) -> u64 {
        self.stat.get(field - 3).and_then(|value| value.parse().ok()).unwrap_or(0)
    }

    fn value(&self, column: &str) -> String {
        let used_s = (self.number(14) + self.number(15)) / TICKS;
        let started_s = self.boot_s + self.number(22) / TICKS;
        let now_s = u64::try_from(crate::clock::realtime_ns() / 1_000_000_000).unwrap_or(0);
        let lived_s = now_s.saturating_sub(started_s);
        let percent = (used_s * 100).checked_div(lived_s).unwrap_or(0);
        match column {
            // The host's names are not those of the container.
            "uid" | "user" | "euser" => match self.uid.as_str() {
                "0" => "root".to_owned(),
                uid => uid.to_owned(),
            },
            "pid" => self.pid.to_string(),
            "ppid" => self.number(4).to_string(),
            "c" | "pcpu" | "%cpu" => percent.to_string(),
            "stime" => clock_time(started_s),
            "etime" => hours(lived_s),
            "time" => hours(used_s),
            "tty" => match self.number(7) {
                0 => "?".to_owned(),
                // Major 136 and on are pseudo-terminals (devices.txt); the minor is in two parts.
                device => format!("pts/{}", (device & 0xff) | ((device >> 12) & 0xfff00)),
            },
            "comm" => self.comm.clone(),
            "vsz" => (self.number(23) / 1024).to_string(),
            "rss" => (self.number(24) * 4).to_string(),
            "nlwp" => self.number(20).to_string(),
            "stat" => self.stat.first().cloned().unwrap_or_default(),
            _ => self.cmd.clone(),
        }
    }
}

fn hours(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn clock_time(seconds: u64) -> String {
    let seconds_of_day = seconds % (24 * 3600);
    format!("{:02}:{:02}", seconds_of_day / 3600, seconds_of_day / 60 % 60)
}
