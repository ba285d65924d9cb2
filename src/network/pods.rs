//! What is done for a pod: attach, detach, and the same for all pods at once after a restart.

use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::address::{IpFamily, MacAddr};
use crate::bridge::{Bridge, BridgeError, SANDBOX_IFNAME, Up, Wanted, host_ifname};
use crate::error::chain;
use crate::hostport::forwards;
use crate::ipam::{self, Ipam, Range};
use crate::link::Counters;
use crate::netns::{Ipv6, Netns};
use crate::nftables::Policy;
use crate::ranges::Ranges;
use crate::rules::Rules;
use crate::teardown::Queue;
use crate::{Attachment, InterfaceAddress, NetworkError, NotReady, Options, PortMapping, Warning};

/// How much longer than the linger a device on its way out may take, as far as a pod waits for its address, or for the
/// pod's own device of before.
const DEPARTURE_PATIENCE: Duration = Duration::from_secs(2);

/// Everything that a network knows, shared with its background thread.
#[derive(Debug)]
pub struct Pods {
    network: String,
    masquerade: bool,
    direct: Vec<crate::Cidr>,
    linger: Duration,
    ranges: Mutex<Ranges>,
    ipam: Mutex<Ipam>,
    /// Told whenever a sandbox has departed.
    freed: Condvar,
    rules: Mutex<Rules>,
    not_ready: Mutex<Option<NotReady>>,
    bringing_up: Mutex<()>,
    pub(crate) bridge: Bridge,
    pub(crate) queue: Queue,
}

impl Pods {
    pub(crate) fn open(options: Options) -> Result<Self, NetworkError> {
        let ranges = Ranges::open(&options.state_dir, &options.ranges)?;
        let ipam = Ipam::open(&options.ipam_dir, &options.name)
            .map_err(|source| NetworkError::Addresses { network: options.name.clone(), source })?;
        let bridge = Bridge::open(options.bridge.clone(), options.mtu)
            .map_err(|source| NetworkError::Bridge { bridge: options.bridge.to_string(), source })?;
        let policy = policy(&bridge, &ranges, options.masquerade, &options.direct);
        Ok(Pods {
            network: options.name,
            masquerade: options.masquerade,
            direct: options.direct,
            linger: options.linger,
            ranges: Mutex::new(ranges),
            ipam: Mutex::new(ipam),
            freed: Condvar::new(),
            rules: Mutex::new(Rules::open(policy)),
            not_ready: Mutex::new(None),
            bringing_up: Mutex::new(()),
            bridge,
            queue: Queue::open()?,
        })
    }

    pub(crate) fn ready(&self) -> Result<(), NotReady> {
        lock(&self.not_ready).clone().map_or(Ok(()), Err)
    }

    pub(crate) fn warnings(&self) -> Vec<Warning> {
        lock(&self.rules).warning().into_iter().collect()
    }

    pub(crate) fn pending(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn counters(&self) -> Result<Vec<(String, Counters)>, NetworkError> {
        self.bridge.counters().map_err(|source| self.bridge_failed(source))
    }

    /// Whether pods that come speak IPv6.
    pub(crate) fn ipv6(&self) -> Ipv6 {
        let has_v6 = lock(&self.ranges).current().iter().any(|range| range.cidr().family() == IpFamily::V6);
        if has_v6 { Ipv6::On } else { Ipv6::Off }
    }

    /// Makes the bridge what it has to be and remembers whether that worked.
    pub(crate) fn bring_up(&self) -> Result<Up, NetworkError> {
        let _one_at_a_time = lock(&self.bringing_up);
        let result = self.try_bring_up();
        *lock(&self.not_ready) = result.as_ref().err().map(|error| NotReady {
            // The word that the kubelet and its users know.
            reason: "NetworkPluginNotReady",
            message: chain(error),
        });
        result
    }

    /// The bridge was deleted by someone.
    pub(crate) fn bridge_lost(&self) {
        self.bridge.forget();
        let message = format!("bridge {} is gone", self.bridge.name());
        *lock(&self.not_ready) = Some(NotReady { reason: "NetworkPluginNotReady", message });
    }

    fn try_bring_up(&self) -> Result<Up, NetworkError> {
        let taken: Vec<IpAddr> = lock(&self.ipam).addresses().collect();
        let in_use = |range: &Range| taken.iter().any(|address| range.cidr().contains(*address));
        let all = lock(&self.ranges).all();
        let retired = lock(&self.ranges).retired().to_vec();
        let dropped: Vec<Range> = retired.into_iter().filter(|range| !in_use(range)).collect();
        let kept: Vec<Range> = all.into_iter().filter(|range| !dropped.contains(range)).collect();
        let wanted = Wanted { ranges: &kept, dropped: &dropped };
        let up = self.bridge.ensure(wanted).map_err(|source| self.bridge_failed(source))?;
        lock(&self.ranges).forget_unused(|range| !dropped.contains(range))?;
        if lock(&self.rules).made() {
            // A new bridge of the same name has forgotten it.
            self.bridge.route_loopback().map_err(|source| self.bridge_failed(source))?;
        }
        Ok(up)
    }

    pub(crate) fn attach(
        &self,
        sandbox: &str,
        netns: &mut Netns,
        mappings: &[PortMapping],
    ) -> Result<Attachment, NetworkError> {
        let up = match self.bridge.state() {
            Some(up) => up,
            None => self.bring_up()?,
        };
        self.await_departure(sandbox)?;
        let ranges = lock(&self.ranges).current().to_vec();
        netns.speak(self.ipv6())?;
        let given = self.allocate(sandbox, &ranges)?;
        let addresses: Vec<InterfaceAddress> = given
            .iter()
            .zip(&ranges)
            .map(|(cidr, range)| InterfaceAddress { cidr: *cidr, gateway: range.gateway() })
            .collect();
        let attached = self.connect(sandbox, up, netns, &addresses, mappings);
        if let Err(error) = &attached {
            self.undo_attach(sandbox, error);
        }
        attached
    }

    /// A sandbox that comes back at once, as a container that is restarted, waits for its old device to be gone.
    fn await_departure(&self, sandbox: &str) -> Result<(), NetworkError> {
        if !self.queue.has(sandbox) {
            return Ok(());
        }
        // It need not go by itself any more.
        self.queue.push(sandbox, Instant::now());
        let deadline = Instant::now() + DEPARTURE_PATIENCE;
        let mut ipam = lock(&self.ipam);
        while self.queue.has(sandbox) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NetworkError::Detaching { sandbox: sandbox.to_owned() });
            }
            ipam = self.freed.wait_timeout(ipam, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Addresses for a sandbox. When all are taken but some are about to be free, it waits for those: a pod that was
    /// stopped a moment ago must not keep the next one from running.
    fn allocate(&self, sandbox: &str, ranges: &[Range]) -> Result<Vec<crate::Cidr>, NetworkError> {
        let deadline = Instant::now() + self.linger + DEPARTURE_PATIENCE;
        let mut ipam = lock(&self.ipam);
        loop {
            if ipam.of(sandbox).next().is_some() {
                return Err(NetworkError::AlreadyAttached { sandbox: sandbox.to_owned() });
            }
            let full = match ipam.allocate(sandbox, SANDBOX_IFNAME, ranges) {
                Err(full @ ipam::IpamError::Full { .. }) => full,
                outcome => return outcome.map_err(|source| self.addresses_failed(source)),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.pending() == 0 {
                return Err(self.addresses_failed(full));
            }
            ipam = self.freed.wait_timeout(ipam, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn connect(
        &self,
        sandbox: &str,
        up: Up,
        netns: &mut Netns,
        addresses: &[InterfaceAddress],
        mappings: &[PortMapping],
    ) -> Result<Attachment, NetworkError> {
        let ips: Vec<IpAddr> = addresses.iter().map(|address| address.cidr.address()).collect();
        let sandbox_name = || sandbox.to_owned();
        forwards(mappings, &ips)
            .and_then(|forwards| lock(&self.rules).claim(sandbox, forwards))
            .map_err(|source| NetworkError::HostPorts { sandbox: sandbox_name(), source })?;
        let mac = ips.first().map_or(MacAddr([0x0a, 0x58, 0, 0, 0, 0]), |address| MacAddr::of(*address));
        let mut up = up;
        let mut connected = self.bridge.connect(up, sandbox, netns, mac, addresses);
        if let Err(BridgeError::Gone { .. }) = connected {
            up = self.bring_up()?;
            connected = self.bridge.connect(up, sandbox, netns, mac, addresses);
        }
        connected.map_err(|source| NetworkError::Link { sandbox: sandbox_name(), source })?;
        lock(&self.rules)
            .install(sandbox)
            .map_err(|source| NetworkError::HostPortsUnavailable { sandbox: sandbox_name(), source })?;
        Ok(Attachment {
            sandbox_ifname: SANDBOX_IFNAME.to_owned(),
            host_ifname: host_ifname(sandbox),
            mac,
            mtu: up.mtu,
            addresses: addresses.to_vec(),
            port_mappings: mappings.to_vec(),
        })
    }

    /// The device, if it was made, goes with the namespace or by the queue; then the addresses are free.
    fn undo_attach(&self, sandbox: &str, error: &NetworkError) {
        if let Err(failed) = lock(&self.rules).release(sandbox) {
            // The ports stay noted and the addresses taken until recovery.
            let failed = chain(&failed);
            tracing::warn!(sandbox_id = sandbox, %failed, error = chain(error), "host ports not released");
            return;
        }
        self.queue.push(sandbox, Instant::now() + self.linger);
    }

    pub(crate) fn detach(&self, sandbox: &str, was_attached: bool) -> Result<(), NetworkError> {
        lock(&self.rules)
            .release(sandbox)
            .map_err(|source| NetworkError::HostPortsUnavailable { sandbox: sandbox.to_owned(), source })?;
        if was_attached || lock(&self.ipam).of(sandbox).next().is_some() {
            self.queue.push(sandbox, Instant::now() + self.linger);
        }
        Ok(())
    }

    pub(crate) fn recover(&self, live: &[(&str, &Attachment)]) -> Result<(), NetworkError> {
        let is_live = |sandbox: &str| live.iter().any(|(id, _)| *id == sandbox);
        let mut stale = Vec::new();
        {
            let mut ipam = lock(&self.ipam);
            for (sandbox, attachment) in live {
                let ips: Vec<IpAddr> = attachment.ips().collect();
                ipam.claim(sandbox, &attachment.sandbox_ifname, &ips)
                    .map_err(|source| self.addresses_failed(source))?;
            }
            // Files of a crash between creation and writing.
            ipam.release("").map_err(|source| self.addresses_failed(source))?;
            stale.extend(ipam.sandboxes().filter(|id| !is_live(id)).map(str::to_owned));
        }
        let ports = self.bridge.ports().map_err(|source| self.bridge_failed(source))?;
        stale.extend(ports.into_iter().map(|(sandbox, _)| sandbox).filter(|sandbox| !is_live(sandbox)));

        let mut noted = Vec::new();
        for (sandbox, attachment) in live {
            let ips: Vec<IpAddr> = attachment.ips().collect();
            let forwards = forwards(&attachment.port_mappings, &ips)
                .map_err(|source| NetworkError::HostPorts { sandbox: (*sandbox).to_owned(), source })?;
            noted.push(((*sandbox).to_owned(), forwards));
        }
        let made = lock(&self.rules).reset(noted.into_iter());
        self.note_rules(made);
        // Nobody waits for these: their daemon is dead.
        for sandbox in stale {
            self.queue.push(&sandbox, Instant::now());
        }
        Ok(())
    }

    /// Makes the rules anew.
    pub(crate) fn restore_rules(&self) {
        let made = lock(&self.rules).replace();
        self.note_rules(made);
    }

    /// Whether the rules should be there and are not.
    pub(crate) fn rules_missing(&self) -> bool {
        lock(&self.rules).missing()
    }

    /// Whether a notification is about damage to our rules.
    pub(crate) fn rules_damaged_by(&self, message: crate::message::Message<'_>) -> bool {
        lock(&self.rules).is_damaged_by(message)
    }

    /// The port of the socket that our rules are made by, if there is one.
    pub(crate) fn rules_port(&self) -> Option<u32> {
        lock(&self.rules).port()
    }

    pub(crate) fn set_pod_cidr(&self, text: &str) -> Result<(), NetworkError> {
        if !lock(&self.ranges).set_pod_cidr(text)? {
            return Ok(());
        }
        let policy = policy(&self.bridge, &lock(&self.ranges), self.masquerade, &self.direct);
        let made = lock(&self.rules).set_policy(policy);
        self.note_rules(made);
        self.bring_up().map(|_| ())
    }

    /// The device of a sandbox is gone: its addresses may be given again, and the sandbox may come back.
    pub(crate) fn departed(&self, sandbox: &str) -> Result<(), NetworkError> {
        // Held to the end: who waits looks at both, addresses and queue.
        let mut ipam = lock(&self.ipam);
        ipam.release(sandbox).map_err(|source| self.addresses_failed(source))?;
        self.queue.forget(sandbox);
        self.freed.notify_all();
        Ok(())
    }

    /// Forgets ranges whose last address was released.
    pub(crate) fn forget_unused_ranges(&self) -> Result<(), NetworkError> {
        if lock(&self.ranges).retired().is_empty() {
            return Ok(());
        }
        self.bring_up().map(|_| ())
    }

    /// What is wrong with the rules is told by [`Pods::warnings`]; the network works without.
    fn note_rules(&self, made: Result<(), crate::NetlinkError>) {
        // Only where the rule is that closes the other direction.
        if made.is_ok()
            && let Err(error) = self.bridge.route_loopback()
        {
            tracing::warn!(error = chain(&error), "host ports do not work from this machine's loopback");
        }
    }

    fn bridge_failed(&self, source: BridgeError) -> NetworkError {
        NetworkError::Bridge { bridge: self.bridge.name().to_string(), source }
    }

    fn addresses_failed(&self, source: ipam::IpamError) -> NetworkError {
        NetworkError::Addresses { network: self.network.clone(), source }
    }
}

fn policy(bridge: &Bridge, ranges: &Ranges, masquerade: bool, direct: &[crate::Cidr]) -> Policy {
    Policy {
        bridge: bridge.name().to_string(),
        pods: ranges.all().iter().map(Range::cidr).collect(),
        direct: direct.to_vec(),
        masquerade,
    }
}

/// A panic while a lock was held left at worst a request unfinished, which the next one of its kind repairs.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
