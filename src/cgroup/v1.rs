//! OCI resources as settings of cgroup v1 controllers.
//!
//! Zero and absent mean "leave as it is", as in runc and in CRI updates; -1 means unlimited.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use crate::error::{CgroupError, Result};
use crate::setting::Setting;

/// Weights of the blkio controller (`blkio.weight`, `blkio.bfq.weight`).
const BLKIO_WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// Every setting that the resources ask for, devices aside.
pub(crate) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>> {
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
        add_blkio(&mut settings, block_io)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = page_size(limit.page_size())?;
        let value = at_least_minus_one("hugepageLimits", limit.limit())?;
        // Without the controller there is nothing that could be limited; kubelet sends zeros all the same.
        settings.push(Setting::new("hugetlb", format!("hugetlb.{size}.limit_in_bytes"), value).or_skip());
        settings
            .push(Setting::new("hugetlb", format!("hugetlb.{size}.rsvd.limit_in_bytes"), value).or_skip());
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id().filter(|&class| class != 0) {
            settings.push(Setting::new("net_cls", "net_cls.classid", class));
        }
        for priority in network.priorities().iter().flatten() {
            let name = word("network.priorities", priority.name())?;
            let setting =
                Setting::new("net_prio", "net_prio.ifpriomap", format!("{name} {}", priority.priority()));
            settings.push(setting.per_device(name.to_owned(), "0"));
        }
    }
    settings.extend(rdma(resources)?);
    if let Some(key) = resources.unified().as_ref().and_then(|unified| unified.keys().next()) {
        return Err(invalid(
            "unified",
            key,
            "there is no unified hierarchy with controllers on this machine",
        ));
    }
    Ok(settings)
}

fn add_memory(settings: &mut Vec<Setting>, memory: &LinuxMemory) -> Result<()> {
    let limit = bytes("memory.limit", memory.limit())?;
    // Raising the limit to infinity is refused as long as memory+swap stays finite.
    let swap = bytes("memory.swap", memory.swap())?.or(limit.filter(|&limit| limit == -1));
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap != -1
        && (limit == -1 || swap < limit)
    {
        return Err(invalid("memory.swap", swap, "memory+swap is smaller than the memory limit"));
    }
    if let Some(limit) = limit {
        settings.push(Setting::new("memory", "memory.limit_in_bytes", limit));
    }
    if let Some(swap) = swap {
        // Absent without swap accounting (swapaccount=0): then there is no swap limit to set.
        settings.push(Setting::new("memory", "memory.memsw.limit_in_bytes", swap).or_skip());
    }
    if let Some(reservation) = bytes("memory.reservation", memory.reservation())? {
        settings.push(Setting::new("memory", "memory.soft_limit_in_bytes", reservation));
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return Err(invalid("memory.swappiness", swappiness, "the range is 0 to 100"));
        }
        settings.push(Setting::new("memory", "memory.swappiness", swappiness));
    }
    if let Some(disable) = memory.disable_oom_killer() {
        settings.push(Setting::new("memory", "memory.oom_control", u8::from(disable)));
    }
    // memory.kernel and memory.kernelTCP are gone from current kernels and ignored by the other runtimes.
    Ok(())
}

fn add_cpu(settings: &mut Vec<Setting>, cpu: &LinuxCpu) -> Result<()> {
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        settings.push(Setting::new("cpu", "cpu.shares", shares));
    }
    if let Some(period) = cpu.period().filter(|&period| period != 0) {
        settings.push(Setting::new("cpu", "cpu.cfs_period_us", period));
    }
    if let Some(quota) = cpu.quota().filter(|&quota| quota != 0) {
        settings.push(Setting::new("cpu", "cpu.cfs_quota_us", at_least_minus_one("cpu.quota", quota)?));
    }
    if let Some(burst) = cpu.burst() {
        settings.push(Setting::new("cpu", "cpu.cfs_burst_us", burst));
    }
    if let Some(idle) = cpu.idle() {
        settings.push(Setting::new("cpu", "cpu.idle", idle));
    }
    if let Some(period) = cpu.realtime_period().filter(|&period| period != 0) {
        settings.push(Setting::new("cpu", "cpu.rt_period_us", period));
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|&runtime| runtime != 0) {
        settings.push(Setting::new("cpu", "cpu.rt_runtime_us", runtime));
    }
    settings.extend(cpuset(cpu)?);
    Ok(())
}

fn add_blkio(settings: &mut Vec<Setting>, block_io: &LinuxBlockIo) -> Result<()> {
    if let Some(weight) = weight(block_io.weight())? {
        // Which scheduler's file there is depends on the kernel; a weight is a hint.
        settings.push(Setting::new("blkio", "blkio.weight", weight).or_skip());
        settings.push(Setting::new("blkio", "blkio.bfq.weight", weight).or_skip());
    }
    if let Some(leaf) = weight(block_io.leaf_weight())? {
        settings.push(Setting::new("blkio", "blkio.leaf_weight", leaf).or_skip());
    }
    for device in block_io.weight_device().iter().flatten() {
        let key = device_key(device.major(), device.minor())?;
        if let Some(weight) = weight(device.weight())? {
            for file in ["blkio.weight_device", "blkio.bfq.weight_device"] {
                let setting = Setting::new("blkio", file, format!("{key} {weight}"));
                settings.push(setting.per_device(key.clone(), "0").or_skip());
            }
        }
    }
    for (file, devices) in [
        ("blkio.throttle.read_bps_device", block_io.throttle_read_bps_device()),
        ("blkio.throttle.write_bps_device", block_io.throttle_write_bps_device()),
        ("blkio.throttle.read_iops_device", block_io.throttle_read_iops_device()),
        ("blkio.throttle.write_iops_device", block_io.throttle_write_iops_device()),
    ] {
        for device in devices.iter().flatten() {
            let key = throttled(device)?;
            settings
                .push(Setting::new("blkio", file, format!("{key} {}", device.rate())).per_device(key, "0"));
        }
    }
    Ok(())
}

/// `cpuset.cpus` and `cpuset.mems`, which v1 and v2 share.
pub(crate) fn cpuset(cpu: &LinuxCpu) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    for (field, file, list) in
        [("cpu.cpus", "cpuset.cpus", cpu.cpus()), ("cpu.mems", "cpuset.mems", cpu.mems())]
    {
        let Some(list) = list.as_deref().filter(|list| !list.is_empty()) else { continue };
        // cpuset(7), list format.
        if !list.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'-')) {
            return Err(invalid(field, list, "a list of numbers and ranges, as in 0-3,7"));
        }
        settings.push(Setting::new("cpuset", file, list));
    }
    Ok(settings)
}

/// `rdma.max`, which v1 and v2 share.
pub(crate) fn rdma(resources: &LinuxResources) -> Result<Vec<Setting>> {
    let mut settings = Vec::new();
    for (device, limit) in resources.rdma().iter().flatten() {
        let device = word("rdma", device)?;
        let part = |limit: Option<u32>| limit.map_or_else(|| "max".to_owned(), |limit| limit.to_string());
        let (handles, objects) = (part(limit.hca_handles()), part(limit.hca_objects()));
        let value = format!("{device} hca_handle={handles} hca_object={objects}");
        let setting = Setting::new("rdma", "rdma.max", value);
        settings.push(setting.per_device(device.to_owned(), "hca_handle=max hca_object=max"));
    }
    Ok(settings)
}

/// The text for `pids.max`; `None` leaves it.
pub(crate) fn pids_max(pids: &oci_spec::runtime::LinuxPids) -> Option<String> {
    match pids.limit() {
        0 => None,
        limit if limit < 0 => Some("max".to_owned()),
        limit => Some(limit.to_string()),
    }
}

/// A byte count: `None` for absent and zero.
pub(crate) fn bytes(field: &'static str, value: Option<i64>) -> Result<Option<i64>> {
    value.filter(|&value| value != 0).map(|value| at_least_minus_one(field, value)).transpose()
}

pub(crate) fn at_least_minus_one(field: &'static str, value: i64) -> Result<i64> {
    if value < -1 { Err(invalid(field, value, "below -1")) } else { Ok(value) }
}

pub(crate) fn weight(weight: Option<u16>) -> Result<Option<u16>> {
    match weight {
        None | Some(0) => Ok(None),
        Some(weight) if BLKIO_WEIGHTS.contains(&weight) => Ok(Some(weight)),
        Some(weight) => Err(invalid("blockIO.weight", weight, "the range is 10 to 1000")),
    }
}

pub(crate) fn throttled(device: &LinuxThrottleDevice) -> Result<String> {
    device_key(device.major(), device.minor())
}

pub(crate) fn device_key(major: i64, minor: i64) -> Result<String> {
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) => Ok(format!("{major}:{minor}")),
        _ => Err(invalid("blockIO", format!("{major}:{minor}"), "a device number is not negative")),
    }
}

/// `2MB`, `1GB`, `64KB`: becomes part of a file name.
pub(crate) fn page_size(size: &str) -> Result<&str> {
    let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
    match digits {
        Some(digits)
            if (1..=6).contains(&digits.len())
                && !digits.starts_with('0')
                && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            Ok(size)
        }
        _ => Err(invalid("hugepageLimits.pageSize", size, "a size like 2MB")),
    }
}

fn word<'a>(field: &'static str, text: &'a str) -> Result<&'a str> {
    if text.is_empty() || text.len() > 64 || text.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(invalid(field, text, "a device name has 1 to 64 printable characters and no space"));
    }
    Ok(text)
}

pub(crate) fn invalid(field: &str, value: impl ToString, reason: &'static str) -> CgroupError {
    let value = value.to_string().chars().take(128).collect();
    CgroupError::InvalidResource { field: field.to_owned(), value, reason }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn written(json: &str) -> Vec<String> {
        settings(&resources(json)).unwrap().iter().map(|one| format!("{}={}", one.file, one.value)).collect()
    }

    #[test]
    fn kubelet_resources_become_v1_files() {
        let json = r#"{"memory":{"limit":67108864,"swap":67108864},"pids":{"limit":100},
            "cpu":{"shares":102,"quota":50000,"period":100000,"cpus":"0-1","mems":"0"},
            "hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#;
        assert_eq!(
            written(json),
            [
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=67108864",
                "cpu.shares=102",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpuset.cpus=0-1",
                "cpuset.mems=0",
                "pids.max=100",
                "hugetlb.2MB.limit_in_bytes=0",
                "hugetlb.2MB.rsvd.limit_in_bytes=0",
            ]
        );
    }

    #[test]
    fn zero_and_absent_change_nothing() {
        assert!(
            written(r#"{"memory":{"limit":0,"swap":0},"cpu":{"shares":0,"quota":0,"period":0,"cpus":""}}"#)
                .is_empty()
        );
        assert_eq!(
            written(r#"{"memory":{"limit":-1}}"#),
            ["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"]
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for json in [
            r#"{"memory":{"limit":-2}}"#,
            r#"{"memory":{"limit":10,"swap":5}}"#,
            r#"{"memory":{"swappiness":101}}"#,
            r#"{"cpu":{"cpus":"0;reboot"}}"#,
            r#"{"cpu":{"mems":"../x"}}"#,
            r#"{"hugepageLimits":[{"pageSize":"../2MB","limit":1}]}"#,
            r#"{"hugepageLimits":[{"pageSize":"MB","limit":1}]}"#,
            r#"{"blockIO":{"weight":9}}"#,
            r#"{"blockIO":{"throttleReadBpsDevice":[{"major":-1,"minor":0,"rate":1}]}}"#,
            r#"{"rdma":{"mlx 5":{"hcaHandles":1}}}"#,
            r#"{"unified":{"memory.high":"1"}}"#,
        ] {
            assert!(settings(&resources(json)).is_err(), "{json}");
        }
    }
}
