//! The plugin `bandwidth`: a token bucket on the pod's port, and one on an ifb device for what the pod sends.

use super::config::Bandwidth;
use super::result::{Interface, Outcome};
use super::{Call, Native, NativeError, hashed, netlink};
use crate::link::{self, Link};
use crate::message::{Attributes, Request, Subject, flag};

const PLUGIN: &str = "bandwidth";
const IFB_NAME_LENGTH: usize = 15;
/// What may wait in a bucket, in time.
const LATENCY_US: u64 = 25_000;
const US_PER_S: u64 = 1_000_000;

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const TCMSG_LEN: usize = 20;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
const HANDLE_TBF: u32 = 0x0001_0000;
const HANDLE_INGRESS: u32 = 0xffff_0000;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TC_U32_TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
const ETH_P_ALL: u16 = 3;
const CLASS: u32 = 0x0001_0001;

impl Native {
    pub(super) fn add_bandwidth(&self, call: Call<'_>, own: Bandwidth) -> Result<Outcome, NativeError> {
        let limits = limits(call, own)?;
        let mut result = call.chained(PLUGIN)?;
        let Some(limits) = limits.filter(|limits| !limits.is_zero()) else {
            return Ok(result);
        };
        let port = self.port_of(call, &result)?;
        let mut socket = self.route();
        let mut request = socket.request();
        if limits.ingress_rate > 0 {
            token_bucket(&mut request, &port.name, port.index, limits.ingress_rate, limits.ingress_burst);
        }
        if limits.egress_rate == 0 {
            socket.execute(request).map_err(netlink(PLUGIN))?;
            return Ok(result);
        }
        let name = ifb_name(call);
        link::create_ifb(&mut request, &name, port.mtu);
        socket.execute(request).map_err(netlink(PLUGIN))?;
        let missing = || NativeError::Missing { plugin: PLUGIN, what: name.clone() };
        let ifb = link::find_link(&mut socket, &name).map_err(netlink(PLUGIN))?.ok_or_else(missing)?;
        let mut request = socket.request();
        redirect(&mut request, &port, ifb.index);
        token_bucket(&mut request, &name, ifb.index, limits.egress_rate, limits.egress_burst);
        socket.execute(request).map_err(netlink(PLUGIN))?;
        let mac = ifb.mac.map_or_else(String::new, |mac| mac.to_string());
        result.interfaces.push(Interface { name, mac, ..Interface::default() });
        Ok(result)
    }

    pub(super) fn del_bandwidth(&self, call: Call<'_>) -> Result<(), NativeError> {
        let mut socket = self.route();
        let mut request = socket.request();
        link::delete_link(&mut request, &ifb_name(call));
        match socket.execute(request) {
            Err(error) if !error.is_absent() => Err(netlink(PLUGIN)(error)),
            _ => Ok(()),
        }
    }

    pub(super) fn check_bandwidth(&self, call: Call<'_>, own: Bandwidth) -> Result<(), NativeError> {
        let result = call.chained(PLUGIN)?;
        let Some(limits) = limits(call, own)? else {
            return Ok(());
        };
        self.port_of(call, &result)?;
        let name = ifb_name(call);
        let ifb = link::find_link(&mut self.route(), &name).map_err(netlink(PLUGIN))?;
        if limits.egress_rate > 0 && ifb.is_none() {
            return Err(NativeError::Missing { plugin: PLUGIN, what: name });
        }
        Ok(())
    }

    /// The machine's end of the pod's interface.
    fn port_of(&self, call: Call<'_>, result: &Outcome) -> Result<Link, NativeError> {
        let ifname = call.ifname;
        let inside =
            call.inside_present(PLUGIN, |socket| link::find_link(socket, ifname).map_err(netlink(PLUGIN)))?;
        let lacks = |what| NativeError::Interface { interface: ifname.to_owned(), what };
        let peer = inside.and_then(|link| link.peer).ok_or_else(|| lacks("has no other end"))?;
        let port = link::link_at(&mut self.route(), peer).map_err(netlink(PLUGIN))?;
        let known = |link: &Link| {
            result.interfaces.iter().any(|known| known.sandbox.is_empty() && known.name == link.name)
        };
        port.filter(known).ok_or_else(|| lacks("has its other end somewhere else"))
    }
}

fn ifb_name(call: Call<'_>) -> String {
    hashed(IFB_NAME_LENGTH, "bwp", &[call.network(), call.container])
}

fn limits(call: Call<'_>, own: Bandwidth) -> Result<Option<Bandwidth>, NativeError> {
    let runtime = call.runtime(PLUGIN)?;
    let Some(limits) = Bandwidth::of(call.config, own, &runtime) else {
        return Ok(None);
    };
    let refused = |what| Err(NativeError::Input { plugin: PLUGIN, what, source: None });
    for (rate, burst) in
        [(limits.ingress_rate, limits.ingress_burst), (limits.egress_rate, limits.egress_burst)]
    {
        if (rate == 0) != (burst == 0) {
            return refused("rate and burst must be set together");
        }
        if burst / 8 >= u64::from(u32::MAX) {
            return refused("a burst of 4 GB or more");
        }
        if rate != 0 && rate < 8 {
            return refused("a rate below one byte in a second");
        }
    }
    Ok(Some(limits))
}

/// Appends: a token bucket at the root of a link. Rates and bursts are in bits.
fn token_bucket(request: &mut Request, name: &str, index: u32, rate_bits: u64, burst_bits: u64) {
    let (rate, burst) = (rate_bits / 8, burst_bits / 8);
    let buffer_us = (burst * US_PER_S).checked_div(rate).unwrap_or(0).min(u64::from(u32::MAX));
    // The kernel's clock of queues ticks 15.625 times in a microsecond (PSCHED_SHIFT 6), and has since 2.6.31.
    let buffer = saturated(buffer_us * 125 / 8);
    let limit = saturated(rate * LATENCY_US / US_PER_S + burst);
    let header = tcmsg(index, HANDLE_TBF, TC_H_ROOT, 0);
    add(request, "limit rate of", name, RTM_NEWQDISC, &header, |attributes| {
        attributes.text(TCA_KIND, "tbf");
        attributes.nested(TCA_OPTIONS, |options| {
            // struct tc_tbf_qopt: two struct tc_ratespec, limit, buffer, largest packet.
            let mut parameters = rate_specification(saturated_rate(rate));
            parameters.extend(rate_specification(0));
            for number in [limit, buffer, 0] {
                parameters.extend(number.to_ne_bytes());
            }
            options.bytes(TCA_TBF_PARMS, &parameters);
            if rate > u64::from(u32::MAX) {
                options.bytes(TCA_TBF_RATE64, &rate.to_ne_bytes());
            }
        });
    });
}

/// Appends: what a link receives is sent through another one first.
fn redirect(request: &mut Request, port: &Link, to: u32) {
    let header = tcmsg(port.index, HANDLE_INGRESS, TC_H_INGRESS, 0);
    add(request, "add ingress queue of", &port.name, RTM_NEWQDISC, &header, |attributes| {
        attributes.text(TCA_KIND, "ingress");
    });
    let info = (1 << 16) | u32::from(ETH_P_ALL.to_be());
    let header = tcmsg(port.index, 0, HANDLE_INGRESS, info);
    add(request, "redirect", &port.name, RTM_NEWTFILTER, &header, |attributes| {
        attributes.text(TCA_KIND, "u32");
        attributes.nested(TCA_OPTIONS, |options| {
            options.u32(TCA_U32_CLASSID, CLASS);
            // struct tc_u32_sel and one key that every packet has.
            let mut selector = vec![TC_U32_TERMINAL, 0, 1];
            selector.resize(16 + 16, 0);
            options.bytes(TCA_U32_SEL, &selector);
            options.nested(TCA_U32_ACT, |actions| {
                actions.nested(1, |action| mirror(action, TC_ACT_STOLEN, to));
                actions.nested(2, |action| mirror(action, 0, to));
            });
        });
    });
}

/// `struct tc_mirred`: index, capabilities, verdict, two counts, kind, link.
fn mirror(action: &mut Attributes<'_>, verdict: u32, to: u32) {
    action.text(TCA_ACT_KIND, "mirred");
    action.nested(TCA_ACT_OPTIONS, |options| {
        let numbers = [0, 0, verdict, 0, 0, TCA_EGRESS_REDIR, to];
        let bytes: Vec<u8> = numbers.into_iter().flat_map(u32::to_ne_bytes).collect();
        options.bytes(TCA_MIRRED_PARMS, &bytes);
    });
}

fn add(
    request: &mut Request,
    operation: &'static str,
    name: &str,
    kind: u16,
    header: &[u8],
    attributes: impl FnOnce(&mut Attributes<'_>),
) {
    let subject = Subject { operation, name: name.to_owned() };
    request.message(subject, kind, flag::CREATE | flag::EXCLUSIVE, header, attributes);
}

/// `struct tcmsg`.
fn tcmsg(index: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG_LEN] {
    let mut header = [0; TCMSG_LEN];
    for (at, number) in [(4, index), (8, handle), (12, parent), (16, info)] {
        header[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    header
}

/// `struct tc_ratespec`: cell, link layer, overhead, alignment, smallest packet, bytes in a second.
fn rate_specification(rate: u32) -> Vec<u8> {
    let mut specification = vec![0; 8];
    specification.extend(rate.to_ne_bytes());
    specification
}

/// The low half, as the kernel wants it when the whole rate follows.
fn saturated_rate(rate: u64) -> u32 {
    u32::try_from(rate).unwrap_or(u32::MAX)
}

fn saturated(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
