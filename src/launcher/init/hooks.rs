//! Hooks in the container's namespaces; those of the runtime's are the business of whoever asked for the launch.

use crate::failure::{At, Failure};
use crate::hook;
use crate::plan::Hooks;
use crate::procfs::Procfs;

/// Before the root changes, in a copy of the host's mounts.
pub(super) fn create_container(hooks: &Hooks, procfs: &Procfs) -> Result<(), Failure> {
    if hooks.create_container.is_empty() {
        return Ok(());
    }
    let state = state(hooks, procfs)?;
    hooks.create_container.iter().try_for_each(|hook| hook::run("createContainer", hook, &state))
}

/// Inside, as the user.
pub(super) fn start_container(hooks: &Hooks, state: &[u8]) -> Result<(), Failure> {
    hooks.start_container.iter().try_for_each(|hook| hook::run("startContainer", hook, state))
}

/// The state with the number that this process has for the runtime.
pub(super) fn state(hooks: &Hooks, procfs: &Procfs) -> Result<Vec<u8>, Failure> {
    let number = procfs.number().at("hook", "readlinkat", "self")?;
    Ok([&hooks.state_head, number.as_bytes(), &hooks.state_tail].concat())
}
