//! The flags of `create` and `run`, and what they mean to the daemon.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::Args;
use pinnace_admin_api::v1;
use pinnace_admin_api::v1::mount_setting::Kind;

use super::human;

/// Flags of `create` and `run`.
#[derive(Debug, Args)]
pub struct Settings {
    /// Name of the container
    #[arg(long, value_name = "NAME", help_heading = "General")]
    name: Option<String>,
    /// Keep standard input open
    #[arg(short, long, help_heading = "General")]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long, help_heading = "General")]
    pub tty: bool,
    /// Remove it when it has ended, with its anonymous volumes
    #[arg(long, help_heading = "General")]
    rm: bool,
    /// Pull the image: missing, always or never
    #[arg(long, value_name = "WHEN", default_value = "missing", help_heading = "General")]
    pub pull: String,
    /// Platform of the image, as linux/amd64; must be that of the machine
    #[arg(long, value_name = "PLATFORM", help_heading = "General")]
    platform: Option<String>,
    /// Write the container's id to this file
    #[arg(long, value_name = "FILE", help_heading = "General")]
    pub cidfile: Option<std::path::PathBuf>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help, help_heading = "General")]
    help: Option<bool>,
    /// Say nothing of a pull
    #[arg(short, long, help_heading = "General")]
    pub quiet: bool,
    /// Add a label
    #[arg(short, long, value_name = "KEY[=VALUE]", help_heading = "General")]
    label: Vec<String>,
    /// Add the labels of a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "General")]
    label_file: Vec<std::path::PathBuf>,

    /// Set a variable; without value it is that of this environment
    #[arg(short, long, value_name = "KEY[=VALUE]", help_heading = "Process")]
    env: Vec<String>,
    /// Set the variables of a file, one a line
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    env_file: Vec<std::path::PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR", help_heading = "Process")]
    workdir: Option<String>,
    /// Name or id of the user, and of a group
    #[arg(short, long, value_name = "USER[:GROUP]", help_heading = "Process")]
    user: Option<String>,
    /// Add a group to those of the user, by number
    #[arg(long, value_name = "GID", help_heading = "Process")]
    group_add: Vec<String>,
    /// In place of the image's entry point; it clears the image's command
    #[arg(long, value_name = "PROGRAM", help_heading = "Process")]
    entrypoint: Option<String>,
    /// Run an init that reaps what the program leaves behind
    #[arg(long, help_heading = "Process")]
    init: bool,
    /// Signal that asks it to end
    #[arg(long, value_name = "SIGNAL", help_heading = "Process")]
    stop_signal: Option<String>,
    /// Seconds between that and SIGKILL
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, help_heading = "Process")]
    stop_timeout: Option<i64>,
    /// When it is started again: no, on-failure[:RETRIES], always, unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no", help_heading = "Process")]
    restart: String,
    /// Limit of its processes, as nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "Process")]
    ulimit: Vec<String>,
    /// oom_score_adj
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, help_heading = "Process")]
    oom_score_adj: Option<i64>,

    /// Mount a directory of the host or a volume
    #[arg(short, long, value_name = "[SOURCE:]TARGET[:OPTIONS]", help_heading = "Files")]
    volume: Vec<String>,
    /// Mount, in words: type=bind|volume|tmpfs|image,source=…,target=…[,readonly]
    #[arg(long, value_name = "WORDS", help_heading = "Files")]
    mount: Vec<String>,
    /// Mount memory
    #[arg(long, value_name = "TARGET[:OPTIONS]", help_heading = "Files")]
    tmpfs: Vec<String>,
    /// Read-only root
    #[arg(long, help_heading = "Files")]
    read_only: bool,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", help_heading = "Files")]
    shm_size: Option<String>,
    /// Add a device of the host
    #[arg(long, value_name = "SOURCE[:TARGET[:rwm]]", help_heading = "Files")]
    device: Vec<String>,

    /// Publish a port
    #[arg(short, long, value_name = "[[IP:]HOST:]PORT[/PROTOCOL]", help_heading = "Network")]
    publish: Vec<String>,
    /// Publish what the image exposes at ports of our choice
    #[arg(short = 'P', long, help_heading = "Network")]
    publish_all: bool,
    /// bridge, host or none
    #[arg(
        long,
        visible_alias = "net",
        value_name = "NETWORK",
        default_value = "bridge",
        help_heading = "Network"
    )]
    network: String,
    /// Host name
    #[arg(short = 'h', long, value_name = "NAME", help_heading = "Network")]
    hostname: Option<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", help_heading = "Network")]
    add_host: Vec<String>,
    /// Name server in place of the host's
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    dns: Vec<String>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN", help_heading = "Network")]
    dns_search: Vec<String>,
    /// Resolver option
    #[arg(long, value_name = "OPTION", help_heading = "Network")]
    dns_option: Vec<String>,

    /// CPUs
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    cpus: Option<String>,
    /// Relative weight
    #[arg(short = 'c', long, value_name = "WEIGHT", help_heading = "Limits")]
    cpu_shares: Option<i64>,
    /// The CPUs that it may use, as 0-2,5
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    cpuset_cpus: Option<String>,
    /// The memory nodes that it may use
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    cpuset_mems: Option<String>,
    /// Memory
    #[arg(short, long, value_name = "BYTES", help_heading = "Limits")]
    memory: Option<String>,
    /// Memory and swap together; -1 is unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, help_heading = "Limits")]
    memory_swap: Option<String>,
    /// Processes
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, help_heading = "Limits")]
    pids_limit: Option<i64>,

    /// Add a capability
    #[arg(long, value_name = "NAME", help_heading = "Security")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "NAME", help_heading = "Security")]
    cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=…, apparmor=…, systempaths=unconfined
    #[arg(long, value_name = "OPTION", help_heading = "Security")]
    security_opt: Vec<String>,
    /// Everything that the host has
    #[arg(long, help_heading = "Security")]
    privileged: bool,
    /// Sysctl of its namespaces
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Security")]
    sysctl: Vec<String>,
    /// User namespace: host
    #[arg(long, value_name = "MODE", default_value = "host", help_heading = "Security")]
    userns: String,
    /// PID namespace: host, or its own
    #[arg(long, value_name = "MODE", help_heading = "Security")]
    pid: Option<String>,
    /// IPC namespace: host, or private
    #[arg(long, value_name = "MODE", help_heading = "Security")]
    ipc: Option<String>,

    /// Command that says whether it is well
    #[arg(long, value_name = "COMMAND", help_heading = "Health")]
    health_cmd: Option<String>,
    /// Between two checks
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_interval: Option<String>,
    /// For one check
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_timeout: Option<String>,
    /// Failures do not count in it
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_start_period: Option<String>,
    /// Between two checks within that
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    health_start_interval: Option<String>,
    /// Failures in a row that are bad
    #[arg(long, value_name = "NUMBER", help_heading = "Health")]
    health_retries: Option<u32>,
    /// Turn the image's check off
    #[arg(long, help_heading = "Health")]
    no_healthcheck: bool,

    /// The image, and a command in place of the image's
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    image_and_command: Vec<String>,
}

impl Settings {
    /// The image, as it was named.
    pub fn image(&self) -> &str {
        self.image_and_command.first().map(String::as_str).unwrap_or_default()
    }

    /// What the daemon is asked for.
    pub fn request(&self) -> anyhow::Result<v1::CreateContainerRequest> {
        if self.userns != "host" {
            bail!(
                "--userns {:?} is not known: containers of the command line are in the host's (host)",
                self.userns
            );
        }
        self.check_platform()?;
        let command = self.image_and_command.get(1..).unwrap_or_default().to_vec();
        let mut mounts = Vec::new();
        for text in &self.volume {
            mounts.push(volume(text).with_context(|| format!("--volume {text}"))?);
        }
        for text in &self.mount {
            mounts.push(mount(text).with_context(|| format!("--mount {text}"))?);
        }
        for text in &self.tmpfs {
            let (target, options) = text.split_once(':').unwrap_or((text, ""));
            mounts.push(v1::MountSetting {
                kind: Kind::Tmpfs.into(),
                target: target.to_owned(),
                options: list(options),
                ..Default::default()
            });
        }
        let mut ports = Vec::new();
        for text in &self.publish {
            ports.extend(publish(text).with_context(|| format!("--publish {text}"))?);
        }
        let settings = v1::ContainerSettings {
            image: self.image().to_owned(),
            command,
            entrypoint: self.entrypoint.clone().map(|program| v1::StringList { values: vec![program] }),
            env: environment(&self.env_file, &self.env)?,
            labels: self.labels()?,
            hostname: self.hostname.clone().unwrap_or_default(),
            user: self.user.clone().unwrap_or_default(),
            working_dir: self.workdir.clone().unwrap_or_default(),
            terminal: self.tty,
            stdin: self.interactive,
            // Only a client that is there from the beginning ends it.
            stdin_once: false,
            mounts,
            ports,
            publish_all: self.publish_all,
            network: self.network.clone(),
            extra_hosts: self.add_host.clone(),
            dns_servers: self.dns.clone(),
            dns_searches: self.dns_search.clone(),
            dns_options: self.dns_option.clone(),
            read_only: self.read_only,
            add_capabilities: self.cap_add.clone(),
            drop_capabilities: self.cap_drop.clone(),
            security_options: self
                .security_opt
                .iter()
                .map(|option| security(option))
                .collect::<Result<_, _>>()?,
            privileged: self.privileged,
            devices: self.device.iter().map(|text| device(text)).collect(),
            ulimits: self.ulimit.iter().map(|text| ulimit(text)).collect::<Result<_, _>>()?,
            sysctls: self.sysctl.iter().map(|text| pair("--sysctl", text)).collect::<Result<_, _>>()?,
            shm_bytes: match &self.shm_size {
                Some(text) => u64::try_from(human::parse_bytes(text)?)?,
                None => 0,
            },
            restart: Some(restart(&self.restart)?),
            auto_remove: self.rm,
            init: self.init,
            stop_signal: self.stop_signal.clone().unwrap_or_default(),
            stop_timeout_s: self.stop_timeout,
            limits: Some(v1::Limits {
                nano_cpus: self.cpus.as_deref().map(human::parse_cpus).transpose()?.unwrap_or(0),
                memory_bytes: self.memory.as_deref().map(human::parse_bytes).transpose()?.unwrap_or(0),
                memory_swap_bytes: self
                    .memory_swap
                    .as_deref()
                    .map(human::parse_bytes_or_unlimited)
                    .transpose()?
                    .unwrap_or(0),
                pids: self.pids_limit.unwrap_or(0),
                cpu_shares: self.cpu_shares.unwrap_or(0),
                cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
                cpuset_mems: self.cpuset_mems.clone().unwrap_or_default(),
            }),
            health: self.health()?,
            pid_mode: self.pid.clone().unwrap_or_default(),
            ipc_mode: self.ipc.clone().unwrap_or_default(),
            groups: self.group_add.clone(),
            oom_score_adj: self.oom_score_adj,
        };
        Ok(v1::CreateContainerRequest {
            name: self.name.clone().unwrap_or_default(),
            settings: Some(settings),
        })
    }

    fn check_platform(&self) -> anyhow::Result<()> {
        let Some(platform) = &self.platform else { return Ok(()) };
        let own = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let mut parts = platform.split('/');
        let (system, architecture) = (parts.next().unwrap_or_default(), parts.next());
        match (system, architecture) {
            ("linux", Some(architecture)) if architecture == own => Ok(()),
            ("linux", None) => Ok(()),
            _ => bail!("--platform {platform}: this machine runs linux/{own}"),
        }
    }

    fn labels(&self) -> anyhow::Result<HashMap<String, String>> {
        let mut entries = lines(&self.label_file)?;
        entries.extend(self.label.iter().cloned());
        Ok(entries.into_iter().map(|entry| label(&entry)).collect())
    }

    fn health(&self) -> anyhow::Result<Option<v1::HealthCheck>> {
        let nanoseconds = |text: &Option<String>| match text {
            Some(text) => Ok(i64::try_from(human::parse_duration(text)?.as_nanos())?),
            None => anyhow::Ok(0),
        };
        let check = v1::HealthCheck {
            test: match (&self.health_cmd, self.no_healthcheck) {
                (Some(_), true) => bail!("--health-cmd and --no-healthcheck exclude each other"),
                (None, true) => vec!["NONE".to_owned()],
                (Some(line), false) => vec!["CMD-SHELL".to_owned(), line.clone()],
                (None, false) => Vec::new(),
            },
            interval_ns: nanoseconds(&self.health_interval)?,
            timeout_ns: nanoseconds(&self.health_timeout)?,
            start_period_ns: nanoseconds(&self.health_start_period)?,
            start_interval_ns: nanoseconds(&self.health_start_interval)?,
            retries: self.health_retries.unwrap_or(0),
        };
        Ok(Some(check).filter(|check| *check != v1::HealthCheck::default()))
    }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|part| !part.is_empty()).map(ToOwned::to_owned).collect()
}

/// Files first, then flags; a name without value is that of this environment, and nothing if that has none.
pub fn environment(files: &[std::path::PathBuf], flags: &[String]) -> anyhow::Result<Vec<String>> {
    let mut entries = lines(files)?;
    entries.extend(flags.iter().cloned());
    let mut env = Vec::new();
    for entry in entries {
        if entry.contains('=') {
            env.push(entry);
        } else if let Ok(value) = std::env::var(&entry) {
            env.push(format!("{entry}={value}"));
        }
    }
    Ok(env)
}

/// Lines of files, without comments.
fn lines(files: &[std::path::PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        let kept =
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.extend(kept.map(ToOwned::to_owned));
    }
    Ok(lines)
}

/// `KEY` or `KEY=value`.
pub fn label(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

fn pair(flag: &str, text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text.split_once('=').with_context(|| format!("{flag} {text}: is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A restart policy.
pub fn restart(text: &str) -> anyhow::Result<v1::RestartPolicy> {
    let (name, retries) = text.split_once(':').unwrap_or((text, "0"));
    if name != "on-failure" && text.contains(':') {
        bail!("--restart {text}: only on-failure has a number of retries");
    }
    let maximum_retries =
        retries.parse().with_context(|| format!("--restart {text}: {retries:?} is no number"))?;
    Ok(v1::RestartPolicy { name: name.to_owned(), maximum_retries })
}

/// `source:target[:options]`, where a source that is a path is one of the host and another is a volume.
fn volume(text: &str) -> anyhow::Result<v1::MountSetting> {
    let mut parts = text.split(':');
    let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if parts.next().is_some() {
        bail!("has too many parts: it is [SOURCE:]TARGET[:OPTIONS]");
    }
    let mut setting = v1::MountSetting::default();
    match second {
        None => {
            setting.set_kind(Kind::Volume);
            setting.target = first.to_owned();
        }
        Some(target) => {
            setting.target = target.to_owned();
            if first.starts_with(['/', '.', '~']) {
                setting.set_kind(Kind::Bind);
                setting.source = absolute(first)?;
                setting.make_source = true;
            } else {
                setting.set_kind(Kind::Volume);
                setting.source = first.to_owned();
            }
        }
    }
    for option in third.unwrap_or_default().split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => setting.read_only = true,
            "rw" => setting.read_only = false,
            "nocopy" => setting.no_copy = true,
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" => {
                setting.propagation = option.to_owned();
            }
            // SELinux labels and consistency between machines are not needed here.
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            other => bail!("option {other:?} is not known; known are ro, rw, nocopy, and propagations"),
        }
    }
    Ok(setting)
}

/// A path of the host without `.` and `..`.
fn absolute(path: &str) -> anyhow::Result<String> {
    let home = std::env::var("HOME").unwrap_or_default();
    let path = match path.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{home}{rest}"),
        _ => path.to_owned(),
    };
    let path = std::path::absolute(&path).with_context(|| format!("find {path}"))?;
    let mut clean = std::path::PathBuf::new();
    for component in path.components() {
        match component {
            std::path::Component::ParentDir => drop(clean.pop()),
            component => clean.push(component),
        }
    }
    clean.to_str().map(ToOwned::to_owned).context("a path that is not UTF-8")
}

fn mount(text: &str) -> anyhow::Result<v1::MountSetting> {
    let mut setting = v1::MountSetting::default();
    setting.set_kind(Kind::Volume);
    for word in text.split(',') {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let is_true = || !matches!(value, "false" | "0");
        match key {
            "type" => setting.set_kind(match value {
                "bind" => Kind::Bind,
                "volume" => Kind::Volume,
                "tmpfs" => Kind::Tmpfs,
                "image" => Kind::Image,
                other => bail!("type {other:?} is not known; known are bind, volume, tmpfs and image"),
            }),
            "source" | "src" => setting.source = value.to_owned(),
            "target" | "dst" | "destination" => setting.target = value.to_owned(),
            "readonly" | "ro" => setting.read_only = is_true(),
            "bind-propagation" => setting.propagation = value.to_owned(),
            "volume-nocopy" => setting.no_copy = is_true(),
            "bind-create-src" => setting.make_source = is_true(),
            "tmpfs-size" => setting.options.push(format!("size={}", human::parse_bytes(value)?)),
            "tmpfs-mode" => setting.options.push(format!("mode={value}")),
            "image-subpath" | "volume-subpath" => setting.sub_path = value.to_owned(),
            "consistency" => {}
            other => bail!("{other:?} is not known"),
        }
    }
    if setting.target.is_empty() {
        bail!("target is missing");
    }
    match setting.kind() {
        Kind::Bind if setting.source.is_empty() => bail!("source is missing"),
        Kind::Bind => setting.source = absolute(&setting.source)?,
        Kind::Image if setting.source.is_empty() => bail!("source is missing: it is an image"),
        Kind::Tmpfs if !setting.source.is_empty() => bail!("memory has no source"),
        Kind::Volume | Kind::Tmpfs | Kind::Image => {}
    }
    Ok(setting)
}

/// `[[address:]host:]container[/protocol]`, ports or ranges of them.
fn publish(text: &str) -> anyhow::Result<Vec<v1::PortSetting>> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (rest, container) = match ports.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, ports),
    };
    let (address, host) = match rest {
        None => ("", ""),
        Some(rest) => match rest.rsplit_once(':') {
            Some((address, host)) => (address.trim_start_matches('[').trim_end_matches(']'), host),
            // An address without a port of the host: 127.0.0.1:80.
            None if rest.contains('.') => (rest, ""),
            None => ("", rest),
        },
    };
    let range = |text: &str| -> anyhow::Result<(u32, u32)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| {
            let port = text.parse::<u16>().with_context(|| format!("{text:?} is no port"))?;
            anyhow::Ok(u32::from(port))
        };
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            bail!("{text:?} goes backwards");
        }
        Ok((first, last))
    };
    let (first, last) = range(container)?;
    let host = if host.is_empty() { None } else { Some(range(host)?) };
    if let Some((from, to)) = host
        && to - from != last - first
    {
        bail!("the ranges of host and container are not of one length");
    }
    let port = |at: u32| v1::PortSetting {
        protocol: protocol.to_owned(),
        container_port: first + at,
        host_port: host.map_or(0, |(from, _)| from + at),
        host_address: address.to_owned(),
    };
    Ok((0..=last - first).map(port).collect())
}

fn device(text: &str) -> v1::DeviceSetting {
    let mut parts = text.split(':');
    let host = parts.next().unwrap_or_default();
    let (inside, access) = match (parts.next(), parts.next()) {
        (Some(access), None) if !access.starts_with('/') => (host, access),
        (inside, access) => (inside.unwrap_or(host), access.unwrap_or("rwm")),
    };
    v1::DeviceSetting {
        host_path: host.to_owned(),
        container_path: inside.to_owned(),
        permissions: access.to_owned(),
    }
}

fn ulimit(text: &str) -> anyhow::Result<v1::UlimitSetting> {
    let (name, values) = pair("--ulimit", text)?;
    let (soft, hard) = values.split_once(':').unwrap_or((&values, &values));
    let number = |value: &str| match value {
        "unlimited" => Ok(-1),
        value => value.parse::<i64>().with_context(|| format!("--ulimit {text}: {value:?} is no number")),
    };
    Ok(v1::UlimitSetting { name, soft: number(soft)?, hard: number(hard)? })
}

/// The daemon reads a profile by its whole path.
fn security(option: &str) -> anyhow::Result<String> {
    match option.strip_prefix("seccomp=").or_else(|| option.strip_prefix("seccomp:")) {
        Some(path) if path != "unconfined" && path != "builtin" => {
            let path = absolute(path)?;
            if !Path::new(&path).is_file() {
                bail!("--security-opt {option}: there is no file {path}");
            }
            Ok(format!("seccomp={path}"))
        }
        _ => Ok(option.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_binds_or_names() {
        let bind = volume("/a/../b:/c:ro,rslave").unwrap();
        assert_eq!((bind.kind(), bind.source.as_str(), bind.target.as_str()), (Kind::Bind, "/b", "/c"));
        assert!(bind.read_only && bind.make_source && bind.propagation == "rslave");
        let named = volume("data:/c").unwrap();
        assert_eq!((named.kind(), named.source.as_str()), (Kind::Volume, "data"));
        let own = volume("/c").unwrap();
        assert_eq!((own.kind(), own.source.as_str(), own.target.as_str()), (Kind::Volume, "", "/c"));
        assert!(volume("a:/b:c").is_err() && volume("a:/b:ro:x").is_err());
    }

    #[test]
    fn ports_in_all_their_forms() {
        let of = |text: &str| {
            let ports = publish(text).unwrap();
            let port = |port: &v1::PortSetting| {
                format!("{}|{}|{}/{}", port.host_address, port.host_port, port.container_port, port.protocol)
            };
            ports.iter().map(port).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("80"), "|0|80/tcp");
        assert_eq!(of("8080:80"), "|8080|80/tcp");
        assert_eq!(of("127.0.0.1:8080:80/udp"), "127.0.0.1|8080|80/udp");
        assert_eq!(of("127.0.0.1::80"), "127.0.0.1|0|80/tcp");
        assert_eq!(of("[::1]:8080:80"), "::1|8080|80/tcp");
        assert_eq!(of("8000-8001:80-81"), "|8000|80/tcp |8001|81/tcp");
        for wrong in ["x", "8080:", "1-2:3", "99999"] {
            assert!(publish(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn words_of_mounts() {
        let bind = mount("type=bind,src=/x,dst=/y,readonly").unwrap();
        assert_eq!((bind.kind(), bind.read_only, bind.make_source), (Kind::Bind, true, false));
        let tmpfs = mount("type=tmpfs,target=/t,tmpfs-size=1m").unwrap();
        assert_eq!(tmpfs.options, ["size=1048576"]);
        assert!(mount("type=bind,target=/y").is_err() && mount("source=x").is_err());
    }
}
