//! `run`, `create`, `exec`, `attach`: with streams, or without.

use std::io::{self, Write as _};

use anyhow::{Context as _, bail};
use clap::Args;
use pinnace_admin_api::v1;
use pinnace_admin_api::v1::session_input::Input;

use super::session::{self, DETACH_KEYS, Join, Outcome};
use super::settings::Settings;
use crate::client::{Client, Target};
use crate::exit::{self, DAEMON, Exit};
use crate::pull;

/// Flags of `create`.
#[derive(Debug, Args)]
pub struct Create {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    target: Target,
}

/// Flags of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Do not wait for it; print its id
    #[arg(short, long, help_heading = "General")]
    detach: bool,
    /// Join only these streams: stdin, stdout, stderr
    #[arg(short, long, value_name = "STREAM", help_heading = "General")]
    attach: Vec<String>,
    /// Keys that leave it running
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, help_heading = "General")]
    detach_keys: String,
    /// Pass signals on to it
    #[arg(
        long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true", action = clap::ArgAction::Set, help_heading = "General"
    )]
    sig_proxy: bool,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    target: Target,
}

/// Any failure before the container's own code is docker's 125, unless the daemon says otherwise.
fn of_daemon(error: anyhow::Error) -> anyhow::Error {
    if error.is::<Exit>() {
        return error;
    }
    Exit { code: DAEMON, message: format!("{error:#}") }.into()
}

impl Create {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let request = self.settings.request()?;
        let mut client = Client::connect(&self.target.socket).await?;
        let created = create(&mut client, &self.settings, request).await?;
        writeln!(io::stdout(), "{}", created.id)?;
        Ok(())
    }
}

/// Makes a container, pulls its image before if it is to.
async fn create(
    client: &mut Client,
    settings: &Settings,
    request: v1::CreateContainerRequest,
) -> anyhow::Result<v1::CreateContainerResponse> {
    if let Some(file) = settings.cidfile.as_ref().filter(|file| file.exists()) {
        bail!("--cidfile: {} is there already; remove it, or name another", file.display());
    }
    let image = settings.image();
    match settings.pull.as_str() {
        "always" => drop(pull::fetch(client, image, settings.quiet).await?),
        "missing" => {
            if !is_here(client, image).await? {
                if !settings.quiet {
                    writeln!(io::stderr(), "Unable to find image '{image}' locally")?;
                }
                pull::fetch(client, image, settings.quiet).await?;
            }
        }
        "never" => {}
        other => bail!("--pull {other:?} is not known; known are missing, always and never"),
    }
    let created = client.containers.create(request).await.map_err(|status| Exit::refused(&status, DAEMON))?;
    let created = created.into_inner();
    for warning in &created.warnings {
        writeln!(io::stderr(), "WARNING: {warning}")?;
    }
    if let Some(file) = &settings.cidfile {
        std::fs::write(file, &created.id).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(created)
}

async fn is_here(client: &mut Client, image: &str) -> anyhow::Result<bool> {
    use pinnace_cri_api::v1::{ImageSpec, ImageStatusRequest};
    let spec = ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = ImageStatusRequest { image: Some(spec), verbose: false };
    let status =
        client.images.image_status(request).await.map_err(|status| Exit::refused(&status, DAEMON))?;
    Ok(status.into_inner().image.is_some())
}

impl Run {
    /// Does it; every failure is docker's 125 unless it is the container's own.
    pub async fn run(self) -> anyhow::Result<()> {
        self.run_it().await.map_err(of_daemon)
    }

    async fn run_it(self) -> anyhow::Result<()> {
        let settings = &self.settings;
        let mut request = settings.request()?;
        if self.detach && !self.attach.is_empty() {
            bail!("-d and -a exclude each other");
        }
        if !self.detach {
            session::check_terminal(settings.interactive, settings.tty)?;
        }
        let mut client = Client::connect(&self.target.socket).await?;
        if let Some(settings) = &mut request.settings {
            settings.stdin_once = settings.stdin && !self.detach;
        }
        let created = create(&mut client, settings, request).await?;
        let container = created.id;
        if self.detach {
            let selector = v1::ContainerSelector { container: container.clone() };
            client.containers.start(selector).await.map_err(|status| Exit::refused(&status, DAEMON))?;
            writeln!(io::stdout(), "{container}")?;
            return Ok(());
        }
        let wants = |stream: &str| {
            self.attach.is_empty() || self.attach.iter().any(|wanted| wanted.eq_ignore_ascii_case(stream))
        };
        let stdin = settings.interactive && (self.attach.is_empty() || wants("stdin"));
        let join = Join {
            first: Input::Attach(v1::AttachStart {
                container: container.clone(),
                stdin,
                stdout: wants("stdout"),
                stderr: wants("stderr"),
                start: true,
                size: settings.tty.then(session::size).flatten(),
            }),
            stdin,
            terminal: settings.tty,
            detach_keys: self.detach_keys.clone(),
            signals_to: self.sig_proxy.then_some(container),
            failure: DAEMON,
        };
        match session::run(&mut client, false, join).await? {
            Outcome::Exited(code) => exit::with(code),
            Outcome::Detached => Ok(()),
        }
    }
}

/// Flags of `attach`.
#[derive(Debug, Args)]
pub struct Attach {
    /// Keys that leave it running
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Do not join its standard input
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on to it
    #[arg(
        long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true", action = clap::ArgAction::Set
    )]
    sig_proxy: bool,
    /// The container: id, beginning of it, or name
    container: String,
    #[command(flatten)]
    target: Target,
}

impl Attach {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut client = Client::connect(&self.target.socket).await?;
        let (join, _) = join(&mut client, &self.container, false, !self.no_stdin).await?;
        let join = Join {
            detach_keys: self.detach_keys,
            signals_to: self.sig_proxy.then_some(self.container),
            failure: 1,
            ..join
        };
        match session::run(&mut client, false, join).await? {
            Outcome::Exited(code) => exit::with(code),
            Outcome::Detached => Ok(()),
        }
    }
}

/// How a container that was made before is joined: as it was made.
pub async fn join(
    client: &mut Client,
    container: &str,
    start: bool,
    stdin: bool,
) -> anyhow::Result<(Join, bool)> {
    let request = v1::InspectContainerRequest { container: container.to_owned(), size: false };
    let inspected = client.containers.inspect(request).await.map_err(|status| Exit::refused(&status, 1))?;
    let value: serde_json::Value = serde_json::from_str(&inspected.into_inner().json)?;
    let is = |field: &str| value.pointer(field).and_then(serde_json::Value::as_bool).unwrap_or(false);
    let terminal = is("/Config/Tty");
    let stdin = stdin && is("/Config/OpenStdin");
    if stdin {
        session::check_terminal(true, terminal)?;
    }
    let join = Join {
        first: Input::Attach(v1::AttachStart {
            container: container.to_owned(),
            stdin,
            stdout: true,
            stderr: true,
            start,
            size: terminal.then(session::size).flatten(),
        }),
        stdin,
        terminal,
        detach_keys: DETACH_KEYS.to_owned(),
        signals_to: None,
        failure: 1,
    };
    Ok((join, is("/State/Running")))
}

/// Flags of `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Do not wait for it
    #[arg(short, long)]
    detach: bool,
    /// Keys that leave it
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Set a variable; without value it is that of this environment
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// Set the variables of a file, one a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Name or id of the user, and of a group
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Every capability, and no seccomp filter
    #[arg(long)]
    privileged: bool,
    #[command(flatten)]
    target: Target,
    /// The container, and the command
    #[arg(required = true, trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    container_and_command: Vec<String>,
}

impl Exec {
    /// Does it.
    pub async fn run(self) -> anyhow::Result<()> {
        let Some((container, args)) =
            self.container_and_command.split_first().filter(|(_, it)| !it.is_empty())
        else {
            bail!("say what to run in the container");
        };
        if !self.detach {
            session::check_terminal(self.interactive, self.tty)?;
        }
        let mut client = Client::connect(&self.target.socket).await?;
        let join = Join {
            first: Input::Exec(v1::ExecStart {
                container: container.clone(),
                args: args.to_vec(),
                env: super::settings::environment(&self.env_file, &self.env)?,
                user: self.user.clone().unwrap_or_default(),
                working_dir: self.workdir.clone().unwrap_or_default(),
                terminal: self.tty,
                stdin: self.interactive,
                privileged: self.privileged,
                detach: self.detach,
                size: self.tty.then(session::size).flatten(),
            }),
            stdin: self.interactive && !self.detach,
            terminal: self.tty && !self.detach,
            detach_keys: self.detach_keys.clone(),
            signals_to: None,
            failure: 1,
        };
        match session::run(&mut client, true, join).await? {
            Outcome::Exited(code) => exit::with(code),
            Outcome::Detached => Ok(()),
        }
    }
}
