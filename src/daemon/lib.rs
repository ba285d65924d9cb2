//! pinnace serve: the CRI server.

pub mod config;
pub mod logging;
pub mod socket;
pub mod state_lock;

use anyhow::Context as _;

use config::Config;

/// Serves the CRI until a signal ends it.
pub fn serve(config: Config) -> anyhow::Result<()> {
    logging::init(&config.daemon.log_level, config.daemon.log_format)?;
    let _lock = state_lock::StateLock::acquire(&config.daemon.root, &config.daemon.run)?;
    let path = config.socket();
    let _listener = socket::listen(&path)?;
    tracing::info!(socket = %path.display(), "serving");
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("tell the service manager")?;
    Ok(())
}
