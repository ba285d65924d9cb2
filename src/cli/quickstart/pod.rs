//! The walk through the CRI: what a kubelet does with a pod, once.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use pinnace_cri_api::v1::{
    Capability, ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListImagesRequest, ListPodSandboxRequest, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxStatusRequest, PullImageRequest, RemoveImageRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, SecurityProfile, StartContainerRequest,
    StopPodSandboxRequest, security_profile::ProfileType,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::inside;
use super::node::Node;
use crate::client::{Client, refusal};

const LOG: &str = "page.log";
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod that runs, with its one container.
#[derive(Debug)]
pub struct Pod {
    /// The pod's address on the bridge.
    pub address: IpAddr,
    container: String,
}

/// Pulls `reference` and returns the image's id.
pub async fn pull(client: &mut Client, reference: &str) -> anyhow::Result<String> {
    let request = PullImageRequest { image: Some(spec(reference)), ..PullImageRequest::default() };
    Ok(client.images.pull_image(request).await.map_err(refusal("PullImage"))?.into_inner().image_ref)
}

/// Runs a sandbox and a container in it.
pub async fn start(client: &mut Client, node: &Node, image: &str, reference: &str) -> anyhow::Result<Pod> {
    let config = sandbox(node);
    let request = RunPodSandboxRequest { config: Some(config.clone()), ..RunPodSandboxRequest::default() };
    let sandbox = client
        .runtime
        .run_pod_sandbox(request)
        .await
        .map_err(refusal("RunPodSandbox"))?
        .into_inner()
        .pod_sandbox_id;
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(container(image, reference)),
        sandbox_config: Some(config),
    };
    let container = client
        .runtime
        .create_container(request)
        .await
        .map_err(refusal("CreateContainer"))?
        .into_inner()
        .container_id;
    let request = StartContainerRequest { container_id: container.clone() };
    client.runtime.start_container(request).await.map_err(refusal("StartContainer"))?;

    let request = PodSandboxStatusRequest { pod_sandbox_id: sandbox, verbose: false };
    let status =
        client.runtime.pod_sandbox_status(request).await.map_err(refusal("PodSandboxStatus"))?.into_inner();
    let network = status.status.and_then(|status| status.network).context("the pod has no network")?;
    let address = network.ip.parse().with_context(|| format!("address of the pod: {:?}", network.ip))?;
    Ok(Pod { address, container })
}

impl Pod {
    /// Fetches the page; the program may need a moment to listen.
    pub async fn fetch(&self) -> anyhow::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut stream = loop {
            let dial = tokio::time::timeout(PATIENCE, TcpStream::connect((self.address, inside::PORT)));
            match dial.await.context("connect to the pod")? {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > deadline => return Err(error).context("connect to the pod"),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        let request = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
            .await
            .context("read the page")??;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
            _ => bail!("not the page: {answer:?}"),
        }
    }

    /// What the container printed, once it has told of the request.
    pub async fn log(&self, node: &Node) -> anyhow::Result<String> {
        let path = node.logs().join(LOG);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = tokio::fs::read_to_string(&path).await.with_context(|| path.display().to_string())?;
            if log.contains("GET / ") {
                return Ok(log);
            }
            if Instant::now() > deadline {
                bail!("{} does not tell of the request: {log:?}", path.display());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Runs a second program in the container.
    pub async fn exec(&self, client: &mut Client) -> anyhow::Result<String> {
        let cmd = ["pinnace", "quickstart-inside", "look"].map(str::to_owned).to_vec();
        let request = ExecSyncRequest { container_id: self.container.clone(), cmd, timeout: 10 };
        let answer = client.runtime.exec_sync(request).await.map_err(refusal("ExecSync"))?.into_inner();
        if answer.exit_code != 0 {
            bail!("it exited with {}: {}", answer.exit_code, String::from_utf8_lossy(&answer.stderr));
        }
        Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
    }
}

/// Stops and removes every pod and every image that the daemon at `socket` has.
pub async fn remove_all(socket: &Path) -> anyhow::Result<()> {
    let mut client = Client::connect(socket).await?;
    let pods = client.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await;
    for pod in pods.map_err(refusal("ListPodSandbox"))?.into_inner().items {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        client.runtime.stop_pod_sandbox(request).await.map_err(refusal("StopPodSandbox"))?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.id };
        client.runtime.remove_pod_sandbox(request).await.map_err(refusal("RemovePodSandbox"))?;
    }
    let images = client.images.list_images(ListImagesRequest::default()).await;
    for image in images.map_err(refusal("ListImages"))?.into_inner().images {
        let request = RemoveImageRequest { image: Some(spec(&image.id)) };
        client.images.remove_image(request).await.map_err(refusal("RemoveImage"))?;
    }
    Ok(())
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..ImageSpec::default() }
}

fn sandbox(node: &Node) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "quickstart".into(),
            namespace: "default".into(),
            uid: "quickstart".into(),
            attempt: 0,
        }),
        hostname: "quickstart".into(),
        log_directory: node.logs().display().to_string(),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(own_processes()),
                seccomp: Some(runtime_default()),
                ..LinuxSandboxSecurityContext::default()
            }),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// As tight as pods get: no capability, nothing to write, the default filter.
fn container(image: &str, reference: &str) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: "page".into(), attempt: 0 }),
        image: Some(ImageSpec { user_specified_image: reference.to_owned(), ..spec(image) }),
        log_path: LOG.into(),
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                capabilities: Some(Capability {
                    drop_capabilities: vec!["ALL".into()],
                    ..Capability::default()
                }),
                namespace_options: Some(own_processes()),
                readonly_rootfs: true,
                no_new_privs: true,
                seccomp: Some(runtime_default()),
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        }),
        ..ContainerConfig::default()
    }
}

fn own_processes() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}

fn runtime_default() -> SecurityProfile {
    SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..SecurityProfile::default() }
}
