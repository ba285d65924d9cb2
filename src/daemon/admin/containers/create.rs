//! Create: from the wire to [`Settings`].

use std::net::IpAddr;
use std::time::Duration;

use pinnace_admin_api::v1;
use pinnace_network::Protocol;

use crate::container::record::Resources;
use crate::error::Error;
use crate::local::record::{
    HealthCheck, Mount, MountKind, NetworkMode, Port, Restart, SecurityOptions, Settings,
};

/// µs of the period that CPUs are divided in.
const CPU_PERIOD_US: i64 = 100_000;

/// CPUs × 10⁹.
const NANO: i64 = 1_000_000_000;

/// The least memory that a program starts with, as docker has it.
const MEMORY_BYTES_MIN: i64 = 6 << 20;

/// Validates what a container is asked to be.
pub fn settings(given: v1::ContainerSettings) -> Result<Settings, Error> {
    if given.image.is_empty() {
        return Err(Error::invalid("image", "is empty"));
    }
    for entry in &given.env {
        if entry.starts_with('=') || !entry.contains('=') {
            return Err(Error::invalid("env", format!("{entry:?} is not KEY=value")));
        }
    }
    let network = match given.network.as_str() {
        "" | "bridge" | "default" => NetworkMode::Bridge,
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        other => {
            let reason = format!("{other:?} is not known; known are bridge, host and none");
            return Err(Error::invalid("network", reason));
        }
    };
    let host = |field: &str, mode: &str| match mode {
        "" | "private" | "shareable" => Ok(false),
        "host" => Ok(true),
        other => Err(Error::invalid(field, format!("{other:?} is not known; known are private and host"))),
    };
    let limits = given.limits.unwrap_or_default();
    let group = |group: &String| {
        group.parse::<u32>().map_err(|_| Error::invalid("groups", format!("{group:?} is not a number")))
    };
    Ok(Settings {
        image: given.image,
        command: given.command,
        entrypoint: given.entrypoint.map(|list| list.values),
        env: given.env,
        labels: given.labels.into_iter().collect(),
        hostname: given.hostname,
        user: given.user,
        working_dir: given.working_dir,
        terminal: given.terminal,
        stdin: given.stdin,
        stdin_once: given.stdin_once,
        mounts: given.mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
        ports: given.ports.iter().map(port).collect::<Result<_, _>>()?,
        publish_all: given.publish_all,
        network,
        extra_hosts: given.extra_hosts.iter().map(|entry| extra_host(entry)).collect::<Result<_, _>>()?,
        dns_servers: given.dns_servers,
        dns_searches: given.dns_searches,
        dns_options: given.dns_options,
        read_only: given.read_only,
        add_capabilities: given.add_capabilities.iter().map(|name| capability(name)).collect(),
        drop_capabilities: given.drop_capabilities.iter().map(|name| capability(name)).collect(),
        security: security(given.security_options)?,
        privileged: given.privileged,
        devices: given
            .devices
            .into_iter()
            .map(|device| (device.host_path, device.container_path, device.permissions))
            .collect(),
        ulimits: given.ulimits.into_iter().map(ulimit).collect::<Result<_, _>>()?,
        sysctls: given.sysctls.into_iter().collect(),
        shm_bytes: given.shm_bytes,
        restart: given.restart.map(restart).transpose()?.unwrap_or_default(),
        auto_remove: given.auto_remove,
        init: given.init,
        stop_signal: given.stop_signal,
        stop_timeout_s: given.stop_timeout_s,
        resources: resources(&limits)?,
        pids: limits.pids,
        health: given.health.map(health).transpose()?,
        host_pid: host("pid_mode", &given.pid_mode)?,
        host_ipc: host("ipc_mode", &given.ipc_mode)?,
        groups: given.groups.iter().map(group).collect::<Result<_, _>>()?,
        oom_score_adj: given.oom_score_adj.unwrap_or(0),
    })
}

/// Limits in the CRI's units.
pub fn resources(limits: &v1::Limits) -> Result<Resources, Error> {
    let refuse = |field: &str, reason: &str| Err(Error::invalid(format!("limits.{field}"), reason));
    if limits.nano_cpus < 0 {
        return refuse("nano_cpus", "is negative");
    }
    if limits.memory_bytes != 0 && limits.memory_bytes < MEMORY_BYTES_MIN {
        return refuse("memory_bytes", "the least that is allowed is 6 MiB");
    }
    if limits.memory_swap_bytes > 0 && limits.memory_swap_bytes < limits.memory_bytes {
        return refuse("memory_swap_bytes", "is memory and swap together, and less than the memory");
    }
    let (quota, period) = match limits.nano_cpus {
        0 => (0, 0),
        cpus => (
            i64::try_from(i128::from(cpus) * i128::from(CPU_PERIOD_US) / i128::from(NANO)).unwrap_or(0),
            CPU_PERIOD_US,
        ),
    };
    if limits.nano_cpus != 0 && quota < 1000 {
        return refuse("nano_cpus", "the least that is allowed is 0.01");
    }
    let swap = match (limits.memory_swap_bytes, limits.memory_bytes) {
        // As much again, as docker has it.
        (0, memory) if memory > 0 => memory.saturating_mul(2),
        (swap, _) => swap,
    };
    Ok(Resources {
        cpu_period_us: period,
        cpu_quota_us: quota,
        cpu_shares: limits.cpu_shares,
        memory_limit_bytes: limits.memory_bytes,
        memory_swap_limit_bytes: swap,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        ..Resources::default()
    })
}

/// A restart policy.
pub fn restart(given: v1::RestartPolicy) -> Result<Restart, Error> {
    match given.name.as_str() {
        "" | "no" => Ok(Restart::No),
        "on-failure" => Ok(Restart::OnFailure(given.maximum_retries)),
        "always" => Ok(Restart::Always),
        "unless-stopped" => Ok(Restart::UnlessStopped),
        other => {
            let known = "no, on-failure[:retries], always and unless-stopped";
            Err(Error::invalid("restart", format!("{other:?} is not known; known are {known}")))
        }
    }
}

fn capability(name: &str) -> String {
    let name = name.to_uppercase();
    name.strip_prefix("CAP_").map_or(name.clone(), ToOwned::to_owned)
}

fn mount(given: v1::MountSetting) -> Result<Mount, Error> {
    let kind = match given.kind() {
        v1::mount_setting::Kind::Bind => MountKind::Bind,
        v1::mount_setting::Kind::Volume => MountKind::Volume,
        v1::mount_setting::Kind::Tmpfs => MountKind::Tmpfs,
        v1::mount_setting::Kind::Image => MountKind::Image,
    };
    let known = ["", "private", "rprivate", "slave", "rslave", "shared", "rshared"];
    if !known.contains(&given.propagation.as_str()) {
        return Err(Error::invalid("mounts.propagation", format!("{:?} is not known", given.propagation)));
    }
    Ok(Mount {
        kind,
        source: given.source,
        target: given.target,
        read_only: given.read_only,
        propagation: given.propagation,
        make_source: given.make_source,
        no_copy: given.no_copy,
        options: given.options,
        sub_path: given.sub_path,
    })
}

fn port(given: &v1::PortSetting) -> Result<Port, Error> {
    let protocol = match given.protocol.as_str() {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => return Err(Error::invalid("ports.protocol", format!("{other:?} is not known"))),
    };
    let number = |field: &str, port: u32| {
        u16::try_from(port)
            .map_err(|_| Error::invalid(format!("ports.{field}"), format!("{port} is no port")))
    };
    let container_port = number("container_port", given.container_port)?;
    if container_port == 0 {
        return Err(Error::invalid("ports.container_port", "is 0"));
    }
    let address = match given.host_address.as_str() {
        "" => None,
        text => Some(
            text.parse::<IpAddr>()
                .map_err(|_| Error::invalid("ports.host_address", format!("{text:?} is no address")))?,
        ),
    };
    let host_port = number("host_port", given.host_port)?;
    Ok(Port { protocol, container_port, host_port, host_address: address })
}

fn extra_host(entry: &str) -> Result<(String, String), Error> {
    let wrong = || Error::invalid("extra_hosts", format!("{entry:?} is not name:address"));
    let (name, address) = entry.split_once(':').or_else(|| entry.split_once('=')).ok_or_else(wrong)?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if name.is_empty() || (address != "host-gateway" && address.parse::<IpAddr>().is_err()) {
        return Err(wrong());
    }
    Ok((name.to_owned(), address.to_owned()))
}

fn ulimit(given: v1::UlimitSetting) -> Result<(String, u64, u64), Error> {
    // -1 is unlimited, which is the largest number (getrlimit(2)).
    let value = |value: i64| match value {
        -1 => Ok(u64::MAX),
        value => u64::try_from(value)
            .map_err(|_| Error::invalid(format!("ulimits {}", given.name), format!("{value} is negative"))),
    };
    let (soft, hard) = (value(given.soft)?, value(given.hard)?);
    if soft > hard {
        let reason = format!("the soft limit {soft} is above the hard one {hard}");
        return Err(Error::invalid(format!("ulimits {}", given.name), reason));
    }
    Ok((given.name, soft, hard))
}

fn security(given: Vec<String>) -> Result<SecurityOptions, Error> {
    let mut options = SecurityOptions { given: given.clone(), ..SecurityOptions::default() };
    for option in given {
        let (key, value) = option.split_once(['=', ':']).unwrap_or((&option, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => options.no_new_privileges = true,
            ("no-new-privileges", "false") => options.no_new_privileges = false,
            ("seccomp", value) if !value.is_empty() => options.seccomp = value.to_owned(),
            ("apparmor", value) if !value.is_empty() => options.apparmor = value.to_owned(),
            ("systempaths", "unconfined") => options.unmask = true,
            // Without SELinux there is nothing to turn off.
            ("label", "disable") => {}
            _ => {
                let known =
                    "no-new-privileges, seccomp=, apparmor=, systempaths=unconfined and label=disable";
                let reason = format!("{option:?} is not known; known are {known}");
                return Err(Error::invalid("security_options", reason));
            }
        }
    }
    Ok(options)
}

fn health(given: v1::HealthCheck) -> Result<HealthCheck, Error> {
    let duration = |field: &str, ns: i64| {
        u64::try_from(ns)
            .map(Duration::from_nanos)
            .map_err(|_| Error::invalid(format!("health.{field}"), "is negative"))
    };
    Ok(HealthCheck {
        test: given.test,
        interval: duration("interval_ns", given.interval_ns)?,
        timeout: duration("timeout_ns", given.timeout_ns)?,
        start_period: duration("start_period_ns", given.start_period_ns)?,
        start_interval: duration("start_interval_ns", given.start_interval_ns)?,
        retries: given.retries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> v1::ContainerSettings {
        v1::ContainerSettings { image: "busybox".into(), ..Default::default() }
    }

    #[test]
    fn wrong_settings_name_their_field() {
        type Spoil = fn(&mut v1::ContainerSettings);
        let cases: [(&str, Spoil); 7] = [
            ("image", |settings| settings.image.clear()),
            ("env", |settings| settings.env.push("A".into())),
            ("network", |settings| settings.network = "mesh".into()),
            ("security_options", |settings| settings.security_options.push("x=y".into())),
            ("extra_hosts", |settings| settings.extra_hosts.push("name:here".into())),
            ("limits.memory_bytes", |settings| {
                settings.limits = Some(v1::Limits { memory_bytes: 4096, ..Default::default() });
            }),
            ("ulimits nofile", |settings| {
                settings.ulimits.push(v1::UlimitSetting { name: "nofile".into(), soft: 2, hard: 1 });
            }),
        ];
        for (field, spoil) in cases {
            let mut settings = given();
            spoil(&mut settings);
            let error = super::settings(settings).unwrap_err();
            assert!(error.to_string().starts_with(field), "{field}: {error}");
        }
    }

    #[test]
    fn cpus_and_memory_are_as_docker_has_them() {
        let limits = v1::Limits { nano_cpus: 1_500_000_000, memory_bytes: 64 << 20, ..Default::default() };
        let resources = resources(&limits).unwrap();
        assert_eq!((resources.cpu_quota_us, resources.cpu_period_us), (150_000, 100_000));
        assert_eq!(resources.memory_swap_limit_bytes, 128 << 20);
    }
}
