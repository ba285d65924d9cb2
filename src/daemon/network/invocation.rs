//! What plugins are told of a pod.

use std::collections::BTreeMap;

use pinnace_cni::Invocation;
use pinnace_network::SANDBOX_IFNAME;
use serde_json::{Map, Value, json};

use crate::error::Error;
use crate::id::SandboxId;
use crate::sandbox::record::SandboxConfig;

/// Annotations that say a pod's rates. The CRI has no field for them.
const RATES: [(&str, &str, &str); 2] = [
    ("kubernetes.io/ingress-bandwidth", "ingressRate", "ingressBurst"),
    ("kubernetes.io/egress-bandwidth", "egressRate", "egressBurst"),
];

/// How many bits may pass at once where only a rate is said; what the peers say.
const BURST_BITS: u32 = u32::MAX;

/// The slowest and fastest rate that is taken, in bits per second.
const RATE_BITS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// What plugins are told of a pod, but for its namespace.
pub fn of(id: &SandboxId, config: &SandboxConfig) -> Result<Invocation, Error> {
    let name = &config.name;
    let args = [
        ("IgnoreUnknown", "", "1"),
        ("K8S_POD_NAMESPACE", "config.metadata.namespace", name.namespace.as_str()),
        ("K8S_POD_NAME", "config.metadata.name", &name.name),
        ("K8S_POD_INFRA_CONTAINER_ID", "", id.as_str()),
        ("K8S_POD_UID", "config.metadata.uid", &name.uid),
    ];
    for (_, field, value) in args {
        if value.contains([';', '=', '\0']) {
            return Err(Error::invalid(field, format!("{value:?} cannot be told to CNI plugins")));
        }
    }
    Ok(Invocation {
        container_id: id.to_string(),
        netns: None,
        ifname: SANDBOX_IFNAME.to_owned(),
        args: args.map(|(key, _, value)| (key.to_owned(), value.to_owned())).into(),
        capability_args: capability_args(config)?,
    })
}

fn capability_args(config: &SandboxConfig) -> Result<BTreeMap<String, Value>, Error> {
    let mut told = BTreeMap::new();
    let ports = config.port_mappings.iter().filter(|mapping| mapping.host_port != 0).map(|mapping| {
        json!({
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol,
            "hostIP": mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        })
    });
    let ports: Vec<Value> = ports.collect();
    if !ports.is_empty() {
        told.insert("portMappings".to_owned(), ports.into());
    }
    let mut bandwidth = Map::new();
    for (annotation, rate, burst) in RATES {
        if let Some(text) = config.annotations.get(annotation) {
            let bits = bits(text).ok_or_else(|| {
                let reason = format!("{text:?} is no rate from 1k to 1P bits per second");
                Error::invalid(format!("config.annotations[{annotation:?}]"), reason)
            })?;
            bandwidth.insert(rate.to_owned(), bits.into());
            bandwidth.insert(burst.to_owned(), BURST_BITS.into());
        }
    }
    if !bandwidth.is_empty() {
        told.insert("bandwidth".to_owned(), bandwidth.into());
    }
    if let Some(dns) = &config.dns {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        told.insert("dns".to_owned(), dns);
    }
    if let Some(parent) = &config.cgroup_parent {
        told.insert("cgroupPath".to_owned(), parent.as_str().into());
    }
    told.insert("io.kubernetes.cri.pod-annotations".to_owned(), json!(config.annotations));
    Ok(told)
}

/// A quantity of Kubernetes: digits, perhaps a fraction, perhaps a suffix.
fn bits(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, u64); 11] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("", 1),
    ];
    let (number, scale) =
        SUFFIXES.iter().find_map(|(suffix, scale)| Some((text.strip_suffix(suffix)?, *scale)))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // Nine digits are more than any rate is told with.
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let unit = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let parts = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / u128::from(unit);
    let bits = u128::from(whole.parse::<u64>().ok()?) * u128::from(scale) + parts;
    u64::try_from(bits).ok().filter(|bits| RATE_BITS.contains(bits))
}

#[cfg(test)]
mod tests {
    use super::bits;

    #[test]
    fn rates_are_quantities_of_kubernetes() {
        for (text, expected) in [
            ("10M", Some(10_000_000)),
            ("1Gi", Some(1 << 30)),
            ("1.5k", Some(1_500)),
            ("1000", Some(1_000)),
            ("1P", Some(1_000_000_000_000_000)),
            ("2P", None),
            ("999", None),
            ("", None),
            ("k", None),
            ("-1M", None),
            ("1.M", None),
            ("10m", None),
            ("99999999999999999999P", None),
        ] {
            assert_eq!(bits(text), expected, "{text}");
        }
    }
}
