//! What a cgroup uses: [`Usage`] is what the kubelet asks for every few seconds, [`Detail`] the rest of what
//! metrics show.
//!
//! Everything is read at one moment, a file at a time, and a file that is not there (a controller that is not
//! mounted, a cgroup that has just been removed, an older kernel) leaves its numbers [`None`]: one container
//! that vanishes never fails a list of three hundred. The files are those of cgroup-v1/{cpuacct,memory,
//! blkio-controller,hugetlb,pids}.rst and cgroup-v2.rst of the kernel's documentation.

use std::collections::BTreeMap;

use rustix::fs::{Dir, OFlags};
use rustix::io::{pread, retry_on_intr};

use crate::cgroup::Cgroup;
use crate::detect::{Mode, Mount};
use crate::file;

/// Larger than `memory.stat` of any kernel, and than `io.stat` of a machine with two hundred disks.
const FILE_BYTES: usize = 32 << 10;

/// v1 has no word for "unlimited": it shows the largest multiple of the page size.
const V1_UNLIMITED_BYTES: u64 = 1 << 62;

/// What a cgroup uses now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU time since the cgroup was made, over all cores, in nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Memory, if the controller is there.
    pub memory: Option<Memory>,
    /// Swap, if it is accounted.
    pub swap: Option<Swap>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// Time lost waiting for a CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Time lost waiting for memory.
    pub memory_pressure: Option<Pressure>,
    /// Time lost waiting for storage.
    pub io_pressure: Option<Pressure>,
}

/// Memory of a cgroup with its children, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Everything charged, page cache included.
    pub usage_bytes: u64,
    /// Without page cache that can be dropped at once: what eviction looks at.
    pub working_set_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// Page cache.
    pub cache_bytes: u64,
    /// Files that are mapped.
    pub mapped_file_bytes: u64,
    /// Page faults since the cgroup was made.
    pub page_faults: u64,
    /// Those that had to read from storage.
    pub major_page_faults: u64,
    /// The limit; none means unlimited.
    pub limit_bytes: Option<u64>,
}

/// Swap of a cgroup, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swap {
    /// In use.
    pub usage_bytes: u64,
    /// The limit of swap alone; none means unlimited.
    pub limit_bytes: Option<u64>,
}

/// Pressure stall information, accounting/psi.rst.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks that could have run waited.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// In all, in microseconds.
    pub total_us: u64,
    /// Percent over the last 10 s.
    pub avg10: f64,
    /// Percent over the last 60 s.
    pub avg60: f64,
    /// Percent over the last 300 s.
    pub avg300: f64,
}

/// What metrics show beyond [`Usage`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// CPU time in programs, in nanoseconds.
    pub user_ns: Option<u64>,
    /// CPU time in the kernel, in nanoseconds.
    pub system_ns: Option<u64>,
    /// CFS periods that have passed with something to run.
    pub cfs_periods: Option<u64>,
    /// Those of them in which the quota ran out.
    pub throttled_periods: Option<u64>,
    /// Time held back by the quota, in nanoseconds.
    pub throttled_ns: Option<u64>,
    /// Most memory ever charged, in bytes.
    pub max_memory_bytes: Option<u64>,
    /// Memory of the kernel on behalf of the cgroup, in bytes.
    pub kernel_bytes: Option<u64>,
    /// How often the memory limit was hit.
    pub limit_hits: Option<u64>,
    /// How many processes the OOM killer has taken.
    pub oom_kills: Option<u64>,
    /// Most tasks that it may have; none means unlimited.
    pub tasks_max: Option<u64>,
    /// Transfers per block device.
    pub io: Vec<DeviceIo>,
    /// Huge pages per size as the kernel names it, e.g. `2MB`.
    pub huge_pages: BTreeMap<String, HugePages>,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// In use.
    pub usage_bytes: u64,
    /// Most ever in use, where the kernel keeps it (v1).
    pub max_usage_bytes: Option<u64>,
}

/// What went to and from a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

impl Cgroup {
    /// What it uses now.
    pub fn usage(&self) -> Usage {
        let mut files = Files::of(self);
        let unified = files.unified;
        let cpu_ns = if unified {
            files.keyed("cpu", "cpu.stat", "usage_usec").map(|us| us.saturating_mul(1000))
        } else {
            files.number("cpuacct", "cpuacct.usage")
        };
        let memory = files.memory();
        Usage {
            cpu_ns,
            swap: memory.and_then(|memory| files.swap(&memory)),
            memory,
            tasks: files.number("pids", "pids.current"),
            cpu_pressure: files.pressure("cpu.pressure"),
            memory_pressure: files.pressure("memory.pressure"),
            io_pressure: files.pressure("io.pressure"),
        }
    }

    /// The rest, at more cost.
    pub fn detail(&self) -> Detail {
        let mut files = Files::of(self);
        let mut detail = if files.unified { files.detail_v2() } else { files.detail_v1() };
        detail.oom_kills = self.oom_kills().ok();
        detail.tasks_max = files.number("pids", "pids.max");
        detail
    }
}

/// Reads files of one cgroup, with one buffer for all of them.
struct Files<'a> {
    cgroup: &'a Cgroup,
    unified: bool,
    buffer: Vec<u8>,
}

impl<'a> Files<'a> {
    fn of(cgroup: &'a Cgroup) -> Self {
        let unified = cgroup.hierarchy().mode() == Mode::Unified;
        Self { cgroup, unified, buffer: vec![0; FILE_BYTES] }
    }

    fn text_in(&mut self, mount: &Mount, name: &str) -> Option<&str> {
        let path = format!("{}/{name}", self.cgroup.relative());
        let file = file::open(mount.dir(), path.trim_start_matches('/'), OFlags::RDONLY).ok()?;
        let count = retry_on_intr(|| pread(&file, &mut self.buffer[..], 0)).ok()?;
        std::str::from_utf8(self.buffer.get(..count)?).ok()
    }

    fn text(&mut self, controller: &str, name: &str) -> Option<&str> {
        let cgroup = self.cgroup;
        self.text_in(cgroup.mount(controller)?, name)
    }

    /// A file of one number; `max` is none.
    fn number(&mut self, controller: &str, name: &str) -> Option<u64> {
        self.text(controller, name)?.trim().parse().ok()
    }

    fn keyed(&mut self, controller: &str, name: &str, key: &str) -> Option<u64> {
        keyed(self.text(controller, name)?, key)
    }

    fn memory(&mut self) -> Option<Memory> {
        let unified = self.unified;
        let usage = if unified { "memory.current" } else { "memory.usage_in_bytes" };
        let usage_bytes = self.number("memory", usage)?;
        let limit_bytes = if unified {
            self.number("memory", "memory.max")
        } else {
            self.number("memory", "memory.limit_in_bytes").filter(|bytes| *bytes < V1_UNLIMITED_BYTES)
        };
        let mut memory =
            Memory { usage_bytes, limit_bytes, working_set_bytes: usage_bytes, ..Memory::default() };
        for line in self.text("memory", "memory.stat").unwrap_or_default().lines() {
            let Some((key, value)) = line.split_once(' ') else { continue };
            let Ok(value) = value.trim().parse::<u64>() else { continue };
            // v1 counts the cgroup alone under the plain names, with its children under total_.
            let key = if unified { key } else { key.strip_prefix("total_").unwrap_or("") };
            match key {
                "inactive_file" => memory.working_set_bytes = usage_bytes.saturating_sub(value),
                "anon" | "rss" => memory.rss_bytes = value,
                "file" | "cache" => memory.cache_bytes = value,
                "file_mapped" | "mapped_file" => memory.mapped_file_bytes = value,
                "pgfault" => memory.page_faults = value,
                "pgmajfault" => memory.major_page_faults = value,
                _ => {}
            }
        }
        Some(memory)
    }

    /// v1 counts memory and swap together.
    fn swap(&mut self, memory: &Memory) -> Option<Swap> {
        if self.unified {
            let usage_bytes = self.number("memory", "memory.swap.current")?;
            return Some(Swap { usage_bytes, limit_bytes: self.number("memory", "memory.swap.max") });
        }
        let both = self.number("memory", "memory.memsw.limit_in_bytes")?;
        let limit_bytes =
            (both < V1_UNLIMITED_BYTES).then(|| both.saturating_sub(memory.limit_bytes.unwrap_or(both)));
        Some(Swap {
            usage_bytes: self.keyed("memory", "memory.stat", "total_swap").unwrap_or(0),
            limit_bytes,
        })
    }

    /// In the v2 tree, which a hybrid has as well.
    fn pressure(&mut self, name: &str) -> Option<Pressure> {
        let cgroup = self.cgroup;
        parse_pressure(self.text_in(cgroup.hierarchy().v2()?, name)?)
    }

    fn detail_v2(&mut self) -> Detail {
        let cpu = self.text("cpu", "cpu.stat").unwrap_or_default();
        let ns = |key| keyed(cpu, key).map(|us: u64| us.saturating_mul(1000));
        let mut detail = Detail {
            user_ns: ns("user_usec"),
            system_ns: ns("system_usec"),
            cfs_periods: keyed(cpu, "nr_periods"),
            throttled_periods: keyed(cpu, "nr_throttled"),
            throttled_ns: ns("throttled_usec"),
            ..Detail::default()
        };
        detail.max_memory_bytes = self.number("memory", "memory.peak");
        detail.kernel_bytes = self.keyed("memory", "memory.stat", "kernel");
        detail.limit_hits = self.keyed("memory", "memory.events", "max");
        detail.io = self.text("io", "io.stat").map(parse_io_stat).unwrap_or_default();
        detail.huge_pages = self.huge_pages(".current", None);
        detail
    }

    fn detail_v1(&mut self) -> Detail {
        let cpu = self.text("cpu", "cpu.stat").unwrap_or_default();
        let mut detail = Detail {
            cfs_periods: keyed(cpu, "nr_periods"),
            throttled_periods: keyed(cpu, "nr_throttled"),
            throttled_ns: keyed(cpu, "throttled_time"),
            ..Detail::default()
        };
        detail.user_ns = self.number("cpuacct", "cpuacct.usage_user");
        detail.system_ns = self.number("cpuacct", "cpuacct.usage_sys");
        detail.max_memory_bytes = self.number("memory", "memory.max_usage_in_bytes");
        detail.kernel_bytes = self.number("memory", "memory.kmem.usage_in_bytes");
        detail.limit_hits = self.number("memory", "memory.failcnt");
        let bytes = self.text("blkio", "blkio.throttle.io_service_bytes_recursive").map(parse_blkio);
        let operations = self.text("blkio", "blkio.throttle.io_serviced_recursive").map(parse_blkio);
        detail.io = joined(&bytes.unwrap_or_default(), &operations.unwrap_or_default());
        detail.huge_pages = self.huge_pages(".usage_in_bytes", Some(".max_usage_in_bytes"));
        detail
    }

    /// Which sizes there are is told only by the names of the files.
    fn huge_pages(&mut self, current: &str, most: Option<&str>) -> BTreeMap<String, HugePages> {
        let mut sizes = Vec::new();
        let cgroup = self.cgroup;
        let Some(mount) = cgroup.mount("hugetlb") else { return BTreeMap::new() };
        let Ok(dir) = file::open(mount.dir(), cgroup.relative(), OFlags::RDONLY | OFlags::DIRECTORY) else {
            return BTreeMap::new();
        };
        for entry in Dir::new(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy();
            let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(current));
            // hugetlb.<size>.rsvd.current is of reservations.
            sizes.extend(size.filter(|size| !size.contains('.')).map(str::to_owned));
        }
        let mut found = BTreeMap::new();
        for size in sizes {
            let Some(usage_bytes) = self.number("hugetlb", &format!("hugetlb.{size}{current}")) else {
                continue;
            };
            let max_usage_bytes =
                most.and_then(|most| self.number("hugetlb", &format!("hugetlb.{size}{most}")));
            found.insert(size, HugePages { usage_bytes, max_usage_bytes });
        }
        found
    }
}

/// The number behind a key of a flat-keyed file.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn parse_pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let stall = match words.next()? {
            "some" => &mut pressure.some,
            "full" => &mut pressure.full,
            _ => continue,
        };
        for word in words {
            let (key, value) = word.split_once('=')?;
            match key {
                "avg10" => stall.avg10 = value.parse().ok()?,
                "avg60" => stall.avg60 = value.parse().ok()?,
                "avg300" => stall.avg300 = value.parse().ok()?,
                "total" => stall.total_us = value.parse().ok()?,
                _ => {}
            }
        }
    }
    Some(pressure)
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 …`
fn parse_io_stat(text: &str) -> Vec<DeviceIo> {
    let mut devices = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(device) else { continue };
        let mut io = DeviceIo { major, minor, ..DeviceIo::default() };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let Ok(value) = value.parse() else { continue };
            match key {
                "rbytes" => io.read_bytes = value,
                "wbytes" => io.write_bytes = value,
                "rios" => io.reads = value,
                "wios" => io.writes = value,
                _ => {}
            }
        }
        devices.push(io);
    }
    devices
}

/// Reads and writes per device: `8:0 Read 1`, `8:0 Write 2`, other operations and sums.
fn parse_blkio(text: &str) -> BTreeMap<(u32, u32), (u64, u64)> {
    let mut devices = BTreeMap::<_, (u64, u64)>::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(device), Some(operation), Some(Ok(value))) =
            (words.next().and_then(device), words.next(), words.next().map(str::parse))
        else {
            continue;
        };
        let entry = devices.entry(device).or_default();
        match operation {
            "Read" => entry.0 = value,
            "Write" => entry.1 = value,
            _ => {}
        }
    }
    devices
}

fn joined(
    bytes: &BTreeMap<(u32, u32), (u64, u64)>,
    operations: &BTreeMap<(u32, u32), (u64, u64)>,
) -> Vec<DeviceIo> {
    let of = |&(major, minor): &(u32, u32)| {
        let (read_bytes, write_bytes) = bytes.get(&(major, minor)).copied().unwrap_or_default();
        let (reads, writes) = operations.get(&(major, minor)).copied().unwrap_or_default();
        DeviceIo { major, minor, read_bytes, write_bytes, reads, writes }
    };
    bytes.keys().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whole_keys_only() {
        assert_eq!(keyed("usage_usec 5\nuser_usec 3\n", "user_usec"), Some(3));
        assert_eq!(keyed("usage_usec 5\n", "usage"), None);
        assert_eq!(keyed("usage_usec x\n", "usage_usec"), None);
    }

    #[test]
    fn reads_pressure_of_either_shape() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7\n";
        let pressure = parse_pressure(text).unwrap();
        assert_eq!((pressure.some.total_us, pressure.full.total_us), (77, 7));
        assert!((pressure.some.avg10 - 1.5).abs() < 1e-9 && (pressure.full.avg10 - 0.5).abs() < 1e-9);
        assert_eq!(parse_pressure("some avg10=x total=1\n"), None);
    }

    #[test]
    fn reads_transfers_of_both_generations() {
        let v2 = parse_io_stat("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n253:1 \nbad\n");
        assert_eq!(v2.len(), 2);
        assert_eq!(
            v2[0],
            DeviceIo { major: 8, minor: 0, read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 }
        );
        let bytes = parse_blkio("8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\n8:0 Total 3\nTotal 3\n");
        let operations = parse_blkio("8:0 Read 3\n8:0 Write 4\n8:0 Total 7\nTotal 7\n");
        assert_eq!(joined(&bytes, &operations), vec![v2[0]]);
    }
}
