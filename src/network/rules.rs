//! The table in the kernel and what it is made from: the policy and the host ports of all pods.
//!
//! Memory is the truth, the kernel is made to match: a small change first, the whole table if that fails (because
//! someone flushed it), an error if that fails too. A forward stays noted until the kernel has dropped it, so that
//! an address is never given to a new pod while a host port of the old one still leads there.

use crate::conntrack::Wrong;
use crate::error::{Warning, chain};
use crate::hostport::{Forward, HostPortError, HostPorts};
use crate::message::Message;
use crate::netlink::NetlinkError;
use crate::nftables::{Nftables, Policy, is_missing};

/// The rules of a network.
#[derive(Debug)]
pub struct Rules {
    nftables: Option<Nftables>,
    policy: Policy,
    ports: HostPorts,
    /// Whether anyone asked for the table yet: before recovery the one of the last start stays as it is.
    wanted: bool,
    made: bool,
    problem: Option<String>,
}

impl Rules {
    /// Prepares the rules; nothing is changed in the kernel yet.
    pub fn open(policy: Policy) -> Self {
        let mut rules = Rules {
            nftables: None,
            policy,
            ports: HostPorts::default(),
            wanted: false,
            made: false,
            problem: None,
        };
        if let Err(error) = rules.connect() {
            rules.problem = Some(describe(&error));
        }
        rules
    }

    /// Notes the ports of a sandbox if nobody else has them. The kernel is told by [`Rules::install`].
    pub fn claim(&mut self, sandbox: &str, forwards: Vec<Forward>) -> Result<(), HostPortError> {
        self.ports.check(sandbox, &forwards)?;
        self.ports.insert(sandbox, forwards);
        Ok(())
    }

    /// Makes the noted ports of a sandbox lead to it.
    pub fn install(&mut self, sandbox: &str) -> Result<(), NetlinkError> {
        let forwards = self.ports.of(sandbox).to_vec();
        if forwards.is_empty() {
            return Ok(());
        }
        if self.change(|nftables| nftables.add(sandbox, &forwards)).is_none() {
            self.replace()?;
        }
        self.forget(&forwards, Wrong::Unanswered);
        Ok(())
    }

    /// Takes the ports of a sandbox away; it is no error if it has none.
    pub fn release(&mut self, sandbox: &str) -> Result<(), NetlinkError> {
        let Some(forwards) = self.ports.remove(sandbox) else {
            return Ok(());
        };
        if !self.made {
            return Ok(());
        }
        if self.change(|nftables| nftables.remove(sandbox, &forwards)).is_none()
            && let Err(error) = self.replace()
        {
            self.ports.insert(sandbox, forwards);
            return Err(error);
        }
        self.forget(&forwards, Wrong::Forwarded);
        Ok(())
    }

    /// Forgets all ports and notes these instead, of sandboxes that run; then makes the table anew.
    pub fn reset(&mut self, ports: impl Iterator<Item = (String, Vec<Forward>)>) -> Result<(), NetlinkError> {
        self.ports = HostPorts::default();
        for (sandbox, forwards) in ports {
            self.ports.insert(&sandbox, forwards);
        }
        self.replace()
    }

    /// Changes the policy and makes the table anew.
    pub fn set_policy(&mut self, policy: Policy) -> Result<(), NetlinkError> {
        self.policy = policy;
        self.replace()
    }

    /// Makes the table what it has to be, whatever it is.
    pub fn replace(&mut self) -> Result<(), NetlinkError> {
        let result = self.try_replace();
        self.made = result.is_ok();
        let problem = result.as_ref().err().map(describe);
        if let Some(problem) = &problem
            && self.problem.as_ref() != Some(problem)
        {
            tracing::warn!(problem, "pods are not masqueraded and host ports do not work");
        }
        self.problem = problem;
        self.wanted = true;
        result
    }

    /// Whether a notification says that someone else took parts of the table away.
    pub fn is_damaged_by(&self, message: Message<'_>) -> bool {
        self.made && self.nftables.as_ref().is_some_and(|nftables| nftables.is_damaged_by(message))
    }

    /// The port of the socket that the rules are made by, if there is one.
    pub fn port(&self) -> Option<u32> {
        self.nftables.as_ref().map(Nftables::port)
    }

    /// Whether the table was made.
    pub fn made(&self) -> bool {
        self.made
    }

    /// Whether the table should be there and is not.
    pub fn missing(&self) -> bool {
        self.wanted && !self.made
    }

    /// Why pods are not masqueraded, if so.
    pub fn warning(&self) -> Option<Warning> {
        let problem = self.problem.as_ref()?;
        Some(Warning {
            reason: "PodRulesMissing",
            message: format!("pods are not masqueraded and host ports do not work: {problem}"),
        })
    }

    /// Tries a small change; none if it did not work.
    fn change(&mut self, change: impl FnOnce(&mut Nftables) -> Result<(), NetlinkError>) -> Option<()> {
        let nftables = self.nftables.as_mut().filter(|_| self.made)?;
        change(nftables).ok()
    }

    /// A kernel that cannot tell what it remembers lets it time out.
    fn forget(&mut self, forwards: &[Forward], why: Wrong) {
        if let Some(nftables) = &mut self.nftables
            && let Err(error) = nftables.forget(forwards, why)
            && !is_missing(&error)
        {
            tracing::warn!(error = chain(&error), "connections of a host port not forgotten");
        }
    }

    fn try_replace(&mut self) -> Result<(), NetlinkError> {
        self.connect()?;
        match &mut self.nftables {
            Some(nftables) => nftables.replace(&self.policy, self.ports.iter()),
            None => Ok(()),
        }
    }

    fn connect(&mut self) -> Result<(), NetlinkError> {
        if self.nftables.is_none() {
            self.nftables = Some(Nftables::open()?);
        }
        Ok(())
    }
}

fn describe(error: &NetlinkError) -> String {
    let text = chain(error);
    if is_missing(error) { format!("the kernel lacks parts of nf_tables: {text}") } else { text }
}
