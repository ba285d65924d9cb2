//! `pinnace serve`: from the command line to a checked configuration to the daemon.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use pinnace_daemon::config::{self, Config, Overrides};

/// The flags of `serve`. All else is in the configuration file.
#[derive(Args)]
pub struct Arguments {
    /// Configuration file [default: /etc/pinnace/config.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of images and containers, instead of `daemon.root`
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory of what a reboot ends, instead of `daemon.run`
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Unix socket to serve on, instead of `daemon.socket`
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// What to log, instead of `daemon.log_level`
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Check the configuration, say OK or what is wrong, and exit
    #[arg(long)]
    check_config: bool,
    /// Print every key of the configuration with its default and meaning, and exit
    #[arg(long)]
    config_reference: bool,
}

impl Arguments {
    /// Runs the daemon until it is told to stop, or does what was asked instead.
    pub fn run(self) -> anyhow::Result<()> {
        let Arguments { config, root, run, socket, log_level, check_config, config_reference } = self;
        if config_reference {
            return Ok(std::io::stdout().write_all(config::reference().as_bytes())?);
        }
        let config = Config::load(config.as_deref(), &Overrides { root, run, socket, log_level })?;
        if check_config {
            return Ok(writeln!(std::io::stdout(), "OK")?);
        }
        pinnace_daemon::serve(config)
    }
}
