//! Hooks: those in the runtime's namespaces are run here, those in the container's become part of the plan.
//!
//! | hook | when | where | a failure |
//! |---|---|---|---|
//! | prestart, createRuntime | namespaces, root and mounts are there; the root has not changed | here | ends the creation |
//! | createContainer | after those | init, before the root changes | ends the creation |
//! | startContainer | at the start | init, inside | ends the container |
//! | poststart | the program runs | here | is told and ignored |
//! | poststop | the container is gone | here | is told and ignored |

use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, bail};
use oci_spec::runtime::{Hook, Hooks};
use pinnace_launcher::{hook, plan};

use crate::state::{Record, Status, state_json};

/// In the form that both sides run them in.
#[derive(Debug, Default)]
pub(crate) struct Lowered {
    pub prestart: Vec<plan::Hook>,
    pub create_runtime: Vec<plan::Hook>,
    pub create_container: Vec<plan::Hook>,
    pub start_container: Vec<plan::Hook>,
    pub poststart: Vec<plan::Hook>,
    pub poststop: Vec<plan::Hook>,
}

impl Lowered {
    /// Checks them all, before anything exists.
    #[allow(deprecated, reason = "prestart is, and is still used")]
    pub fn of(hooks: Option<&Hooks>) -> anyhow::Result<Self> {
        let Some(hooks) = hooks else { return Ok(Self::default()) };
        Ok(Self {
            prestart: lower("prestart", hooks.prestart())?,
            create_runtime: lower("createRuntime", hooks.create_runtime())?,
            create_container: lower("createContainer", hooks.create_container())?,
            start_container: lower("startContainer", hooks.start_container())?,
            poststart: lower("poststart", hooks.poststart())?,
            poststop: lower("poststop", hooks.poststop())?,
        })
    }

    /// Whether some run before the root changes.
    pub fn before_root(&self) -> bool {
        [&self.prestart, &self.create_runtime, &self.create_container].iter().any(|list| !list.is_empty())
    }

    /// What init runs.
    pub fn plan(
        &self,
        record: &Record,
        stage: Option<plan::HookStage>,
    ) -> anyhow::Result<Option<plan::Hooks>> {
        if stage.is_none() && self.start_container.is_empty() {
            return Ok(None);
        }
        // Init alone knows its number: the state is cut where it stands.
        const NUMBER: i32 = i32::MAX;
        let state = state_json(record, Status::Created, NUMBER).to_string();
        let mark = format!("\"pid\":{NUMBER}");
        let (head, tail) = state.split_once(&mark).context("the state has no pid")?;
        Ok(Some(plan::Hooks {
            stage,
            create_container: self.create_container.clone(),
            start_container: self.start_container.clone(),
            state_head: format!("{head}\"pid\":").into_bytes(),
            state_tail: tail.as_bytes().to_vec(),
        }))
    }

    /// Those before the root changes, in the runtime's namespaces.
    pub fn run_creating(&self, record: &Record) -> anyhow::Result<()> {
        let state = state(record, Status::Created);
        run("prestart", &self.prestart, &state)?;
        run("createRuntime", &self.create_runtime, &state)
    }
}

/// Runs them in order until one fails.
pub(crate) fn run(kind: &str, hooks: &[plan::Hook], state: &[u8]) -> anyhow::Result<()> {
    hooks.iter().try_for_each(|hook| Ok(hook::run(kind, hook, state)?))
}

/// Runs them all; the failures.
pub(crate) fn run_all(kind: &str, hooks: &[plan::Hook], state: &[u8]) -> Vec<anyhow::Error> {
    hooks.iter().filter_map(|hook| hook::run(kind, hook, state).err()).map(Into::into).collect()
}

/// What a hook finds on its stdin.
pub(crate) fn state(record: &Record, status: Status) -> Vec<u8> {
    let pid = record.process.filter(|_| status != Status::Stopped).map_or(0, |process| process.pid);
    state_json(record, status, pid).to_string().into_bytes()
}

fn lower(kind: &str, hooks: &Option<Vec<Hook>>) -> anyhow::Result<Vec<plan::Hook>> {
    hooks.iter().flatten().map(|hook| one(hook).with_context(|| format!("hooks.{kind}"))).collect()
}

fn one(hook: &Hook) -> anyhow::Result<plan::Hook> {
    let path = hook.path();
    if !path.is_absolute() {
        bail!("path {} is not absolute", path.display());
    }
    let timeout = match hook.timeout() {
        None => 0,
        Some(seconds) => {
            u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).context("timeout must be above 0")?
        }
    };
    let bytes =
        |list: &Option<Vec<String>>| list.iter().flatten().map(|text| text.clone().into_bytes()).collect();
    Ok(plan::Hook {
        path: path.as_os_str().as_bytes().to_vec(),
        args: bytes(hook.args()),
        env: bytes(hook.env()),
        timeout_ms: timeout.saturating_mul(1000),
    })
}
