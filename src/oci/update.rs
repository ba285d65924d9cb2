//! `update`: limits of a container that exists.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use crate::runtime::Runtime;
use crate::state::{Container, Status, read_json};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Container id
    id: String,
    /// File with linux.resources in JSON, - for stdin; flags that come with it win
    #[arg(long, short, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Bytes of memory, -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Bytes of memory and swap, -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Bytes of memory below which it is reclaimed last
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_reservation: Option<i64>,
    /// Share of the CPU beside others
    #[arg(long, value_name = "SHARES", alias = "cpu-share")]
    cpu_shares: Option<u64>,
    /// Microseconds of CPU in a period, -1 for no limit
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Microseconds of a period
    #[arg(long, value_name = "US")]
    cpu_period: Option<u64>,
    /// CPUs to use, as in 0-3,7
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Weight of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Number of processes, -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
}

impl Arguments {
    /// `update`.
    pub fn run(&self, runtime: &Runtime) -> anyhow::Result<()> {
        let resources = self.resources()?;
        let (container, _lock) = Container::find_locked(runtime, &self.id)?;
        container.expect(&[Status::Created, Status::Running, Status::Paused], "update")?;
        container
            .cgroup()?
            .update(&resources)
            .map(drop)
            .with_context(|| format!("update container {}", self.id))
    }

    fn resources(&self) -> anyhow::Result<LinuxResources> {
        let mut whole: Map<String, Value> = match &self.resources {
            None => Map::new(),
            Some(path) if path.as_os_str() == "-" => {
                serde_json::from_reader(std::io::stdin()).context("parse the resources on stdin")?
            }
            Some(path) => read_json(path)?,
        };
        let set = [
            ("memory", "limit", self.memory.map(Value::from)),
            ("memory", "swap", self.memory_swap.map(Value::from)),
            ("memory", "reservation", self.memory_reservation.map(Value::from)),
            ("cpu", "shares", self.cpu_shares.map(Value::from)),
            ("cpu", "quota", self.cpu_quota.map(Value::from)),
            ("cpu", "period", self.cpu_period.map(Value::from)),
            ("cpu", "cpus", self.cpuset_cpus.clone().map(Value::from)),
            ("cpu", "mems", self.cpuset_mems.clone().map(Value::from)),
            ("blockIO", "weight", self.blkio_weight.map(Value::from)),
            ("pids", "limit", self.pids_limit.map(Value::from)),
        ];
        for (group, key, value) in set {
            let Some(value) = value else { continue };
            let group = whole.entry(group).or_insert_with(|| json!({}));
            if let Some(group) = group.as_object_mut() {
                group.insert(key.to_owned(), value);
            }
        }
        serde_json::from_value(Value::Object(whole)).context("resources")
    }
}
