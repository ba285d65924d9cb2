//! The `nat` tables of `iptables-nft`: chains of pods, and the chains that all pods share.
//!
//! ```text
//! POSTROUTING ─ -s <pod> ─► CNI-<hash>            masquerading of one pod (bridge, ipMasq)
//! POSTROUTING ────────────► CNI-HOSTPORT-MASQ     masquerades what carries the mark
//! PREROUTING, OUTPUT ─────► CNI-HOSTPORT-DNAT ─ --dports … ─► CNI-DN-<hash>   host ports of one pod (portmap)
//!                                                             └► CNI-HOSTPORT-SETMARK
//! ```
//!
//! Other programs change the same tables. Every change names the generation of the rules that it was decided on, and is
//! decided anew if that has passed; what was read of a generation need not be read again while it lasts.

use std::collections::BTreeMap;

use rustix::io::Errno;

use crate::address::{Cidr, IpFamily};
use crate::conntrack::{self, Wrong};
use crate::hostport::{Forward, HostPort, Protocol};
use crate::message::{self, Attributes, Message, Request, Subject, flag};
use crate::native::iptables::{Action, Conditions, Found, Match, Rule};
use crate::netlink::{Family, NetlinkError, Socket};
use crate::nftables::{
    DELCHAIN, DELRULE, HOOK_OUTPUT, HOOK_POSTROUTING, HOOK_PREROUTING, NEWCHAIN, NEWRULE, NEWTABLE,
    NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_TABLE,
    NFTA_CHAIN_TYPE, NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE, NFTA_TABLE_NAME, PRIORITY_DSTNAT, PRIORITY_SRCNAT, SUBSYS_NFTABLES,
};

const TABLE: &str = "nat";
const GETCHAIN: u8 = 4;
const GETRULE: u8 = 7;
const NEWGEN: u8 = 15;
const GETGEN: u8 = 16;
const NFTA_GEN_ID: u16 = 1;
const NFNL_BATCH_GENID: u16 = 1;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_COMPAT: u16 = 5;
const NFTA_RULE_COMPAT_PROTO: u16 = 1;
const NFTA_RULE_COMPAT_FLAGS: u16 = 2;
const HOOK_INPUT: u32 = 1;

const PREROUTING: &str = "PREROUTING";
const OUTPUT: &str = "OUTPUT";
const POSTROUTING: &str = "POSTROUTING";
const HOST_PORTS: &str = "CNI-HOSTPORT-DNAT";
/// The chain that marks what has to be masqueraded.
pub const SET_MARK: &str = "CNI-HOSTPORT-SETMARK";
const MARKED: &str = "CNI-HOSTPORT-MASQ";

/// How often a change is decided anew because others were faster.
const ATTEMPTS: u32 = 20;

/// The host ports of one pod in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPorts {
    /// The pod's chain.
    pub chain: String,
    /// The rules that lead there, of the chain that all pods share.
    pub entries: Vec<Rule>,
    /// The rules of the pod's chain.
    pub rules: Vec<Rule>,
    /// The bits that mark what has to be masqueraded, if the shared chains for that are needed.
    pub mark: Option<u32>,
}

/// The tables in the kernel, of the namespace where they were opened.
#[derive(Debug)]
pub struct Nat {
    socket: Socket,
    /// What is known of each family's shared chains.
    known: BTreeMap<IpFamily, Known>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    generation: u32,
    /// Whether the shared chains of host ports are there.
    host_ports: bool,
    /// The bits that the shared chains of the mark are for.
    mark: Option<u32>,
}

/// Which rules of the shared chains are missing.
#[derive(Debug, Clone, Copy, Default)]
struct Missing {
    from_prerouting: bool,
    from_output: bool,
    set_mark: bool,
    marked: bool,
    from_postrouting: bool,
}

impl Nat {
    /// Opens a socket. Nothing is changed yet.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Nat { socket: Socket::open(Family::Netfilter)?, known: BTreeMap::new() })
    }

    /// Masquerades what these addresses send out of their networks.
    pub fn masquerade(&mut self, chain: &str, comment: &str, addresses: &[Cidr]) -> Result<(), NetlinkError> {
        for family in [IpFamily::V4, IpFamily::V6] {
            let of_family: Vec<Cidr> =
                addresses.iter().copied().filter(|address| address.family() == family).collect();
            if of_family.is_empty() {
                continue;
            }
            let (rules, entries) = masquerade_rules(family, chain, comment, &of_family);
            self.replace_chain(family, chain, |_, transaction| {
                for rule in &rules {
                    transaction.append(chain, rule);
                }
                for entry in &entries {
                    transaction.append(POSTROUTING, entry);
                }
                Ok(None)
            })?;
        }
        Ok(())
    }

    /// Undoes [`Nat::masquerade`]; it is no error if nothing is there.
    pub fn unmasquerade(&mut self, chain: &str) -> Result<(), NetlinkError> {
        for family in [IpFamily::V4, IpFamily::V6] {
            self.remove(family, chain, POSTROUTING)?;
        }
        Ok(())
    }

    /// Makes host ports lead to a pod.
    pub fn forward(&mut self, family: IpFamily, ports: &HostPorts) -> Result<(), NetlinkError> {
        self.replace_chain(family, &ports.chain, |nat, transaction| {
            let known = nat.known.get(&family).filter(|known| {
                known.generation == transaction.generation
                    && known.host_ports
                    && (ports.mark.is_none() || known.mark == ports.mark)
            });
            let mark = match known {
                Some(known) => known.mark,
                None => {
                    let missing = nat.missing(family, ports.mark)?;
                    transaction.add_shared(missing, ports.mark);
                    ports.mark
                }
            };
            for rule in &ports.rules {
                transaction.append(&ports.chain, rule);
            }
            for entry in &ports.entries {
                transaction.append(HOST_PORTS, entry);
            }
            Ok(Some(mark))
        })
    }

    /// Undoes [`Nat::forward`] in both families; it is no error if nothing is there.
    pub fn unforward(&mut self, chain: &str) -> Result<(), NetlinkError> {
        for family in [IpFamily::V4, IpFamily::V6] {
            self.remove(family, chain, HOST_PORTS)?;
        }
        Ok(())
    }

    /// Deletes what the kernel remembers of datagrams to a port of the machine, so that the next one sees the rules.
    pub fn forget_datagrams(&mut self, family: IpFamily, port: u16) -> Result<(), NetlinkError> {
        let host = HostPort { protocol: Protocol::Udp, family, port, address: None };
        let nowhere = crate::address::from_number(family, 0);
        let forward = Forward { host, address: nowhere, port: 0 };
        conntrack::forget(&mut self.socket, &[forward], Wrong::Any)
    }

    /// Whether a chain leads to another.
    pub fn leads(&mut self, family: IpFamily, to: &str) -> Result<bool, NetlinkError> {
        let mut rules = self.rules(family, POSTROUTING)?;
        rules.extend(self.rules(family, HOST_PORTS)?);
        Ok(rules.iter().any(|rule| rule.jumps_to.as_deref() == Some(to)))
    }

    /// Makes a chain anew and whatever `fill` adds, in one transaction. `fill` tells what it knows of the shared chains.
    fn replace_chain(
        &mut self,
        family: IpFamily,
        chain: &str,
        fill: impl Fn(&mut Nat, &mut Transaction) -> Result<Option<Option<u32>>, NetlinkError>,
    ) -> Result<(), NetlinkError> {
        for _ in 0..ATTEMPTS {
            let generation = self.generation()?;
            let mut transaction = Transaction::begin(self.socket.request(), family, generation);
            if self.known.get(&family).is_none_or(|known| known.generation != generation) {
                transaction.add_base();
            }
            transaction.add_chain(chain, flag::EXCLUSIVE);
            let shared = fill(self, &mut transaction)?;
            match transaction.commit(&mut self.socket) {
                Ok(()) => {
                    self.note(family, generation, shared);
                    return Ok(());
                }
                Err(error) => match error.errno() {
                    // Left of an earlier attempt for the same pod.
                    Some(Errno::EXIST) => {
                        self.remove(family, chain, POSTROUTING)?;
                        self.remove(family, chain, HOST_PORTS)?;
                    }
                    Some(Errno::RESTART) => {}
                    _ => return Err(error),
                },
            }
        }
        Err(busy(chain))
    }

    fn remove(&mut self, family: IpFamily, chain: &str, entry: &str) -> Result<(), NetlinkError> {
        for _ in 0..ATTEMPTS {
            let generation = self.generation()?;
            let leading: Vec<u64> = self
                .rules(family, entry)?
                .into_iter()
                .filter(|rule| rule.jumps_to.as_deref() == Some(chain))
                .map(|rule| rule.handle)
                .collect();
            // A transaction that fails is undone by waiting until no packet is under way: some 10 ms, and nobody else gets
            // his in meanwhile. So it is not tried for nothing.
            if leading.is_empty() && !self.has_chain(family, chain)? {
                return Ok(());
            }
            let mut transaction = Transaction::begin(self.socket.request(), family, generation);
            for handle in &leading {
                transaction.delete_rule(entry, Some(*handle));
            }
            transaction.delete_rule(chain, None);
            transaction.delete_chain(chain);
            match transaction.commit(&mut self.socket) {
                Ok(()) => {
                    self.note(family, generation, None);
                    return Ok(());
                }
                Err(error) if error.is_absent() && leading.is_empty() => return Ok(()),
                // The other kind of entry leads here; that is removed by a call of its own.
                Err(error) if error.errno() == Some(Errno::BUSY) => return Ok(()),
                Err(error) if error.errno() == Some(Errno::RESTART) || error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        Err(busy(chain))
    }

    /// After a change of ours: what was known of the generation before holds for the next.
    fn note(&mut self, family: IpFamily, before: u32, shared: Option<Option<u32>>) {
        let after = before.wrapping_add(1);
        self.known.retain(|_, known| known.generation == before);
        for known in self.known.values_mut() {
            known.generation = after;
        }
        let known =
            self.known.entry(family).or_insert(Known { generation: after, host_ports: false, mark: None });
        if let Some(mark) = shared {
            known.host_ports = true;
            known.mark = mark.or(known.mark);
        }
    }

    fn missing(&mut self, family: IpFamily, mark: Option<u32>) -> Result<Missing, NetlinkError> {
        let leads = |rules: Vec<Found>, to: &str| rules.iter().any(|r| r.jumps_to.as_deref() == Some(to));
        let mut missing = Missing {
            from_prerouting: !leads(self.rules(family, PREROUTING)?, HOST_PORTS),
            from_output: !leads(self.rules(family, OUTPUT)?, HOST_PORTS),
            ..Missing::default()
        };
        if let Some(bits) = mark {
            missing.set_mark = !self.rules(family, SET_MARK)?.iter().any(|rule| rule.sets_mark(bits));
            missing.marked = !self.rules(family, MARKED)?.iter().any(|rule| rule.masquerades_mark(bits));
            missing.from_postrouting = !leads(self.rules(family, POSTROUTING)?, MARKED);
        }
        Ok(missing)
    }

    /// The rules of a chain; none if it is not there.
    fn rules(&mut self, family: IpFamily, chain: &str) -> Result<Vec<Found>, NetlinkError> {
        let subject = Subject { operation: "list rules of chain", name: chain.to_owned() };
        let kind = u16::from_le_bytes([GETRULE, SUBSYS_NFTABLES]);
        let header = [family.number(), 0, 0, 0];
        let attributes = |attributes: &mut Attributes<'_>| {
            attributes.text(NFTA_RULE_TABLE, TABLE);
            attributes.text(NFTA_RULE_CHAIN, chain);
        };
        match self.socket.dump(&subject, kind, &header, attributes, Found::parse) {
            Err(error) if error.is_absent() => Ok(Vec::new()),
            rules => rules,
        }
    }

    fn has_chain(&mut self, family: IpFamily, chain: &str) -> Result<bool, NetlinkError> {
        let mut request = self.socket.request();
        let kind = u16::from_le_bytes([GETCHAIN, SUBSYS_NFTABLES]);
        let header = [family.number(), 0, 0, 0];
        request.message(subject("look for chain", chain), kind, 0, &header, |attributes| {
            attributes.text(NFTA_CHAIN_TABLE, TABLE);
            attributes.text(NFTA_CHAIN_NAME, chain);
        });
        match self.socket.execute(request) {
            Err(error) if error.is_absent() => Ok(false),
            found => found.map(|()| true),
        }
    }

    fn generation(&mut self) -> Result<u32, NetlinkError> {
        let mut request = self.socket.request();
        let kind = u16::from_le_bytes([GETGEN, SUBSYS_NFTABLES]);
        request.message(subject("ask for", "the generation of rules"), kind, 0, &[0; 4], |_| ());
        let mut generation = None;
        self.socket.exchange(request, |message| generation = parse_generation(message).or(generation))?;
        generation.ok_or_else(|| NetlinkError::NoAnswer {
            operation: "ask for",
            name: "the generation of rules".to_owned(),
        })
    }
}

/// The rules of the pod's chain, and those that lead there.
fn masquerade_rules(
    family: IpFamily,
    chain: &str,
    comment: &str,
    addresses: &[Cidr],
) -> (Vec<Rule>, Vec<Rule>) {
    let (mut rules, mut entries) = (Vec::new(), Vec::new());
    for address in addresses {
        let commented =
            || Conditions { matches: vec![Match::Comment(comment.to_owned())], ..Conditions::default() };
        let inside = Conditions { destination: Some(address.network()), ..commented() };
        let outside = Conditions { not_destination: Some(crate::nftables::multicast(family)), ..commented() };
        let from = Conditions { source: Cidr::new(address.address(), family.bits()), ..commented() };
        for rule in [
            Rule { conditions: inside, action: Action::Accept },
            Rule { conditions: outside, action: Action::Masquerade },
        ] {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        entries.push(Rule { conditions: from, action: Action::Jump(chain.to_owned()) });
    }
    (rules, entries)
}

/// One transaction on one family's table.
struct Transaction {
    request: Request,
    family: IpFamily,
    generation: u32,
}

impl Transaction {
    fn begin(mut request: Request, family: IpFamily, generation: u32) -> Self {
        let header = [0, 0, 0, SUBSYS_NFTABLES];
        request.message(subject("begin", "transaction"), NFNL_MSG_BATCH_BEGIN, 0, &header, |attributes| {
            attributes.be32(NFNL_BATCH_GENID, generation);
        });
        Transaction { request, family, generation }
    }

    fn commit(mut self, socket: &mut Socket) -> Result<(), NetlinkError> {
        let header = [0, 0, 0, SUBSYS_NFTABLES];
        let position = usize::try_from(self.request.len()).unwrap_or(usize::MAX).saturating_sub(1);
        self.request.message(subject("commit", "transaction"), NFNL_MSG_BATCH_END, 0, &header, |_| ());
        socket.exchange_acknowledged(self.request, position, |_| ())
    }

    fn message(
        &mut self,
        subject: Subject,
        kind: u8,
        flags: u16,
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let kind = u16::from_le_bytes([kind, SUBSYS_NFTABLES]);
        self.request.message(subject, kind, flags, &[self.family.number(), 0, 0, 0], attributes);
    }

    /// The table and its chains, as `iptables` makes them when it is first used.
    fn add_base(&mut self) {
        self.message(subject("add table", TABLE), NEWTABLE, flag::CREATE, |attributes| {
            attributes.text(NFTA_TABLE_NAME, TABLE);
        });
        for (name, hook, priority) in [
            (PREROUTING, HOOK_PREROUTING, PRIORITY_DSTNAT),
            ("INPUT", HOOK_INPUT, PRIORITY_SRCNAT),
            (OUTPUT, HOOK_OUTPUT, PRIORITY_DSTNAT),
            (POSTROUTING, HOOK_POSTROUTING, PRIORITY_SRCNAT),
        ] {
            self.message(subject("add chain", name), NEWCHAIN, flag::CREATE, |attributes| {
                attributes.text(NFTA_CHAIN_TABLE, TABLE);
                attributes.text(NFTA_CHAIN_NAME, name);
                attributes.text(NFTA_CHAIN_TYPE, "nat");
                attributes.nested(NFTA_CHAIN_HOOK, |attributes| {
                    attributes.be32(NFTA_HOOK_HOOKNUM, hook);
                    attributes.be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
                });
            });
        }
    }

    fn add_shared(&mut self, missing: Missing, mark: Option<u32>) {
        if let Some(bits) = mark {
            self.add_chain(SET_MARK, 0);
            if missing.set_mark {
                let comment = Match::Comment("CNI portfwd masquerade mark".to_owned());
                self.append(SET_MARK, &rule(vec![comment], Action::SetMark(bits)));
            }
            self.add_chain(MARKED, 0);
            if missing.marked {
                self.append(MARKED, &rule(vec![Match::Mark(bits)], Action::Masquerade));
            }
            if missing.from_postrouting {
                let comment = Match::Comment("CNI portfwd requiring masquerade".to_owned());
                // Before the chains of pods, which accept what stays in their network.
                self.add_rule(
                    POSTROUTING,
                    &rule(vec![comment], Action::Jump(MARKED.to_owned())),
                    flag::CREATE,
                );
            }
        }
        self.add_chain(HOST_PORTS, 0);
        for (chain, missing) in [(PREROUTING, missing.from_prerouting), (OUTPUT, missing.from_output)] {
            if missing {
                let to = Action::Jump(HOST_PORTS.to_owned());
                self.append(chain, &rule(vec![Match::LocalDestination], to));
            }
        }
    }

    fn add_chain(&mut self, name: &str, flags: u16) {
        self.message(subject("add chain", name), NEWCHAIN, flag::CREATE | flags, |attributes| {
            attributes.text(NFTA_CHAIN_TABLE, TABLE);
            attributes.text(NFTA_CHAIN_NAME, name);
        });
    }

    fn delete_chain(&mut self, name: &str) {
        self.message(subject("delete chain", name), DELCHAIN, 0, |attributes| {
            attributes.text(NFTA_CHAIN_TABLE, TABLE);
            attributes.text(NFTA_CHAIN_NAME, name);
        });
    }

    fn append(&mut self, chain: &str, rule: &Rule) {
        self.add_rule(chain, rule, flag::CREATE | flag::APPEND);
    }

    fn add_rule(&mut self, chain: &str, rule: &Rule, flags: u16) {
        let family = self.family;
        self.message(subject("add rule to chain", chain), NEWRULE, flags, |attributes| {
            attributes.text(NFTA_RULE_TABLE, TABLE);
            attributes.text(NFTA_RULE_CHAIN, chain);
            attributes.nested(NFTA_RULE_EXPRESSIONS, |list| rule.write(family, list));
            if let Some(protocol) = rule.conditions.protocol {
                attributes.nested(NFTA_RULE_COMPAT, |compat| {
                    compat.be32(NFTA_RULE_COMPAT_PROTO, u32::from(protocol.number()));
                    compat.be32(NFTA_RULE_COMPAT_FLAGS, 0);
                });
            }
        });
    }

    /// One rule, or all of the chain.
    fn delete_rule(&mut self, chain: &str, handle: Option<u64>) {
        self.message(subject("delete rule of chain", chain), DELRULE, 0, |attributes| {
            attributes.text(NFTA_RULE_TABLE, TABLE);
            attributes.text(NFTA_RULE_CHAIN, chain);
            if let Some(handle) = handle {
                attributes.bytes(NFTA_RULE_HANDLE, &handle.to_be_bytes());
            }
        });
    }
}

fn rule(matches: Vec<Match>, action: Action) -> Rule {
    Rule { conditions: Conditions { matches, ..Conditions::default() }, action }
}

fn parse_generation(message: Message<'_>) -> Option<u32> {
    if message.kind != u16::from_le_bytes([NEWGEN, SUBSYS_NFTABLES]) {
        return None;
    }
    let attribute =
        message::attributes(message.payload.get(4..)?).find(|attribute| attribute.kind == NFTA_GEN_ID)?;
    Some(u32::from_be_bytes(attribute.value.try_into().ok()?))
}

fn busy(chain: &str) -> NetlinkError {
    NetlinkError::Refused {
        operation: "change chain",
        name: chain.to_owned(),
        errno: Errno::RESTART,
        explanation: Some("other programs changed the rules at every attempt".to_owned()),
    }
}

fn subject(operation: &'static str, name: &str) -> Subject {
    Subject { operation, name: name.to_owned() }
}
