//! `version` and `info`: what the daemon says of itself.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use pinnace_cri_api::v1::{
    CgroupDriver, FilesystemUsage, ImageFsInfoRequest, RuntimeConfigRequest, StatusRequest, StatusResponse,
    VersionRequest, VersionResponse,
};

use crate::client::{Client, Target, refusal};

/// Prints both versions; that of this program even when there is no daemon.
pub async fn version(target: &Target) -> anyhow::Result<()> {
    writeln!(io::stdout(), "client   pinnace {}", env!("CARGO_PKG_VERSION"))?;
    let mut client = Client::connect(&target.socket).await?;
    let version = client.runtime.version(VersionRequest::default()).await.map_err(refusal("version"))?;
    let VersionResponse { runtime_name, runtime_version, runtime_api_version, .. } = version.into_inner();
    writeln!(io::stdout(), "daemon   {runtime_name} {runtime_version}, CRI {runtime_api_version}")?;
    Ok(())
}

/// Prints conditions, handlers, features, image store and the verbose part of the status.
pub async fn info(target: &Target) -> anyhow::Result<()> {
    let mut client = Client::connect(&target.socket).await?;
    let version = client.runtime.version(VersionRequest::default()).await.map_err(refusal("version"))?;
    let status =
        client.runtime.status(StatusRequest { verbose: true }).await.map_err(refusal("status"))?.into_inner();
    let config = match client.runtime.runtime_config(RuntimeConfigRequest {}).await {
        Ok(config) => config.into_inner(),
        // Older runtimes do not have it.
        Err(status) if status.code() == tonic::Code::Unimplemented => Default::default(),
        Err(status) => return Err(refusal("runtime config")(status)),
    };
    let stores = client.images.image_fs_info(ImageFsInfoRequest {}).await.map_err(refusal("image store"))?;

    let mut text = String::new();
    let VersionResponse { runtime_name, runtime_version, runtime_api_version, .. } = version.into_inner();
    row(&mut text, "daemon", &format!("{runtime_name} {runtime_version}, CRI {runtime_api_version}"));
    row(&mut text, "socket", &target.socket.display().to_string());
    if let Some(linux) = config.linux {
        let driver = match linux.cgroup_driver() {
            CgroupDriver::Systemd => "systemd",
            CgroupDriver::Cgroupfs => "cgroupfs",
        };
        row(&mut text, "cgroup driver", driver);
    }
    for store in stores.into_inner().image_filesystems {
        row(&mut text, "image store", &usage(&store));
    }
    describe(&mut text, &status);
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn describe(text: &mut String, status: &StatusResponse) {
    for condition in status.status.iter().flat_map(|status| &status.conditions) {
        let why = match (condition.reason.as_str(), condition.message.as_str()) {
            ("", "") => String::new(),
            (reason, message) => format!(" ({reason}: {message})"),
        };
        row(text, &condition.r#type, &format!("{}{why}", if condition.status { "yes" } else { "no" }));
    }
    for handler in &status.runtime_handlers {
        let name = if handler.name.is_empty() { "(default)" } else { &handler.name };
        let mut features = Vec::new();
        if let Some(known) = &handler.features {
            features.extend(known.recursive_read_only_mounts.then_some("recursive read-only mounts"));
            features.extend(known.user_namespaces.then_some("user namespaces"));
        }
        let features = if features.is_empty() { "no optional feature".into() } else { features.join(", ") };
        row(text, "handler", &format!("{name}: {features}"));
    }
    let mut keys: Vec<_> = status.info.iter().collect();
    keys.sort();
    for (key, value) in keys {
        // Values are JSON by convention; anything else is shown as it is.
        let value = serde_json::from_str::<serde_json::Value>(value)
            .and_then(|json| serde_json::to_string_pretty(&json))
            .unwrap_or_else(|_| value.clone());
        let _ = writeln!(text, "{key}: {value}");
    }
}

fn usage(store: &FilesystemUsage) -> String {
    let place = store.fs_id.as_ref().map_or("?", |id| &id.mountpoint);
    let bytes = store.used_bytes.as_ref().map_or(0, |used| used.value);
    let inodes = store.inodes_used.as_ref().map_or(0, |used| used.value);
    format!("{place}: {} MiB in {inodes} files", bytes >> 20)
}

fn row(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<14} {value}");
}
