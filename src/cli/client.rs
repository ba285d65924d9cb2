//! The connection to a daemon.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;
use hyper_util::rt::TokioIo;
use pinnace_admin_api::v1::builds_client::BuildsClient;
use pinnace_admin_api::v1::containers_client::ContainersClient;
use pinnace_admin_api::v1::images_client::ImagesClient;
use pinnace_admin_api::v1::system_client::SystemClient;
use pinnace_admin_api::v1::volumes_client::VolumesClient;
use pinnace_cri_api::MESSAGE_BYTES_MAX;
use pinnace_cri_api::v1::image_service_client::ImageServiceClient;
use pinnace_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Which daemon is meant.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Unix socket of the daemon
    #[arg(long, value_name = "PATH", env = "PINNACE_SOCKET", default_value = "/run/pinnace/pinnace.sock")]
    pub socket: PathBuf,
}

/// All services over one connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// Sandboxes and containers.
    pub runtime: RuntimeServiceClient<Channel>,
    /// Images.
    pub images: ImageServiceClient<Channel>,
    /// What the CRI has no words for.
    pub admin_images: ImagesClient<Channel>,
    /// Builds.
    pub admin_builds: BuildsClient<Channel>,
    /// The node as a whole.
    pub admin_system: SystemClient<Channel>,
    /// Containers of the command line.
    pub containers: ContainersClient<Channel>,
    /// Volumes.
    pub volumes: VolumesClient<Channel>,
}

impl Client {
    /// Dials `socket`.
    pub async fn connect(socket: &Path) -> anyhow::Result<Client> {
        // A first connection by hand: its error is exact, while a channel's says "transport error".
        UnixStream::connect(socket).await.map_err(|error| explain(socket, error))?;
        let path = socket.to_owned();
        let dial = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(dial)
            .await
            .with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Client {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            admin_builds: BuildsClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            admin_system: SystemClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            admin_images: ImagesClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            containers: ContainersClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            volumes: VolumesClient::new(channel),
        })
    }
}

/// What a failed connection means for the person who wanted it.
fn explain(socket: &Path, error: io::Error) -> anyhow::Error {
    let path = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "no socket at {path}: start the daemon (pinnace serve), or say where it listens (--socket or PINNACE_SOCKET)"
        ),
        io::ErrorKind::ConnectionRefused => {
            anyhow!(
                "nobody listens at {path}: the daemon that made it is gone, start it again (pinnace serve)"
            )
        }
        io::ErrorKind::PermissionDenied => anyhow!("{path} is root's alone: run this as root (sudo)"),
        _ => anyhow::Error::new(error).context(format!("connect to {path}")),
    }
}

/// The text of a refusal, without the wrapping that tonic puts around it.
pub fn refusal(what: &str) -> impl FnOnce(tonic::Status) -> anyhow::Error {
    move |status| anyhow!("{what}: {} ({:?})", status.message(), status.code())
}
