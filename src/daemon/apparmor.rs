//! The AppArmor profile of ordinary containers (rule R18).
//!
//! The kernel takes compiled policy only, and the compiler is `apparmor_parser` of the package that a node with AppArmor
//! has. The daemon runs it once, when it starts; containers that ran before get the new text with it. Where the kernel
//! has AppArmor and the profile cannot be loaded, a container that asks for `RuntimeDefault` is refused.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// Name of the profile in the kernel.
pub const PROFILE: &str = "pinnace-default";

/// What `PROFILE` says.
const TEXT: &str = include_str!("apparmor.profile");

/// Where the compiler is; never looked up in anybody's `PATH` (rule R7).
const PARSERS: [&str; 3] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser", "/usr/bin/apparmor_parser"];

/// How long compiling may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Whether there is a default profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultProfile {
    /// The kernel runs without AppArmor.
    Disabled,
    /// `PROFILE` can be used.
    Loaded,
    /// The kernel has AppArmor, the profile is not there.
    Missing {
        /// Why.
        reason: String,
    },
}

/// Loads the profile into the kernel.
pub async fn load() -> DefaultProfile {
    match tokio::time::timeout(LIMIT, compile()).await {
        Ok(Ok(())) => {
            tracing::info!(profile = PROFILE, "AppArmor profile loaded");
            DefaultProfile::Loaded
        }
        Ok(Err(reason)) => missing(reason),
        Err(_) => missing(format!("apparmor_parser did not end within {LIMIT:?}")),
    }
}

fn missing(reason: String) -> DefaultProfile {
    tracing::warn!(
        profile = PROFILE,
        reason,
        "AppArmor profile not loaded: containers that ask for RuntimeDefault are refused"
    );
    DefaultProfile::Missing { reason }
}

async fn compile() -> Result<(), String> {
    let parser = PARSERS.into_iter().find(|path| Path::new(path).exists());
    let parser = parser.ok_or("apparmor_parser is not installed")?;
    let failed = |error: std::io::Error| format!("{parser}: {error}");
    let mut child = Command::new(parser)
        .args(["--replace", "--skip-cache"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A parser that ends early says why on its standard error.
        let _ = stdin.write_all(TEXT.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{parser}: {}: {}", output.status, said.trim().replace('\n', "; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_called_what_it_is_asked_for() {
        assert!(TEXT.contains(&format!("profile {PROFILE} ")));
        assert!(TEXT.contains(&format!("peer={PROFILE}")));
    }
}
