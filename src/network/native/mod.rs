//! CNI's standard plugins without their programs: `bridge` with `host-local`, `portmap`, `bandwidth`, `loopback`.
//!
//! [`Native`] does over netlink what the programs do, with the same result, the same files and the same rules: a pod that
//! was added here can be deleted by the programs, and the other way round. What it does not do exactly,
//! [`Native::supports`] refuses before anything is done, and says why.
//!
//! ```text
//!  bridge     veth pair, port, bridge, gateways    rtnetlink     ─► addresses: host_local
//!             ipMasq                                nf_tables     ─► nat, in iptables-nft's format
//!  portmap    host ports                            nf_tables     ─► nat
//!  bandwidth  tbf on the port, ifb for the way back rtnetlink     ─► shaping
//!  loopback   lo up                                 rtnetlink
//! ```
//!
//! Calls block for a few milliseconds, deletions for some 20, in which the kernel waits for its readers and no link of the
//! machine can be changed. Where the pod's namespace goes anyway, its devices go with it, many at a time and in nobody's
//! way: who can wait calls [`Native::withdraw`], lets the namespace go, and then calls [`Native::del`] without it, which
//! gives the addresses back once the port is gone. Calls may come from any thread of the namespace in which
//! [`Native::open`] was called; of two calls for one pod the second must wait for the first.

mod bandwidth;
mod bridge;
mod config;
mod host_local;
mod iptables;
mod loopback;
mod nat;
mod portmap;
mod result;

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use serde_json::Value;
use sha2::{Digest, Sha512};

use self::config::{Plugin, RuntimeConfig};
pub use self::config::{Unsupported, VERSIONS};
pub use self::host_local::HostLocalError;
use self::nat::Nat;
use self::result::Outcome;
use crate::netlink::{Family, NetlinkError, Socket};
use crate::netns::{NetnsError, on_thread};

/// File system types that a namespace's file is of: nsfs, and procfs before Linux 3.19.
const NAMESPACE_FILE_SYSTEMS: [u64; 2] = [0x6e73_6673, 0x9fa0];
/// Where the programs of plugins look for `iptables`.
const IPTABLES: [&str; 4] =
    ["/usr/sbin/iptables", "/sbin/iptables", "/usr/bin/iptables", "/usr/local/sbin/iptables"];

/// What a plugin is called with.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// `CNI_CONTAINERID`.
    pub container: &'a str,
    /// `CNI_NETNS`; none if the namespace is gone.
    pub netns: Option<&'a Path>,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
    /// What a program would read: one plugin's configuration, with `runtimeConfig` and `prevResult`.
    pub config: &'a Value,
}

/// Why a plugin failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NativeError {
    /// It should have been left to the plugin's program.
    #[error("not executed natively: {0}")]
    Unsupported(#[from] Unsupported),
    /// What the runtime passed is not what it should be.
    #[error("plugin {plugin}: {what}")]
    Input {
        /// The plugin.
        plugin: &'static str,
        /// What is wrong.
        what: &'static str,
        /// With what.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// An address or hardware address that is asked for is none.
    #[error("plugin {plugin}: {text:?} is not {what}")]
    Requested {
        /// The plugin.
        plugin: &'static str,
        /// What it should be.
        what: &'static str,
        /// What it is.
        text: String,
    },
    /// The kernel refused.
    #[error("plugin {plugin}")]
    Netlink {
        /// The plugin.
        plugin: &'static str,
        /// What.
        #[source]
        source: NetlinkError,
    },
    /// Rules could not be changed.
    #[error("plugin {plugin}: rules of iptables")]
    Rules {
        /// The plugin.
        plugin: &'static str,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// Addresses could not be had or given back.
    #[error("addresses of network {network}")]
    Addresses {
        /// The network.
        network: String,
        /// Why.
        #[source]
        source: HostLocalError,
    },
    /// The pod's namespace could not be entered.
    #[error("network namespace {path}")]
    Netns {
        /// The namespace.
        path: PathBuf,
        /// Why.
        #[source]
        source: NetnsError,
    },
    /// A setting could not be made.
    #[error("plugin {plugin}")]
    Sysctl {
        /// The plugin.
        plugin: &'static str,
        /// Which.
        #[source]
        source: crate::SysctlError,
    },
    /// A file could not be read.
    #[error("read {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An interface is not what the plugin needs, or not there.
    #[error("{interface}: {what}")]
    Interface {
        /// The interface.
        interface: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The bridge has another address.
    #[error("{bridge} has an address already that is not {wanted}: {present}")]
    OtherAddress {
        /// The bridge.
        bridge: String,
        /// The gateway's address.
        wanted: crate::Cidr,
        /// What it has.
        present: crate::Cidr,
    },
    /// Two settings that exclude each other.
    #[error("plugin bridge: hairpinMode and promiscMode exclude each other")]
    HairpinAndPromiscuous,
    /// What was made for a pod is not there any more.
    #[error("plugin {plugin}: {what} is not there")]
    Missing {
        /// The plugin.
        plugin: &'static str,
        /// What.
        what: String,
    },
}

/// The standard plugins, in the namespace of the thread that opened them.
#[derive(Debug)]
pub struct Native {
    route: Mutex<Socket>,
    nat: Mutex<Nat>,
}

impl Native {
    /// Opens the sockets. Nothing is changed.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Native { route: Mutex::new(Socket::open(Family::Route)?), nat: Mutex::new(Nat::open()?) })
    }

    /// Whether a plugin with this configuration is executed here, exactly as its program would.
    pub fn supports(config: &Value) -> Result<(), Unsupported> {
        let plugin = Plugin::parse(config)?;
        match legacy_iptables().filter(|_| plugin.writes_rules()) {
            Some(path) => Err(Unsupported::LegacyIptables { path }),
            None => Ok(()),
        }
    }

    /// ADD: answers with the result, in the version of the configuration.
    ///
    /// After a failure the caller calls [`Native::del`], as it would execute DEL.
    pub fn add(&self, call: Call<'_>) -> Result<Value, NativeError> {
        let outcome = match Plugin::parse(call.config)? {
            Plugin::Bridge(bridge) => self.add_bridge(call, &bridge),
            Plugin::Portmap(portmap) => self.add_portmap(call, &portmap),
            Plugin::Bandwidth(own) => self.add_bandwidth(call, own),
            Plugin::Loopback => self.add_loopback(call),
        }?;
        let version = call.config.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
        serde_json::to_value(outcome.in_version(version)).map_err(|source| NativeError::Input {
            plugin: "result",
            what: "cannot be written",
            source: Some(source),
        })
    }

    /// DEL: it is no error if nothing is there.
    pub fn del(&self, call: Call<'_>) -> Result<(), NativeError> {
        match Plugin::parse(call.config)? {
            Plugin::Bridge(bridge) => self.del_bridge(call, &bridge),
            Plugin::Portmap(_) => self.del_portmap(call),
            Plugin::Bandwidth(_) => self.del_bandwidth(call),
            Plugin::Loopback => self.del_loopback(call),
        }
    }

    /// The part of DEL that cannot wait for the pod's namespace to go: what leads to the pod or hides it (rules of host
    /// ports, masquerading) is taken away. [`Native::del`] without the namespace does the rest.
    pub fn withdraw(&self, call: Call<'_>) -> Result<(), NativeError> {
        match Plugin::parse(call.config)? {
            Plugin::Bridge(bridge) if bridge.ip_masq => self.unmasquerade(call),
            Plugin::Portmap(_) => self.del_portmap(call),
            Plugin::Bridge(_) | Plugin::Bandwidth(_) | Plugin::Loopback => Ok(()),
        }
    }

    /// CHECK: whether what was made is still there.
    pub fn check(&self, call: Call<'_>) -> Result<(), NativeError> {
        match Plugin::parse(call.config)? {
            Plugin::Bridge(bridge) => self.check_bridge(call, &bridge),
            Plugin::Portmap(portmap) => self.check_portmap(call, &portmap),
            Plugin::Bandwidth(own) => self.check_bandwidth(call, own),
            Plugin::Loopback => self.check_loopback(call),
        }
    }

    /// GC: releases the addresses of everyone that the configuration's `cni.dev/valid-attachments` do not name.
    pub fn gc(&self, config: &Value) -> Result<(), NativeError> {
        let Plugin::Bridge(bridge) = Plugin::parse(config)? else {
            return Ok(());
        };
        let Some(valid) = config.get("cni.dev/valid-attachments").and_then(Value::as_array) else {
            return Err(NativeError::Input {
                plugin: "bridge",
                what: "cni.dev/valid-attachments",
                source: None,
            });
        };
        let call = Call { container: "", netns: None, ifname: "", args: "", config };
        bridge::release_others(call, &bridge, |container, interface| {
            valid.iter().any(|pod| pod["containerID"] == container && pod["ifname"] == interface)
        })
    }

    fn route(&self) -> MutexGuard<'_, Socket> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nat(&self) -> MutexGuard<'_, Nat> {
        self.nat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call<'_> {
    fn network(&self) -> &str {
        self.config.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    fn runtime(&self, plugin: &'static str) -> Result<RuntimeConfig, NativeError> {
        RuntimeConfig::parse(self.config).map_err(|source| NativeError::Input {
            plugin,
            what: "runtimeConfig",
            source: Some(source),
        })
    }

    /// The result of the plugins before this one.
    fn previous(&self, plugin: &'static str) -> Result<Option<Outcome>, NativeError> {
        match self.config.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|source| NativeError::Input { plugin, what: "prevResult", source: Some(source) }),
        }
    }

    fn chained(&self, plugin: &'static str) -> Result<Outcome, NativeError> {
        self.previous(plugin)?.ok_or(NativeError::Input {
            plugin,
            what: "must be called as chained plugin",
            source: None,
        })
    }

    /// Runs `work` with a socket of the pod's namespace on a thread inside; none if the namespace is gone.
    fn inside<T: Send>(
        &self,
        work: impl FnOnce(&mut Socket) -> Result<T, NativeError> + Send,
    ) -> Result<Option<T>, NativeError> {
        let Some(path) = self.netns else {
            return Ok(None);
        };
        let failed = |source| NativeError::Netns { path: path.to_owned(), source };
        let Some(netns) = open_netns(path).map_err(failed)? else {
            return Ok(None);
        };
        let worked = on_thread(move || {
            nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET).map_err(|errno| {
                NetnsError::Call { call: "setns", source: Errno::from_raw_os_error(errno as i32) }
            })?;
            let mut socket = Socket::open(Family::Route)?;
            Ok(work(&mut socket))
        });
        worked.map_err(failed)?.map(Some)
    }

    /// Like [`Call::inside`] where the namespace must be there.
    fn inside_present<T: Send>(
        &self,
        plugin: &'static str,
        work: impl FnOnce(&mut Socket) -> Result<T, NativeError> + Send,
    ) -> Result<T, NativeError> {
        self.inside(work)?.ok_or_else(|| NativeError::Missing {
            plugin,
            what: self.netns.map_or_else(
                || "the network namespace".to_owned(),
                |path| format!("network namespace {}", path.display()),
            ),
        })
    }
}

/// The namespace at a path; none if there is none.
fn open_netns(path: &Path) -> Result<Option<OwnedFd>, NetnsError> {
    match rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => {
            let kind =
                rustix::fs::fstatfs(&fd).map_err(|source| NetnsError::Call { call: "fstatfs", source })?;
            let kind = u64::try_from(kind.f_type).unwrap_or(0);
            Ok(NAMESPACE_FILE_SYSTEMS.contains(&kind).then_some(fd))
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(source) => Err(NetnsError::Call { call: "open", source }),
    }
}

/// The program that the plugins would execute, if it writes where nf_tables does not see it.
fn legacy_iptables() -> Option<PathBuf> {
    let program = IPTABLES.iter().find_map(|path| std::fs::canonicalize(path).ok())?;
    program.file_name()?.to_string_lossy().contains("legacy").then_some(program)
}

/// A name made of a prefix and as much of a hash as fits, as the plugins name chains and devices.
fn hashed(length: usize, prefix: &str, of: &[&str]) -> String {
    let mut hash = Sha512::new();
    for part in of {
        hash.update(part.as_bytes());
    }
    let mut name = prefix.to_owned();
    for byte in hash.finalize() {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name.truncate(length);
    name
}

fn netlink(plugin: &'static str) -> impl Fn(NetlinkError) -> NativeError {
    move |source| NativeError::Netlink { plugin, source }
}

fn rules(plugin: &'static str) -> impl Fn(NetlinkError) -> NativeError {
    move |source| NativeError::Rules { plugin, source }
}
