//! OCI resources as settings of cgroup v2 controllers.
//!
//! The OCI fields are those of v1, so some are converted: CPU shares to a weight, memory+swap to swap alone,
//! a quota and a period to one line. Zero and absent mean "leave as it is"; -1 means `max`.

use std::collections::BTreeSet;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use crate::error::Result;
use crate::setting::Setting;
use crate::v1::{
    at_least_minus_one, bytes, cpuset, device_key, invalid, page_size, pids_max, rdma, throttled, weight,
};

/// Controllers whose keys `unified` may set. `cgroup.*` keys move processes and change the tree: never.
const UNIFIED_CONTROLLERS: [&str; 9] =
    ["cpu", "cpuset", "dmem", "hugetlb", "io", "memory", "misc", "pids", "rdma"];
/// Longest value of a `unified` key.
const UNIFIED_BYTES: usize = 4096;

/// Every setting that the resources ask for, devices aside. `available` are the controllers of the machine.
pub(crate) fn settings(resources: &LinuxResources, available: &BTreeSet<String>) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        add_memory(&mut settings, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        add_cpu(&mut settings, cpu)?;
    }
    if let Some(limit) = resources.pids().as_ref().and_then(pids_max) {
        settings.push(Setting::new("pids", "pids.max", limit));
    }
    if let Some(block_io) = resources.block_io() {
        add_io(&mut settings, block_io)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        let value = or_max(at_least_minus_one("hugepageLimits", limit.limit())?);
        // Without the controller there is nothing that could be limited; kubelet sends zeros all the same.
        settings.push(Setting::new("hugetlb", format!("hugetlb.{size}.max"), &value).or_skip());
        settings.push(Setting::new("hugetlb", format!("hugetlb.{size}.rsvd.max"), &value).or_skip());
    }
    settings.extend(rdma(resources)?);
    // resources.network (net_cls, net_prio) has no v2 form; the other runtimes ignore it as well.
    for (key, value) in resources.unified().iter().flatten() {
        add_unified(&mut settings, key, value, available)?;
    }
    Ok(settings)
}

fn add_memory(settings: &mut Vec<Setting>, memory: &LinuxMemory) -> Result<()> {
    let limit = bytes("memory.limit", memory.limit())?;
    let swap = bytes("memory.swap", memory.swap())?.or(limit.filter(|&limit| limit == -1));
    if let Some(limit) = limit {
        settings.push(Setting::new("memory", "memory.max", or_max(limit)));
    }
    if let Some(swap) = swap {
        let refuse = |reason| invalid("memory.swap", swap, reason);
        let swap_only = match (swap, limit) {
            (-1, _) => -1,
            (_, None) => return Err(refuse("memory+swap needs a memory limit")),
            (_, Some(-1)) => return Err(refuse("memory+swap is smaller than the memory limit")),
            (swap, Some(limit)) if swap < limit => {
                return Err(refuse("memory+swap is smaller than the memory limit"));
            }
            (swap, Some(limit)) => swap - limit,
        };
        // Absent on kernels without swap: then no swap and no limit are the same.
        settings.push(Setting::new("memory", "memory.swap.max", or_max(swap_only)).or_skip());
    }
    if let Some(reservation) = bytes("memory.reservation", memory.reservation())? {
        settings.push(Setting::new("memory", "memory.low", or_max(reservation)));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(invalid("memory.disableOOMKiller", true, "cgroup v2 always has an OOM killer"));
    }
    // Swappiness is not per cgroup on v2.
    Ok(())
}

fn add_cpu(settings: &mut Vec<Setting>, cpu: &LinuxCpu) -> Result<()> {
    if cpu.realtime_runtime().is_some_and(|runtime| runtime != 0) {
        return Err(invalid("cpu.realtimeRuntime", "set", "cgroup v2 has no realtime groups"));
    }
    if let Some(idle) = cpu.idle() {
        settings.push(Setting::new("cpu", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        settings.push(Setting::new("cpu", "cpu.weight", cpu_weight(shares)));
    }
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    let quota = quota.map(|quota| at_least_minus_one("cpu.quota", quota).map(or_max)).transpose()?;
    match (quota, period) {
        (Some(quota), Some(period)) => {
            settings.push(Setting::new("cpu", "cpu.max", format!("{quota} {period}")));
        }
        (Some(quota), None) => settings.push(Setting::new("cpu", "cpu.max", quota)),
        // A period alone cannot be written: the quota is part of the line. `Cgroup` reads it and fills it in.
        (None, Some(period)) => {
            settings.push(Setting::new("cpu", "cpu.max", format!("{KEEP_QUOTA} {period}")));
        }
        (None, None) => {}
    }
    if let Some(burst) = cpu.burst() {
        settings.push(Setting::new("cpu", "cpu.max.burst", burst));
    }
    settings.extend(cpuset(cpu)?);
    Ok(())
}

/// Stands for the quota that `cpu.max` has now.
pub(crate) const KEEP_QUOTA: &str = "keep";

fn add_io(settings: &mut Vec<Setting>, block_io: &LinuxBlockIo) -> Result<()> {
    if let Some(weight) = weight(block_io.weight())? {
        settings.push(Setting::new("io", "io.bfq.weight", weight).or_skip());
        settings.push(Setting::new("io", "io.weight", io_weight(weight)).or_skip());
    }
    for device in block_io.weight_device().iter().flatten() {
        let key = device_key(device.major(), device.minor())?;
        if let Some(weight) = weight(device.weight())? {
            let setting = Setting::new("io", "io.bfq.weight", format!("{key} {weight}"));
            settings.push(setting.per_device(key, "default").or_skip());
        }
    }
    for (name, devices) in [
        ("rbps", block_io.throttle_read_bps_device()),
        ("wbps", block_io.throttle_write_bps_device()),
        ("riops", block_io.throttle_read_iops_device()),
        ("wiops", block_io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            let key = throttled(device)?;
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let setting = Setting::new("io", "io.max", format!("{key} {name}={rate}"));
            settings.push(setting.per_device(key, "rbps=max wbps=max riops=max wiops=max"));
        }
    }
    Ok(())
}

fn add_unified(
    settings: &mut Vec<Setting>,
    key: &str,
    value: &str,
    available: &BTreeSet<String>,
) -> Result<()> {
    let refuse = |reason| Err(invalid(&format!("unified[{key:?}]"), value, reason));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
    let Some((prefix, rest)) = key.split_once('.') else {
        return refuse("a key is controller.file");
    };
    if key.len() > 64 || rest.is_empty() || !key.bytes().all(plain) {
        return refuse("a key is controller.file");
    }
    let Some(controller) = UNIFIED_CONTROLLERS.iter().find(|&&known| known == prefix) else {
        return refuse("the key's controller is unknown or not allowed");
    };
    if !available.contains(*controller) {
        return refuse("this machine does not have the controller");
    }
    if value.len() > UNIFIED_BYTES || value.bytes().any(|byte| byte == 0) {
        return refuse("the value is longer than 4096 bytes or has a NUL");
    }
    // Files with a line per device take one line per write(2).
    for line in value.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let setting = Setting::new(controller, key, line);
        let device = line.split(' ').next().filter(|first| first.contains(':'));
        settings.push(match (device, key) {
            (Some(device), "io.max") => {
                setting.per_device(device.to_owned(), "rbps=max wbps=max riops=max wiops=max")
            }
            (Some(device), "io.latency") => setting.per_device(device.to_owned(), "target=0"),
            (Some(device), "io.weight" | "io.bfq.weight") => setting.per_device(device.to_owned(), "default"),
            _ => setting,
        });
    }
    Ok(())
}

/// CPU shares (2 to 262144, default 1024) as a v2 weight (1 to 10000, default 100).
///
/// The curve goes through (2, 1), (1024, 100) and (262144, 10000), as in crun, runc and kubelet:
/// log10(weight) = (l² + 125 l) / 612 - 7/34 with l = log2(shares).
#[expect(clippy::cast_precision_loss, reason = "clamped to 18 bits first")]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1..=10000")]
fn cpu_weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil().clamp(1.0, 10_000.0) as u64
}

/// blkio weight (10 to 1000) as a v2 io weight (1 to 10000), linearly, as crun and runc do.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9999 / 990
}

fn or_max(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::tests::resources;

    fn available() -> BTreeSet<String> {
        ["cpu", "memory", "io", "pids"].map(str::to_owned).into()
    }

    fn written(json: &str) -> Vec<String> {
        let settings = settings(&resources(json), &available()).unwrap();
        settings.iter().map(|one| format!("{}={}", one.file, one.value)).collect()
    }

    #[test]
    fn kubelet_resources_become_v2_files() {
        let json = r#"{"memory":{"limit":67108864,"swap":100663296},"pids":{"limit":-1},
            "cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0-1"},
            "unified":{"memory.oom.group":"1"}}"#;
        assert_eq!(
            written(json),
            [
                "memory.max=67108864",
                "memory.swap.max=33554432",
                "cpu.weight=100",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1",
                "pids.max=max",
                "memory.oom.group=1",
            ]
        );
    }

    #[test]
    fn shares_keep_their_meaning() {
        assert_eq!(
            [0, 1, 2, 102, 1024, 2048, 262_144, u64::MAX].map(cpu_weight)[1..],
            [1, 1, 17, 100, 174, 10_000, 10_000]
        );
        assert_eq!([10, 500, 1000].map(io_weight), [1, 4950, 10_000]);
    }

    #[test]
    fn quota_and_period_are_one_line() {
        assert_eq!(written(r#"{"cpu":{"quota":-1}}"#), ["cpu.max=max"]);
        assert_eq!(written(r#"{"cpu":{"quota":-1,"period":50000}}"#), ["cpu.max=max 50000"]);
        assert_eq!(written(r#"{"cpu":{"period":50000}}"#), ["cpu.max=keep 50000"]);
        assert_eq!(written(r#"{"memory":{"limit":-1}}"#), ["memory.max=max", "memory.swap.max=max"]);
    }

    #[test]
    fn throttles_are_lines_of_one_file() {
        let json = r#"{"blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":5}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":0}]}}"#;
        assert_eq!(
            written(json),
            ["io.bfq.weight=10", "io.weight=1", "io.max=8:0 rbps=5", "io.max=8:0 wiops=max"]
        );
    }

    #[test]
    fn unified_cannot_leave_the_controllers() {
        for (key, value) in [
            ("cgroup.procs", "1"),
            ("cgroup.subtree_control", "-memory"),
            ("cgroup.type", "threaded"),
            ("memory", "1"),
            ("memory.", "1"),
            ("memory/../cgroup.procs", "1"),
            ("memory.max/../../cgroup.procs", "1"),
            ("evil.max", "1"),
            ("hugetlb.2MB.max", "1"),
            ("memory.high", "1\0"),
        ] {
            let unified = std::collections::HashMap::from([(key.to_owned(), value.to_owned())]);
            let mut resources = LinuxResources::default();
            resources.set_unified(Some(unified));
            assert!(settings(&resources, &available()).is_err(), "{key}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for json in [
            r#"{"memory":{"swap":5}}"#,
            r#"{"memory":{"limit":10,"swap":5}}"#,
            r#"{"memory":{"limit":-1,"swap":5}}"#,
            r#"{"memory":{"disableOOMKiller":true}}"#,
            r#"{"cpu":{"realtimeRuntime":1000}}"#,
            r#"{"cpu":{"quota":-7}}"#,
        ] {
            assert!(settings(&resources(json), &available()).is_err(), "{json}");
        }
    }
}
