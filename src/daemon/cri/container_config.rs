//! ContainerConfig to our own request; everything about it that can be wrong by itself is found here.

use pinnace_cri_api::v1;
use pinnace_spec::cdi;

use super::{mounts, sandbox_config::absolute, security, signal};
use crate::container::record::{ContainerName, Resources};
use crate::container::request::{ContainerRequest, DeviceRequest};
use crate::error::Error;

/// Reads a request's configuration.
pub fn parse(config: v1::ContainerConfig) -> Result<ContainerRequest, Error> {
    let metadata = config.metadata.ok_or_else(|| Error::invalid("config.metadata", "is missing"))?;
    if metadata.name.is_empty() {
        return Err(Error::invalid("config.metadata.name", "is empty"));
    }
    let image = config.image.unwrap_or_default();
    if image.image.is_empty() {
        return Err(Error::invalid("config.image.image", "is empty"));
    }
    if !config.log_path.is_empty() {
        // A joined absolute path would replace its base (rule R1); `..` would leave it (CVE-2025-0750).
        absolute("config.log_path", &format!("/{}", config.log_path))?;
        if config.log_path.starts_with('/') {
            return Err(Error::invalid("config.log_path", "is not relative to the sandbox's log directory"));
        }
    }
    let linux = config.linux.unwrap_or_default();
    Ok(ContainerRequest {
        name: ContainerName { name: metadata.name, attempt: metadata.attempt },
        user_specified_image: image.user_specified_image,
        image: image.image,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        envs: config.envs.into_iter().map(|env| (env.key, env.value)).collect(),
        mounts: mounts::parse(config.mounts)?,
        devices: devices(config.devices)?,
        cdi_devices: cdi_devices(config.cdi_devices, &config.annotations)?,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        log_path: config.log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources("config.linux.resources", linux.resources.unwrap_or_default())?,
        security: security::parse(linux.security_context.unwrap_or_default())?,
        kept: None,
        stop_signal: signal::number(config.stop_signal)?,
    })
}

fn devices(devices: Vec<v1::Device>) -> Result<Vec<DeviceRequest>, Error> {
    let parse = |(index, device): (usize, v1::Device)| {
        let field = |name: &str| format!("config.devices[{index}].{name}");
        absolute(&field("host_path"), &device.host_path)?;
        let container_path =
            if device.container_path.is_empty() { device.host_path.clone() } else { device.container_path };
        absolute(&field("container_path"), &container_path)?;
        if !device.permissions.chars().all(|letter| "rwm".contains(letter)) {
            let reason = format!("{:?} is no subset of \"rwm\"", device.permissions);
            return Err(Error::invalid(field("permissions"), reason));
        }
        let permissions = if device.permissions.is_empty() { "rwm".to_owned() } else { device.permissions };
        Ok(DeviceRequest { container_path, host_path: device.host_path, permissions })
    };
    devices.into_iter().enumerate().map(parse).collect()
}

/// The field, then annotations: device plugins older than the field say it there, and the kubelet passes that on. A pod's own
/// annotations do not come this way.
fn cdi_devices(
    devices: Vec<v1::CdiDevice>,
    annotations: &std::collections::HashMap<String, String>,
) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = devices.into_iter().map(|device| device.name).collect();
    for name in &names {
        name.parse::<cdi::Name>()?;
    }
    let mut sorted: Vec<_> = annotations.iter().collect();
    sorted.sort();
    names.extend(cdi::annotated(sorted)?);
    Ok(names)
}

/// Limits; 0 and empty mean unset.
pub fn resources(field: &str, resources: v1::LinuxContainerResources) -> Result<Resources, Error> {
    let bounded = |name: &str, value: i64, least: i64| {
        if value < least {
            return Err(Error::invalid(format!("{field}.{name}"), format!("{value} is below {least}")));
        }
        Ok(value)
    };
    if !(-1000..=1000).contains(&resources.oom_score_adj) {
        let reason = format!("{} is not within -1000..=1000", resources.oom_score_adj);
        return Err(Error::invalid(format!("{field}.oom_score_adj"), reason));
    }
    Ok(Resources {
        cpu_period_us: bounded("cpu_period", resources.cpu_period, 0)?,
        cpu_quota_us: bounded("cpu_quota", resources.cpu_quota, -1)?,
        cpu_shares: bounded("cpu_shares", resources.cpu_shares, 0)?,
        memory_limit_bytes: bounded("memory_limit_in_bytes", resources.memory_limit_in_bytes, 0)?,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        hugepage_limits: resources
            .hugepage_limits
            .into_iter()
            .map(|limit| (limit.page_size, limit.limit))
            .collect(),
        unified: resources.unified.into_iter().collect(),
        memory_swap_limit_bytes: bounded(
            "memory_swap_limit_in_bytes",
            resources.memory_swap_limit_in_bytes,
            -1,
        )?,
    })
}

/// The CRI's form of limits.
pub fn resources_message(resources: &Resources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period_us,
        cpu_quota: resources.cpu_quota_us,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(size, limit)| v1::HugepageLimit { page_size: size.clone(), limit: *limit })
            .collect(),
        unified: super::list_pod_sandbox::map(&resources.unified),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
    }
}
