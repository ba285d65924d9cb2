//! The process of an exec: a file in the words of the spec, or the container's own with what flags change.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use oci_spec::runtime::{Capability, Process, Spec, User};
use pinnace_spec::capabilities;

use crate::state::read_json;

#[derive(Debug, Args)]
pub(crate) struct ProcessArguments {
    /// File with the process in JSON, instead of the flags below and a command
    #[arg(long, short, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Variable of the environment, KEY=value
    #[arg(long, short, value_name = "KEY=value")]
    env: Vec<String>,
    /// Give it a terminal
    #[arg(long, short)]
    tty: bool,
    /// UID[:GID]
    #[arg(long, short, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Further groups
    #[arg(long, short = 'g', value_name = "GID")]
    additional_gids: Vec<u32>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// No privileges by execve
    #[arg(long)]
    no_new_privs: bool,
    /// Capability to add to all sets but the ambient
    #[arg(long, short, value_name = "CAP")]
    cap: Vec<String>,
    /// Container id
    pub id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl ProcessArguments {
    /// The process that is asked for.
    pub fn process(&self, spec: &Spec) -> anyhow::Result<Process> {
        if let Some(path) = &self.process {
            if !self.command.is_empty() {
                bail!("--process: the file has the command, but another one is given");
            }
            let mut process: Process = read_json(path)?;
            if self.tty {
                process.set_terminal(Some(true));
            }
            return Ok(process);
        }
        if self.command.is_empty() {
            bail!("no command is given, and no --process");
        }
        let mut process = spec.process().clone().context("the container's config.json has no process")?;
        process.set_args(Some(self.command.clone())).set_terminal(Some(self.tty)).set_console_size(None);
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(self.env.iter().cloned());
        process.set_env(Some(env));
        if let Some(user) = &self.user {
            process.set_user(parse_user(user)?);
        }
        if !self.additional_gids.is_empty() {
            let mut user = process.user().clone();
            user.set_additional_gids(Some(self.additional_gids.clone()));
            process.set_user(user);
        }
        if let Some(label) = &self.process_label {
            process.set_selinux_label(Some(label.clone()));
        }
        if let Some(profile) = &self.apparmor {
            process.set_apparmor_profile(Some(profile.clone()));
        }
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        let added = self.cap.iter().map(|name| capability(name)).collect::<anyhow::Result<Vec<_>>>()?;
        if !added.is_empty() {
            let mut sets = process.capabilities().clone().unwrap_or_default();
            let grown = |set: &Option<std::collections::HashSet<Capability>>| {
                let mut set = set.clone().unwrap_or_default();
                set.extend(added.iter().copied());
                Some(set)
            };
            let (bounding, effective) = (grown(sets.bounding()), grown(sets.effective()));
            let (permitted, inheritable) = (grown(sets.permitted()), sets.inheritable().clone());
            sets.set_bounding(bounding).set_effective(effective);
            sets.set_permitted(permitted).set_inheritable(inheritable);
            process.set_capabilities(Some(sets));
        }
        Ok(process)
    }
}

fn capability(name: &str) -> anyhow::Result<Capability> {
    capabilities::parse(name).with_context(|| format!("--cap {name}: no such capability"))
}

/// Numbers only: the container's files are not ours to ask.
fn parse_user(text: &str) -> anyhow::Result<User> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let number = |part: &str| {
        part.parse::<u32>().with_context(|| format!("--user {text}: must be UID[:GID], in numbers"))
    };
    let mut user = User::default();
    user.set_uid(number(uid)?).set_gid(number(gid)?);
    Ok(user)
}
