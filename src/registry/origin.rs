//! Origins: the (scheme, host, port) that a secret, a TLS policy or a refusal is bound to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// One server as the web's security model sees it (RFC 6454 §4).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Origin {
    /// The origin of an http or https URL; nothing for other schemes.
    pub(crate) fn of(url: &Url) -> Option<Self> {
        let secure = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host_str()?.to_ascii_lowercase();
        Some(Self { secure, host, port: url.port_or_known_default()? })
    }

    /// Whether traffic to it is protected by TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// The host, an IPv6 address in brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// `host` or `host:port` where the port is not the scheme's own.
    pub(crate) fn authority(&self) -> String {
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            _ => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// The part of the network that an address belongs to, from the widest to the most private.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// Anyone's.
    Public,
    /// The site's own network (RFC 1918, RFC 6598, RFC 4193).
    Private,
    /// This machine.
    Loopback,
    /// Link-local, multicast, unspecified, reserved: no registry lives there, but cloud metadata
    /// services do.
    Never,
}

impl Reach {
    /// Judges an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    /// Judges a URL whose host is an address; nothing for a name.
    pub(crate) fn of_literal(url: &Url) -> Option<Self> {
        match url.host()? {
            Host::Ipv4(address) => Some(Self::of_v4(address)),
            Host::Ipv6(address) => Some(Self::of_v6(address)),
            Host::Domain(_) => None,
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, ..] = address.octets();
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_link_local() || a == 0 || a >= 224 {
            Self::Never
        } else if address.is_private() || (a == 100 && (64..128).contains(&b)) {
            Self::Private
        } else {
            Self::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        if let Some(mapped) = address.to_ipv4_mapped() {
            return Self::of_v4(mapped);
        }
        let [first, second, ..] = address.segments();
        // NAT64 (RFC 6052) carries an IPv4 address in its last 32 bits.
        if first == 0x64 && second == 0xff9b {
            let [.., a, b, c, d] = address.octets();
            return Self::of_v4(Ipv4Addr::new(a, b, c, d));
        }
        if address.is_loopback() {
            Self::Loopback
        } else if address.is_unspecified() || address.is_multicast() || address.is_unicast_link_local() {
            Self::Never
        } else if address.is_unique_local() {
            Self::Private
        } else {
            Self::Public
        }
    }
}

/// Whether a registry host names this machine by itself, without asking the DNS: the answer of a
/// name server must never make a registry insecure (CVE-2026-92543).
pub(crate) fn is_loopback_host(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| Reach::of(address) == Reach::Loopback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> Option<Origin> {
        Origin::of(&Url::parse(text).unwrap())
    }

    #[test]
    fn scheme_host_and_port_all_count() {
        assert_eq!(origin("https://a.io/x"), origin("https://A.io:443/y?z"));
        assert_ne!(origin("https://a.io"), origin("http://a.io"));
        assert_ne!(origin("https://a.io"), origin("https://a.io:444"));
        assert_ne!(origin("https://a.io"), origin("https://b.a.io"));
        assert_eq!(origin("ftp://a.io"), None);
        assert_eq!(origin("http://[::1]:5000/").unwrap().to_string(), "http://[::1]:5000");
    }

    #[test]
    fn addresses_are_judged() {
        for (text, reach) in [
            ("127.0.0.1", Reach::Loopback),
            ("127.9.9.9", Reach::Loopback),
            ("::1", Reach::Loopback),
            ("::ffff:127.0.0.1", Reach::Loopback),
            ("10.1.2.3", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("192.168.0.1", Reach::Private),
            ("fd00::1", Reach::Private),
            ("169.254.169.254", Reach::Never),
            ("::ffff:169.254.169.254", Reach::Never),
            ("64:ff9b::a9fe:a9fe", Reach::Never),
            ("fe80::1", Reach::Never),
            ("0.0.0.0", Reach::Never),
            ("::", Reach::Never),
            ("224.0.0.1", Reach::Never),
            ("255.255.255.255", Reach::Never),
            ("8.8.8.8", Reach::Public),
            ("2001:4860::1", Reach::Public),
        ] {
            assert_eq!(Reach::of(text.parse().unwrap()), reach, "{text}");
        }
    }

    #[test]
    fn only_literal_loopback_is_loopback() {
        for host in ["localhost", "127.0.0.1", "[::1]"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in ["localhost.evil.io", "evil.io", "127.0.0.1.evil.io", "10.0.0.1", ""] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }
}
