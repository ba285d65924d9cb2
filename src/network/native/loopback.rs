//! The plugin `loopback`: `lo` is up while the pod is.

use super::result::{Address, Interface, Outcome};
use super::{Call, Native, NativeError, netlink};
use crate::address::Cidr;
use crate::link;
use crate::netlink::Socket;

const PLUGIN: &str = "loopback";
const LO: &str = "lo";

impl Native {
    pub(super) fn add_loopback(&self, call: Call<'_>) -> Result<Outcome, NativeError> {
        let addresses = call.inside_present(PLUGIN, set_up)?;
        if let Some(previous) = call.previous(PLUGIN)? {
            return Ok(previous);
        }
        let sandbox = call.netns.map_or_else(String::new, |path| path.display().to_string());
        let mac = "00:00:00:00:00:00".to_owned();
        let interface = Interface { name: LO.to_owned(), mac, sandbox, ..Interface::default() };
        let ips = addresses
            .into_iter()
            .map(|address| Address { version: None, interface: Some(0), address, gateway: None })
            .collect();
        Ok(Outcome { interfaces: vec![interface], ips, ..Outcome::default() })
    }

    pub(super) fn del_loopback(&self, call: Call<'_>) -> Result<(), NativeError> {
        call.inside(|socket| {
            let mut request = socket.request();
            link::set_down(&mut request, LO);
            socket.execute(request).map_err(netlink(PLUGIN))
        })
        .map(|_| ())
    }

    pub(super) fn check_loopback(&self, call: Call<'_>) -> Result<(), NativeError> {
        let found =
            call.inside_present(PLUGIN, |socket| link::find_link(socket, LO).map_err(netlink(PLUGIN)))?;
        match found {
            Some(lo) if lo.up => Ok(()),
            _ => Err(NativeError::Interface { interface: LO.to_owned(), what: "is down" }),
        }
    }
}

/// The first address of each family.
fn set_up(socket: &mut Socket) -> Result<Vec<Cidr>, NativeError> {
    let mut request = socket.request();
    link::set_up(&mut request, LO);
    socket.execute(request).map_err(netlink(PLUGIN))?;
    let lo = link::find_link(socket, LO).map_err(netlink(PLUGIN))?;
    let index = lo.map_or(1, |lo| lo.index);
    let addresses = link::addresses(socket, index).map_err(netlink(PLUGIN))?;
    if addresses.iter().any(|address| !address.address().is_loopback()) {
        return Err(NativeError::Interface {
            interface: LO.to_owned(),
            what: "has an address that is not loopback",
        });
    }
    let first = |v4: bool| addresses.iter().copied().find(|address| address.address().is_ipv4() == v4);
    Ok(first(true).into_iter().chain(first(false)).collect())
}
