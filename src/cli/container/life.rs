//! `start`, `stop`, `restart`, `kill`, `pause`, `unpause`, `wait`, `rm`.

use std::io::{self, Write as _};

use anyhow::bail;
use clap::Args;
use pinnace_admin_api::v1;

use super::Several;
use super::run;
use super::session::{self, DETACH_KEYS, Join, Outcome};
use crate::client::{Client, Target};
use crate::exit::{self, Exit};

/// Flags of verbs that only have containers.
#[derive(Debug, Args)]
pub struct Named {
    #[command(flatten)]
    several: Several,
}

/// Flags of `start`.
#[derive(Debug, Args)]
pub struct Start {
    /// Join its output, and end with its exit code
    #[arg(short, long)]
    attach: bool,
    /// Join its input
    #[arg(short, long)]
    interactive: bool,
    /// Keys that leave it running
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    #[command(flatten)]
    several: Several,
}

impl Start {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        if !self.attach && !self.interactive {
            return self
                .several
                .each(async |client, container| {
                    client.containers.start(v1::ContainerSelector { container }).await.map(drop)
                })
                .await;
        }
        let [container] = self.several.containers.as_slice() else {
            bail!("only one container can be started with its streams (-a, -i)");
        };
        let mut client = Client::connect(&self.several.target.socket).await?;
        let (join, runs) = run::join(&mut client, container, true, self.interactive).await?;
        if runs {
            // It is started already.
            writeln!(io::stdout(), "{container}")?;
            return Ok(());
        }
        let signals_to = Some(container.clone());
        let join = Join { detach_keys: self.detach_keys, signals_to, ..join };
        match session::run(&mut client, false, join).await? {
            Outcome::Exited(code) => exit::with(code),
            Outcome::Detached => Ok(()),
        }
    }
}

/// Flags of `stop`.
#[derive(Debug, Args)]
pub struct Stop {
    /// Seconds between signal and SIGKILL; negative waits for ever
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// In place of its stop signal
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    #[command(flatten)]
    several: Several,
}

impl Stop {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let (timeout_s, signal) = (self.time, self.signal.unwrap_or_default());
        self.several
            .each(async |client, container| {
                let request = v1::StopRequest { container, timeout_s, signal: signal.clone() };
                client.containers.stop(request).await.map(drop)
            })
            .await
    }
}

/// Flags of `restart`.
#[derive(Debug, Args)]
pub struct Restart {
    /// Seconds between signal and SIGKILL; negative waits for ever
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// In place of its stop signal
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
    #[command(flatten)]
    several: Several,
}

impl Restart {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let (timeout_s, signal) = (self.time, self.signal.unwrap_or_default());
        self.several
            .each(async |client, container| {
                let request = v1::StopRequest { container, timeout_s, signal: signal.clone() };
                client.containers.restart(request).await.map(drop)
            })
            .await
    }
}

/// Flags of `kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// The signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
    #[command(flatten)]
    several: Several,
}

impl Kill {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let signal = self.signal;
        self.several
            .each(async |client, container| {
                let request = v1::KillRequest { container, signal: signal.clone() };
                client.containers.kill(request).await.map(drop)
            })
            .await
    }
}

/// Freezes them.
pub async fn pause(named: Named) -> anyhow::Result<()> {
    named
        .several
        .each(async |client, container| {
            client.containers.pause(v1::ContainerSelector { container }).await.map(drop)
        })
        .await
}

/// Lets them go on.
pub async fn unpause(named: Named) -> anyhow::Result<()> {
    named
        .several
        .each(async |client, container| {
            client.containers.unpause(v1::ContainerSelector { container }).await.map(drop)
        })
        .await
}

/// Flags of `wait`.
#[derive(Debug, Args)]
pub struct Wait {
    /// not-running, next-exit or removed
    #[arg(long, value_name = "CONDITION", default_value = "not-running")]
    condition: String,
    /// Containers: ids, beginnings of ids, names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    #[command(flatten)]
    target: Target,
}

impl Wait {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let mut failed = false;
        for container in self.containers {
            let request = v1::WaitRequest { container, condition: self.condition.clone() };
            match client.containers.wait(request).await {
                Ok(answer) => writeln!(io::stdout(), "{}", answer.into_inner().exit_code)?,
                Err(status) => {
                    writeln!(io::stderr(), "pinnace: {}", status.message())?;
                    failed = true;
                }
            }
        }
        if failed { Err(Exit::silent(1)) } else { Ok(()) }
    }
}

/// Flags of `rm`.
#[derive(Debug, Args)]
pub struct Rm {
    /// Also if it runs; one that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// With the volumes that were made for it alone
    #[arg(short, long)]
    volumes: bool,
    #[command(flatten)]
    several: Several,
}

impl Rm {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let (force, volumes) = (self.force, self.volumes);
        self.several
            .each(async |client, container| {
                let request = v1::RemoveContainerRequest { container, force, volumes };
                match client.containers.remove(request).await {
                    Err(status) if force && status.code() == tonic::Code::NotFound => Ok(()),
                    removed => removed.map(drop),
                }
            })
            .await
    }
}
