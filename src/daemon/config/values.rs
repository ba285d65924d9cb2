//! The kinds of values that keys have: what is accepted, and what is said of anything else.
//!
//! A parser takes a TOML value and returns the checked value or the end of a sentence that begins with the key's name:
//! "`image.stall_timeout` must be a time such as "30s", not an integer".

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::document::did_you_mean;

/// How logs are written to standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text; without time stamps when the journal, which has its own, is at the other end.
    Auto,
    /// One line for a person.
    Text,
    /// One JSON object per line.
    Json,
}

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupDriver {
    /// systemd, where it can and for pods whose parent is a slice.
    Auto,
    /// The daemon.
    Cgroupfs,
    /// systemd, or there is no start.
    Systemd,
}

/// The form in which new layers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerForm {
    /// What a self-test at start finds to work.
    Auto,
    /// The verbatim tar with EROFS metadata beside it.
    TarErofs,
    /// An unpacked directory.
    Directory,
}

/// Which network pods get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CniMode {
    /// That of a CNI configuration if there is one, else the built-in one.
    Auto,
    /// That of a CNI configuration.
    Cni,
    /// The built-in one.
    BuiltIn,
}

/// What becomes of SELinux labels where the kernel runs without SELinux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelinuxMode {
    /// They mean nothing there.
    Auto,
    /// Who asks for one is refused.
    Required,
}

/// The profile behind RuntimeDefault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompDefault {
    /// The profile that is compiled in.
    Builtin,
    /// A profile in the JSON form of the OCI runtime spec.
    File(PathBuf),
}

/// Addresses for pods: a network and the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet<A> {
    /// The network's address; no host bit is set.
    pub network: A,
    /// How many leading bits name the network.
    pub prefix: u8,
}

/// One default limit of a container's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// As the OCI runtime spec writes it: `RLIMIT_NOFILE`.
    pub name: String,
    /// What the process meets; `u64::MAX` is unlimited.
    pub soft: u64,
    /// How far it may raise that.
    pub hard: u64,
}

/// Images that are never collected: a whole reference, or one in which every `*` stands for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinnedImage(String);

impl PinnedImage {
    /// Whether `reference`, in its full form, is meant.
    #[must_use]
    pub fn matches(&self, reference: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|start| reference.strip_prefix(start)) else {
            return false;
        };
        let Some(end) = parts.next_back() else { return rest.is_empty() };
        // Each at its first place leaves the most for those that follow.
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(end)
    }
}

impl<A: fmt::Display> fmt::Display for Subnet<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// The names in the getrlimit(2) order, without their prefix and in lower case.
const RLIMITS: [&str; 16] = [
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// Text.
pub(super) fn text<'v>(value: &'v DeValue<'_>, wanted: &str) -> Result<&'v str, String> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(format!("must be {wanted}, not {}", kind(other))),
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Result<bool, String> {
    match value {
        DeValue::Boolean(value) => Ok(*value),
        other => Err(format!("must be true or false, not {}", kind(other))),
    }
}

/// A whole number within `range`.
pub(super) fn integer<N>(value: &DeValue<'_>, range: RangeInclusive<N>) -> Result<N, String>
where
    N: TryFrom<u64> + PartialOrd + fmt::Display,
{
    let wanted = format!("an integer from {} to {}", range.start(), range.end());
    let DeValue::Integer(integer) = value else {
        return Err(format!("must be {wanted}, not {}", kind(value)));
    };
    u64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .and_then(|number| N::try_from(number).ok())
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("must be {wanted}, not {integer}"))
}

/// An absolute path.
pub(super) fn path(value: &DeValue<'_>) -> Result<PathBuf, String> {
    check_path(Path::new(text(value, "a path")?))
}

/// An absolute path, or nothing.
pub(super) fn path_or_empty(value: &DeValue<'_>) -> Result<Option<PathBuf>, String> {
    if text(value, "a path")?.is_empty() { Ok(None) } else { path(value).map(Some) }
}

/// An address with a port.
pub(super) fn socket_address(value: &DeValue<'_>) -> Result<SocketAddr, String> {
    let wanted = "an address and port such as \"127.0.0.1:0\" or \"[::1]:10010\"";
    let written = text(value, wanted)?;
    written.parse().map_err(|_| format!("must be {wanted}, not {written:?}"))
}

/// A host name or address, or nothing.
pub(super) fn host_or_empty(value: &DeValue<'_>) -> Result<Option<String>, String> {
    let wanted = "a host name or address without a port";
    let written = text(value, wanted)?;
    let name = written.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    match written {
        "" => Ok(None),
        _ if name || written.parse::<IpAddr>().is_ok() => Ok(Some(written.to_owned())),
        _ => Err(format!("must be {wanted}, not {written:?}")),
    }
}

/// Several absolute paths.
pub(super) fn paths(value: &DeValue<'_>) -> Result<Vec<PathBuf>, String> {
    list(value, "paths", path)
}

/// The same for a path from elsewhere.
pub(super) fn check_path(path: &Path) -> Result<PathBuf, String> {
    if !path.is_absolute() {
        return Err(format!("must be an absolute path, not {path:?}"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("must be a path without `..`, not {path:?}"));
    }
    let clean: PathBuf = path.components().collect();
    if clean == Path::new("/") { Err("must not be the root directory".into()) } else { Ok(clean) }
}

/// A filter for the log.
pub(super) fn log_level(value: &DeValue<'_>) -> Result<String, String> {
    check_log_level(text(value, "a log level")?)
}

/// The same for a level from elsewhere.
pub(super) fn check_log_level(level: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let plain = level.bytes().all(|byte| byte.is_ascii_alphabetic());
    // A bare word that is no level would be taken for the name of a crate: nothing would be logged and nothing said.
    let known = if plain { LEVELS.contains(&level) } else { crate::logging::filter(level).is_ok() };
    if known {
        return Ok(level.to_owned());
    }
    let hint = did_you_mean(level, LEVELS.into_iter());
    Err(format!(
        "must be one of {} or a filter such as \"info,pinnace_pull=debug\", not {level:?}{hint}",
        LEVELS.join(", ")
    ))
}

/// One of a few words.
pub(super) fn choice<T: Clone>(value: &DeValue<'_>, choices: &[(&str, T)]) -> Result<T, String> {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let wanted = format!("one of \"{}\"", names.join("\", \""));
    let word = text(value, &wanted)?;
    choices
        .iter()
        .find(|(name, _)| *name == word)
        .map(|(_, choice)| choice.clone())
        .ok_or_else(|| format!("must be {wanted}, not {word:?}{}", did_you_mean(word, names.into_iter())))
}

/// Text or json.
pub(super) fn log_format(value: &DeValue<'_>) -> Result<LogFormat, String> {
    choice(value, &[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)])
}

/// How layers are stored.
pub(super) fn layer_form(value: &DeValue<'_>) -> Result<LayerForm, String> {
    choice(
        value,
        &[("auto", LayerForm::Auto), ("tar-erofs", LayerForm::TarErofs), ("directory", LayerForm::Directory)],
    )
}

/// Who makes cgroups.
pub(super) fn cgroup_driver(value: &DeValue<'_>) -> Result<CgroupDriver, String> {
    choice(
        value,
        &[
            ("auto", CgroupDriver::Auto),
            ("cgroupfs", CgroupDriver::Cgroupfs),
            ("systemd", CgroupDriver::Systemd),
        ],
    )
}

/// Which network pods get.
pub(super) fn cni_mode(value: &DeValue<'_>) -> Result<CniMode, String> {
    choice(value, &[("auto", CniMode::Auto), ("cni", CniMode::Cni), ("built-in", CniMode::BuiltIn)])
}

/// What becomes of SELinux labels.
pub(super) fn selinux(value: &DeValue<'_>) -> Result<SelinuxMode, String> {
    choice(value, &[("auto", SelinuxMode::Auto), ("required", SelinuxMode::Required)])
}

/// `"builtin"` or a path.
pub(super) fn seccomp_default(value: &DeValue<'_>) -> Result<SeccompDefault, String> {
    match text(value, "\"builtin\" or a path")? {
        "builtin" => Ok(SeccompDefault::Builtin),
        other if other.starts_with('/') => path(value).map(SeccompDefault::File),
        other => Err(format!("must be \"builtin\" or an absolute path, not {other:?}")),
    }
}

/// A time: a number and a unit.
pub(super) fn duration(value: &DeValue<'_>, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    let wanted = "a time such as \"250ms\", \"30s\", \"2m\" or \"1h\"";
    let written = text(value, wanted)?;
    let duration = quantity(written, &UNITS)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("must be {wanted}, not {written:?}"))?;
    if range.contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("must be from {:?} to {:?}, not {written:?}", range.start(), range.end()))
    }
}

/// A number of bytes: a number and a unit.
pub(super) fn bytes(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Result<u64, String> {
    const UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let wanted = "a size such as \"64KiB\", \"32MiB\" or \"1GiB\"";
    let written = text(value, wanted)?;
    let bytes = quantity(written, &UNITS).ok_or_else(|| format!("must be {wanted}, not {written:?}"))?;
    if range.contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("must be from {} to {} bytes, not {written:?}", range.start(), range.end()))
    }
}

/// A number of bytes, or nothing.
pub(super) fn bytes_or_empty(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Result<Option<u64>, String> {
    match value {
        DeValue::String(written) if written.is_empty() => Ok(None),
        other => bytes(other, range).map(Some),
    }
}

fn quantity(written: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = written.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = written.split_at(digits);
    let scale = units.iter().find(|(name, _)| *name == unit)?.1;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// A file mode mask in octal.
pub(super) fn umask(value: &DeValue<'_>) -> Result<u32, String> {
    let written = text(value, "an octal mask such as \"0022\"")?;
    u32::from_str_radix(written, 8)
        .ok()
        .filter(|mask| *mask <= 0o777)
        .ok_or_else(|| format!("must be an octal mask such as \"0022\", not {written:?}"))
}

/// The name of a network interface.
pub(super) fn interface(value: &DeValue<'_>) -> Result<String, String> {
    let name = text(value, "the name of an interface")?;
    // IFNAMSIZ with its NUL, and what dev_valid_name() of the kernel refuses.
    let valid = (1..16).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if valid {
        Ok(name.to_owned())
    } else {
        Err(format!("must be 1 to 15 characters without blank, `/`, `:` and `%`, not {name:?}"))
    }
}

/// A cgroup's path below the root of its hierarchy, or a slice, or nothing.
pub(super) fn cgroup_parent(value: &DeValue<'_>) -> Result<String, String> {
    let parent = text(value, "a cgroup")?;
    if parent.is_empty() {
        return Ok(String::new());
    }
    let slice = parent.ends_with(".slice") && !parent.contains('/');
    let path = parent.starts_with('/') && check_path(Path::new(parent)).is_ok();
    if slice || path {
        Ok(parent.to_owned())
    } else {
        Err(format!(
            "must be a path such as \"/pinnace\" or a slice such as \"pinnace.slice\", not {parent:?}"
        ))
    }
}

/// An IPv4 network with room for a gateway and a pod, or nothing.
pub(super) fn ipv4_subnet(value: &DeValue<'_>) -> Result<Option<Subnet<Ipv4Addr>>, String> {
    subnet(value, "10.88.0.0/16", 8..=29, |address| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })
}

/// An IPv6 network, or nothing.
pub(super) fn ipv6_subnet(value: &DeValue<'_>) -> Result<Option<Subnet<Ipv6Addr>>, String> {
    subnet(value, "fd00:88::/64", 8..=125, |address| match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    })
}

fn subnet<A: Copy>(
    value: &DeValue<'_>,
    example: &str,
    prefixes: RangeInclusive<u8>,
    family: impl Fn(IpAddr) -> Option<A>,
) -> Result<Option<Subnet<A>>, String> {
    let wanted = format!("a network such as {example:?}, or empty");
    let written = text(value, &wanted)?;
    if written.is_empty() {
        return Ok(None);
    }
    let refused = || format!("must be {wanted}, not {written:?}");
    let (address, prefix) = written.split_once('/').ok_or_else(refused)?;
    let address: IpAddr = address.parse().map_err(|_| refused())?;
    let prefix: u8 = prefix.parse().map_err(|_| refused())?;
    let network = family(address).ok_or_else(refused)?;
    if !prefixes.contains(&prefix) {
        let (least, most) = prefixes.into_inner();
        return Err(format!("must have a prefix from /{least} to /{most}, not /{prefix}"));
    }
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    if bits & ((1 << (width - u32::from(prefix))) - 1) != 0 {
        return Err(format!("has bits set behind its prefix: {written:?}"));
    }
    Ok(Some(Subnet { network, prefix }))
}

/// Registries by host and port.
pub(super) fn hosts(value: &DeValue<'_>) -> Result<Vec<String>, String> {
    list(value, "hosts", |value| {
        let host = text(value, "a host")?;
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (host, None),
        };
        let in_brackets = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let valid_name = match in_brackets {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => {
                !name.is_empty()
                    && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
            }
        };
        if valid_name && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
            Ok(host.to_ascii_lowercase())
        } else {
            Err(format!("must have hosts such as \"registry.local:5000\", not {host:?}"))
        }
    })
}

/// References, or beginnings of references.
pub(super) fn pinned_images(value: &DeValue<'_>) -> Result<Vec<PinnedImage>, String> {
    list(value, "image references", |value| {
        let pattern = text(value, "an image reference")?;
        // Only `*` would keep everything for ever.
        let says_nothing = pattern.bytes().all(|byte| byte == b'*');
        if says_nothing || pattern.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(format!(
                "must have references, in which `*` may stand for anything, not {pattern:?}"
            ));
        }
        Ok(PinnedImage(pattern.to_owned()))
    })
}

/// Limits in the form `nofile=1024:524288`.
pub(super) fn rlimits(value: &DeValue<'_>) -> Result<Vec<Rlimit>, String> {
    let limits = list(value, "limits", |value| {
        let written = text(value, "a limit")?;
        let refused = || format!("must have limits such as \"nofile=1024:524288\", not {written:?}");
        let (name, numbers) = written.split_once('=').ok_or_else(refused)?;
        if !RLIMITS.contains(&name) {
            return Err(format!("has no limit {name:?}{}", did_you_mean(name, RLIMITS.into_iter())));
        }
        let (soft, hard) = numbers.split_once(':').unwrap_or((numbers, numbers));
        let number = |text: &str| match text {
            "unlimited" => Ok(u64::MAX),
            digits => digits.parse().map_err(|_| refused()),
        };
        let (soft, hard) = (number(soft)?, number(hard)?);
        if soft > hard {
            return Err(format!("has a soft limit above the hard one: {written:?}"));
        }
        Ok(Rlimit { name: format!("RLIMIT_{}", name.to_ascii_uppercase()), soft, hard })
    })?;
    for (index, limit) in limits.iter().enumerate() {
        if limits[..index].iter().any(|earlier| earlier.name == limit.name) {
            return Err(format!("has {} twice", limit.name));
        }
    }
    Ok(limits)
}

fn list<T>(
    value: &DeValue<'_>,
    wanted: &str,
    parser: impl Fn(&DeValue<'_>) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    match value {
        DeValue::Array(values) => values.iter().map(|value| parser(value.get_ref())).collect(),
        other => Err(format!("must be a list of {wanted}, not {}", kind(other))),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

/// An external OCI runtime: the path of its program. `type` may be left out; "oci" is the only one.
pub(super) fn runtime(name: &str, keys: &DeTable<'_>) -> Result<PathBuf, String> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    if name.is_empty() || name.len() > 63 || name.starts_with(['-', '.']) || !name.bytes().all(known) {
        return Err("is not the name of a handler: lower-case letters, digits, - and .".to_owned());
    }
    if name == crate::handlers::NATIVE {
        return Err("is pinnace itself".to_owned());
    }
    let get = |key: &str| {
        keys.iter().find(|(name, _)| name.get_ref().as_ref() == key).map(|(_, value)| value.get_ref())
    };
    match get("type") {
        None => {}
        Some(DeValue::String(kind)) if kind.as_ref() == "oci" => {}
        Some(_) => return Err("has a type that is not \"oci\"".to_owned()),
    }
    let value = get("path").ok_or("needs a path")?;
    path(value).map_err(|message| format!("path: {message}"))
}
