//! Inspect: everything that is known of a container, as JSON in docker's form.

use std::collections::BTreeMap;

use pinnace_network::Protocol;
use serde_json::{Value, json};

use super::LocalContainer;
use super::record::{MountKind, NetworkMode, Port, Record, Restart, State};
use super::{create, volumes};
use crate::error::Error;
use crate::node::Node;
use crate::table::lock;

/// What an image exposes, as `80/tcp`.
pub fn exposed(name: &str) -> Option<(u16, Protocol)> {
    let (port, protocol) = name.split_once('/').unwrap_or((name, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some((port.parse().ok()?, protocol))
}

/// As docker writes it.
pub fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// RFC 3339 with nanoseconds; docker's zero for never.
pub fn time(ns: i64) -> String {
    match jiff::Timestamp::from_nanosecond(ns.into()) {
        Ok(at) if ns != 0 => format!("{at:.9}"),
        _ => "0001-01-01T00:00:00Z".to_owned(),
    }
}

/// Everything. Blocks.
pub fn inspect(node: &Node, local: &LocalContainer, size: bool) -> Result<Value, Error> {
    let record = local.record();
    let state = local.state();
    let image = create::image_part(&record.image_config)?;
    let (entrypoint, command) = create::argv(&record.settings, image.as_ref());
    let argv: Vec<_> = entrypoint.iter().chain(&command).collect();
    let mut value = json!({
        "Id": record.id.as_str(),
        "Created": time(record.created_at_ns),
        "Path": argv.first(),
        "Args": argv.get(1..).unwrap_or_default(),
        "State": state_json(local, &state),
        "Image": record.image_id,
        "ResolvConfPath": file(node, &record, "resolv.conf"),
        "HostnamePath": file(node, &record, "hostname"),
        "HostsPath": file(node, &record, "hosts"),
        "LogPath": local.log_path(),
        "Name": format!("/{}", record.name),
        "RestartCount": record.restarts,
        "Driver": "pinnace",
        "Platform": "linux",
        "HostConfig": host_config(&record),
        "Mounts": mounts(node, &record),
        "Config": config(&record, image.as_ref(), &entrypoint, &command),
        "NetworkSettings": network(node, &record),
    });
    if size {
        let own = node.store.usage(record.id.as_str())?.bytes;
        value["SizeRw"] = own.into();
        value["SizeRootFs"] = own.saturating_add(layers_bytes(node, &record)).into();
    }
    Ok(value)
}

/// Bytes of the layers below.
pub fn layers_bytes(node: &Node, record: &Record) -> u64 {
    let layers = record.layers.iter().filter_map(|layer| node.store.layer(layer).ok());
    layers.fold(0, |sum, layer| sum.saturating_add(layer.tar_bytes))
}

fn file(node: &Node, record: &Record, name: &str) -> String {
    match record.id.as_str().parse() {
        Ok(id) if record.state.is_running() => node.sandbox_directory(&id).join(name).display().to_string(),
        _ => String::new(),
    }
}

fn state_json(local: &LocalContainer, state: &State) -> Value {
    let (pid, started, finished, code, oom, error) = match state {
        State::Created { code, error } => (0, 0, 0, *code, false, error.as_str()),
        State::Running { pid, started_at_ns, .. } => (*pid, *started_at_ns, 0, 0, false, ""),
        State::Restarting(ended) | State::Exited(ended) => {
            (0, ended.started_at_ns, ended.finished_at_ns, ended.code, ended.oom_killed, ended.error.as_str())
        }
    };
    let mut value = json!({
        "Status": state.name(),
        "Running": state.is_running() || matches!(state, State::Restarting(_)),
        "Paused": matches!(state, State::Running { paused: true, .. }),
        "Restarting": matches!(state, State::Restarting(_)),
        "OOMKilled": oom,
        "Dead": false,
        "Pid": pid,
        "ExitCode": code,
        "Error": error,
        "StartedAt": time(started),
        "FinishedAt": time(finished),
    });
    let health = lock(&local.health).clone();
    if let Some(judgement) = health.status {
        let log = health.log.iter().map(|checked| {
            json!({
                "Start": time(checked.start_ns),
                "End": time(checked.end_ns),
                "ExitCode": checked.code,
                "Output": checked.output,
            })
        });
        value["Health"] = json!({
            "Status": judgement.name(),
            "FailingStreak": health.failing,
            "Log": log.collect::<Vec<_>>(),
        });
    }
    value
}

fn host_config(record: &Record) -> Value {
    let settings = &record.settings;
    let resources = &settings.resources;
    let retries = match settings.restart {
        Restart::OnFailure(most) => most,
        Restart::No | Restart::Always | Restart::UnlessStopped => 0,
    };
    let binds = settings.mounts.iter().filter(|mount| mount.kind != MountKind::Tmpfs);
    let binds = binds.filter(|mount| !mount.source.is_empty()).map(|mount| {
        let access = if mount.read_only { ":ro" } else { "" };
        format!("{}:{}{access}", mount.source, mount.target)
    });
    let tmpfs = settings.mounts.iter().filter(|mount| mount.kind == MountKind::Tmpfs);
    let tmpfs: BTreeMap<_, _> = tmpfs.map(|mount| (mount.target.clone(), mount.options.join(","))).collect();
    let nano_cpus = match (resources.cpu_quota_us, resources.cpu_period_us) {
        (quota, period @ 1..) if quota > 0 => quota.saturating_mul(1_000_000_000) / period,
        _ => 0,
    };
    json!({
        "Binds": binds.collect::<Vec<_>>(),
        "NetworkMode": settings.network.name(),
        "PortBindings": bindings(&settings.ports),
        "PublishAllPorts": settings.publish_all,
        "RestartPolicy": { "Name": settings.restart.name(), "MaximumRetryCount": retries },
        "AutoRemove": settings.auto_remove,
        "CapAdd": settings.add_capabilities,
        "CapDrop": settings.drop_capabilities,
        "Dns": settings.dns_servers,
        "DnsSearch": settings.dns_searches,
        "DnsOptions": settings.dns_options,
        "ExtraHosts": settings.extra_hosts.iter().map(|(name, to)| format!("{name}:{to}")).collect::<Vec<_>>(),
        "GroupAdd": settings.groups.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "IpcMode": if settings.host_ipc { "host" } else { "private" },
        "PidMode": if settings.host_pid { "host" } else { "" },
        "OomScoreAdj": settings.oom_score_adj,
        "Privileged": settings.privileged,
        "ReadonlyRootfs": settings.read_only,
        "SecurityOpt": settings.security.given,
        "Tmpfs": tmpfs,
        "ShmSize": settings.shm_bytes,
        "Sysctls": settings.sysctls,
        "Runtime": "pinnace",
        "Init": settings.init,
        "CpuShares": resources.cpu_shares,
        "NanoCpus": nano_cpus,
        "CpusetCpus": resources.cpuset_cpus,
        "CpusetMems": resources.cpuset_mems,
        "Memory": resources.memory_limit_bytes,
        "MemorySwap": resources.memory_swap_limit_bytes,
        "PidsLimit": settings.pids,
        "Devices": settings.devices.iter().map(|(host, inside, access)| json!({
            "PathOnHost": host, "PathInContainer": inside, "CgroupPermissions": access,
        })).collect::<Vec<_>>(),
        "Ulimits": settings.ulimits.iter().map(|(name, soft, hard)| json!({
            "Name": name, "Soft": soft, "Hard": hard,
        })).collect::<Vec<_>>(),
    })
}

fn config(
    record: &Record,
    image: Option<&oci_spec::image::Config>,
    entrypoint: &[String],
    command: &[String],
) -> Value {
    let settings = &record.settings;
    let of_image = record.image_config.get("config").cloned().unwrap_or_default();
    let mut env: Vec<String> = image.and_then(|image| image.env().clone()).unwrap_or_default();
    for own in &settings.env {
        let key = own.split('=').next().unwrap_or_default();
        env.retain(|entry| entry.split('=').next() != Some(key));
        env.push(own.clone());
    }
    let text = |own: &str, key: &str| match own {
        "" => of_image.get(key).and_then(Value::as_str).unwrap_or_default().to_owned(),
        own => own.to_owned(),
    };
    let mut labels: BTreeMap<String, String> = of_image
        .get("Labels")
        .and_then(|labels| serde_json::from_value(labels.clone()).ok())
        .unwrap_or_default();
    labels.extend(settings.labels.clone());
    let hostname = match settings.hostname.as_str() {
        "" if settings.network != NetworkMode::Host => &record.id.as_str()[..super::start::SHORT_ID],
        name => name,
    };
    let mut config = json!({
        "Hostname": hostname,
        "User": text(&settings.user, "User"),
        "AttachStdin": settings.stdin_once,
        "Tty": settings.terminal,
        "OpenStdin": settings.stdin,
        "StdinOnce": settings.stdin_once,
        "Env": env,
        "Cmd": command,
        "Entrypoint": entrypoint,
        "Image": settings.image,
        "Volumes": of_image.get("Volumes"),
        "ExposedPorts": of_image.get("ExposedPorts"),
        "WorkingDir": text(&settings.working_dir, "WorkingDir"),
        "Labels": labels,
        "StopSignal": text(&settings.stop_signal, "StopSignal"),
    });
    if let Some(seconds) = settings.stop_timeout_s {
        config["StopTimeout"] = seconds.into();
    }
    if let Some(check) = create::health(record) {
        let ns = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        config["Healthcheck"] = json!({
            "Test": check.test,
            "Interval": ns(check.interval),
            "Timeout": ns(check.timeout),
            "StartPeriod": ns(check.start_period),
            "Retries": check.retries,
        });
    }
    config
}

fn bindings(ports: &[Port]) -> Value {
    let mut map: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in ports {
        let key = format!("{}/{}", port.container_port, protocol(port.protocol));
        let address = port.host_address.map_or("0.0.0.0".to_owned(), |address| address.to_string());
        let host_port = port.host_port.to_string();
        map.entry(key).or_default().push(json!({ "HostIp": address, "HostPort": host_port }));
    }
    json!(map)
}

fn mounts(node: &Node, record: &Record) -> Vec<Value> {
    let volume = |name: &str, target: &str, writable: bool| {
        json!({
            "Type": "volume",
            "Name": name,
            "Source": volumes::data(node, name),
            "Destination": target,
            "Driver": "local",
            "Mode": "",
            "RW": writable,
            "Propagation": "",
        })
    };
    let anonymous = record.volumes.iter().map(|(target, name)| volume(name, target, true));
    let asked = record.settings.mounts.iter().filter_map(|mount| match mount.kind {
        MountKind::Volume if mount.source.is_empty() => None,
        MountKind::Volume => Some(volume(&mount.source, &mount.target, !mount.read_only)),
        MountKind::Bind | MountKind::Tmpfs | MountKind::Image => Some(json!({
            "Type": mount.kind,
            "Source": mount.source,
            "Destination": mount.target,
            "Mode": if mount.read_only { "ro" } else { "" },
            "RW": !mount.read_only && mount.kind != MountKind::Image,
            "Propagation": if mount.propagation.is_empty() { "rprivate" } else { &mount.propagation },
        })),
    });
    anonymous.chain(asked).collect()
}

fn network(node: &Node, record: &Record) -> Value {
    let sandbox = node.sandboxes.exact(record.id.as_str());
    let network = sandbox.map(|sandbox| sandbox.network());
    let addresses = network.as_ref().map(|network| network.addresses()).unwrap_or_default();
    let gateways = network.as_ref().map(|network| network.gateways()).unwrap_or_default();
    let text = |list: &[std::net::IpAddr], v6: bool| {
        let found = list.iter().find(|address| address.is_ipv6() == v6);
        found.map(ToString::to_string).unwrap_or_default()
    };
    let mac = match &network {
        Some(crate::sandbox::record::SandboxNetwork::Attached(attachment)) => attachment.mac.to_string(),
        _ => String::new(),
    };
    json!({
        "Ports": bindings(&record.ports),
        "IPAddress": text(&addresses, false),
        "GlobalIPv6Address": text(&addresses, true),
        "Gateway": text(&gateways, false),
        "MacAddress": mac,
        "Networks": {
            record.settings.network.name(): {
                "IPAddress": text(&addresses, false),
                "GlobalIPv6Address": text(&addresses, true),
                "Gateway": text(&gateways, false),
                "MacAddress": mac,
            },
        },
    })
}
