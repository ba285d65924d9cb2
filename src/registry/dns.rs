//! Names to addresses without the C library: a static program has no NSS.
//!
//! `/etc/resolv.conf` and `/etc/hosts` are read again when they change. mDNS and other nsswitch
//! sources are not consulted.
//!
//! Servers that a registry points at (redirect targets, token services) are looked up through a
//! [`Reachable`] filter, so that no registry can make this node talk to itself, to its site's
//! private network or to a metadata service, unless the registry is there too.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::origin::Reach;

const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

type Stamp = [Option<SystemTime>; FILES.len()];

/// A resolver and the state of the files that it was made from.
type Current = (Stamp, Arc<TokioResolver>);

/// The node's resolver.
#[derive(Clone, Default)]
pub(crate) struct Dns {
    current: Arc<Mutex<Option<Current>>>,
}

impl Dns {
    pub(crate) async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, NetError> {
        // hickory knows localhost, but only by its own switch; RFC 6761 §6.3 leaves no choice.
        if name == "localhost" {
            return Ok(vec![IpAddr::from([127, 0, 0, 1]), std::net::Ipv6Addr::LOCALHOST.into()]);
        }
        let resolver = self.resolver()?;
        Ok(resolver.lookup_ip(name).await?.iter().collect())
    }

    fn resolver(&self) -> Result<Arc<TokioResolver>, NetError> {
        let stamp = FILES.map(|file| std::fs::metadata(file).and_then(|file| file.modified()).ok());
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((read_at, resolver)) if *read_at == stamp => Ok(Arc::clone(resolver)),
            _ => {
                let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|error| {
                    tracing::warn!(%error, "no usable /etc/resolv.conf: only /etc/hosts is consulted");
                    TokioResolver::builder_with_config(
                        ResolverConfig::default(),
                        TokioRuntimeProvider::default(),
                    )
                });
                builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
                let resolver = Arc::new(builder.build()?);
                *current = Some((stamp, Arc::clone(&resolver)));
                Ok(resolver)
            }
        }
    }

    /// The most private address that a host has.
    pub(crate) async fn reach(&self, host: &str) -> Reach {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Reach::of(address);
        }
        match self.lookup(bare).await {
            // All of them: a name with one loopback answer among public ones earns nothing.
            Ok(addresses) => addresses.into_iter().map(Reach::of).min().unwrap_or(Reach::Public),
            // Behind a proxy there may be no DNS at all.
            Err(_) => Reach::Public,
        }
    }
}

/// The name server said so, but this node will not go there.
#[derive(Debug, thiserror::Error)]
#[error("{0} has no address that may be used")]
pub(crate) struct RefusedAddress(pub(crate) String);

/// A resolver that hides addresses more private than a limit.
pub(crate) struct Reachable {
    pub(crate) dns: Dns,
    /// No limit for the registry itself: the administrator or the image reference named it.
    pub(crate) limit: Option<Reach>,
    /// Proxies of the environment, which are looked up here too.
    pub(crate) exempt: Arc<HashSet<String>>,
}

impl Resolve for Reachable {
    fn resolve(&self, name: Name) -> Resolving {
        let dns = self.dns.clone();
        let limit = self.limit.filter(|_| !self.exempt.contains(name.as_str()));
        Box::pin(async move {
            let mut addresses = dns.lookup(name.as_str()).await?;
            if let Some(limit) = limit {
                addresses.retain(|address| Reach::of(*address) <= limit);
                if addresses.is_empty() {
                    return Err(RefusedAddress(name.as_str().to_owned()).into());
                }
            }
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

/// Host names of the proxies that the environment names.
pub(crate) fn proxy_hosts() -> HashSet<String> {
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
        .into_iter()
        .flat_map(|name| [std::env::var(name), std::env::var(name.to_ascii_lowercase())])
        .filter_map(Result::ok)
        .filter_map(|value| {
            let url = if value.contains("://") { value } else { format!("http://{value}") };
            url::Url::parse(&url).ok()?.host_str().map(str::to_owned)
        })
        .collect()
}
