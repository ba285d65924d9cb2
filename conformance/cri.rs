//! The CRI as the kubelet speaks it: a client on the unix socket, and configurations with what a kubelet fills in.
//!
//! Tests change the generated messages directly; [`PodConfig`] and [`ContainerConfigParts`] give access to the
//! nested ones without spelling out every `Option`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pinnace_cri_api::MESSAGE_BYTES_MAX;
use pinnace_cri_api::v1::image_service_client::ImageServiceClient;
use pinnace_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use pinnace_cri_api::v1::*;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::process::patient;

/// How long the kubelet waits for an answer by default.
const DEADLINE: Duration = Duration::from_secs(120);

/// Both services of one runtime, on one connection.
#[derive(Clone, Debug)]
pub struct Cri {
    channel: Channel,
}

/// Result of one call.
pub type Answer<T> = Result<T, Status>;

impl Cri {
    /// A client for a socket; connects at the first call.
    pub fn new(socket: &Path) -> Cri {
        let socket = PathBuf::from(socket);
        // Only the authority of the address is used: every client of a unix socket sends "localhost".
        let channel = Endpoint::from_static("http://localhost")
            .timeout(patient(DEADLINE))
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let socket = socket.clone();
                async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
            }));
        Cri { channel }
    }

    /// The runtime service as generated.
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        // Two streams of 16 MiB fit into an answer of ExecSync, which is more than the kubelet would take.
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(3 * MESSAGE_BYTES_MAX)
    }

    /// The image service as generated.
    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// RunPodSandbox with the default handler.
    pub async fn run_pod(&self, config: &PodSandboxConfig) -> Answer<String> {
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(self.runtime().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&self, id: &str) -> Answer<()> {
        self.runtime().stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.into() }).await.map(drop)
    }

    /// RemovePodSandbox.
    pub async fn remove_pod(&self, id: &str) -> Answer<()> {
        self.runtime()
            .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.into() })
            .await
            .map(drop)
    }

    /// PodSandboxStatus.
    pub async fn pod_status(&self, id: &str) -> Answer<PodSandboxStatus> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = self.runtime().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::data_loss("an answer without status"))
    }

    /// ListPodSandbox without a filter.
    pub async fn pods(&self) -> Answer<Vec<PodSandbox>> {
        let answer = self.runtime().list_pod_sandbox(ListPodSandboxRequest { filter: None }).await?;
        Ok(answer.into_inner().items)
    }

    /// CreateContainer.
    pub async fn create(&self, pod: &str, of: &PodSandboxConfig, config: &ContainerConfig) -> Answer<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(of.clone()),
        };
        Ok(self.runtime().create_container(request).await?.into_inner().container_id)
    }

    /// StartContainer.
    pub async fn start(&self, id: &str) -> Answer<()> {
        self.runtime().start_container(StartContainerRequest { container_id: id.into() }).await.map(drop)
    }

    /// StopContainer.
    pub async fn stop(&self, id: &str, timeout: i64) -> Answer<()> {
        self.runtime()
            .stop_container(StopContainerRequest { container_id: id.into(), timeout })
            .await
            .map(drop)
    }

    /// RemoveContainer.
    pub async fn remove(&self, id: &str) -> Answer<()> {
        self.runtime().remove_container(RemoveContainerRequest { container_id: id.into() }).await.map(drop)
    }

    /// ContainerStatus.
    pub async fn status(&self, id: &str) -> Answer<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.runtime().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::data_loss("an answer without status"))
    }

    /// ListContainers without a filter.
    pub async fn containers(&self) -> Answer<Vec<Container>> {
        let answer = self.runtime().list_containers(ListContainersRequest { filter: None }).await?;
        Ok(answer.into_inner().containers)
    }

    /// ExecSync; `timeout` in seconds, 0 for none.
    pub async fn exec(&self, id: &str, cmd: &[&str], timeout: i64) -> Answer<ExecSyncResponse> {
        let cmd = cmd.iter().map(ToString::to_string).collect();
        let request = ExecSyncRequest { container_id: id.into(), cmd, timeout };
        Ok(self.runtime().exec_sync(request).await?.into_inner())
    }

    /// Exec; the URL.
    pub async fn exec_url(&self, request: ExecRequest) -> Answer<String> {
        Ok(self.runtime().exec(request).await?.into_inner().url)
    }

    /// Attach; the URL.
    pub async fn attach_url(&self, request: AttachRequest) -> Answer<String> {
        Ok(self.runtime().attach(request).await?.into_inner().url)
    }

    /// PortForward; the URL.
    pub async fn port_forward_url(&self, pod: &str, ports: &[u16]) -> Answer<String> {
        let port = ports.iter().map(|port| i32::from(*port)).collect();
        let request = PortForwardRequest { pod_sandbox_id: pod.into(), port };
        Ok(self.runtime().port_forward(request).await?.into_inner().url)
    }

    /// Runs a shell script in a container and returns what it printed; it must succeed.
    pub async fn sh(&self, id: &str, script: &str) -> String {
        let done = self.exec(id, &["sh", "-euc", script], 60).await.expect("ExecSync");
        let (stdout, stderr) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert_eq!(done.exit_code, 0, "{script}\n{stdout}{stderr}");
        stdout.into_owned()
    }

    /// PullImage without credentials.
    pub async fn pull(&self, reference: &str) -> Answer<String> {
        self.pull_as(reference, None).await
    }

    /// PullImage.
    pub async fn pull_as(&self, reference: &str, auth: Option<AuthConfig>) -> Answer<String> {
        let request = PullImageRequest { image: Some(image_spec(reference)), auth, sandbox_config: None };
        Ok(self.images().pull_image(request).await?.into_inner().image_ref)
    }

    /// ImageStatus: nothing for an absent image.
    pub async fn image(&self, reference: &str) -> Answer<Option<Image>> {
        let request = ImageStatusRequest { image: Some(image_spec(reference)), verbose: false };
        Ok(self.images().image_status(request).await?.into_inner().image)
    }

    /// ListImages without a filter.
    pub async fn list_images(&self) -> Answer<Vec<Image>> {
        Ok(self.images().list_images(ListImagesRequest { filter: None }).await?.into_inner().images)
    }

    /// RemoveImage.
    pub async fn remove_image(&self, reference: &str) -> Answer<()> {
        let request = RemoveImageRequest { image: Some(image_spec(reference)) };
        self.images().remove_image(request).await.map(drop)
    }

    /// Waits until a container has exited.
    pub async fn exited(&self, id: &str) -> ContainerStatus {
        self.in_state(id, ContainerState::ContainerExited).await
    }

    /// Waits until a container is in a state.
    pub async fn in_state(&self, id: &str, state: ContainerState) -> ContainerStatus {
        let end = tokio::time::Instant::now() + patient(Duration::from_secs(30));
        loop {
            let status = self.status(id).await.expect("ContainerStatus");
            if status.state() == state {
                return status;
            }
            assert!(tokio::time::Instant::now() < end, "container is not {state:?}: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// An image by reference or id.
pub fn image_spec(reference: &str) -> ImageSpec {
    ImageSpec { image: reference.into(), user_specified_image: reference.into(), ..ImageSpec::default() }
}

/// The code and text of a call that must have failed.
#[track_caller]
pub fn failure<T: std::fmt::Debug>(answer: Answer<T>) -> (Code, String) {
    let status = answer.expect_err("the call must fail");
    (status.code(), status.message().into())
}

/// A pod as the kubelet asks for it, with its logs below `logs`.
pub fn pod_config(name: &str, logs: &Path) -> PodSandboxConfig {
    let uid = format!("uid-{name}");
    let namespace = "default";
    let labels = [
        ("io.kubernetes.pod.name", name),
        ("io.kubernetes.pod.namespace", namespace),
        ("io.kubernetes.pod.uid", &uid),
    ];
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: uid.clone(),
            namespace: namespace.into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: logs.join(format!("{namespace}_{name}_{uid}")).display().to_string(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into(), "cluster.local".into()],
            options: vec!["ndots:5".into()],
        }),
        labels: labels.map(|(key, value)| (key.into(), value.into())).into(),
        annotations: [("kubernetes.io/config.source".into(), "api".into())].into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: format!("/kubepods/besteffort/pod{uid}"),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                seccomp: Some(runtime_default()),
                ..LinuxSandboxSecurityContext::default()
            }),
            overhead: Some(LinuxContainerResources::default()),
            resources: Some(LinuxContainerResources::default()),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// A container as the kubelet asks for it: a best-effort one of the image's own user.
pub fn container_config(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    let env = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(image_spec(image)),
        command: command.iter().map(ToString::to_string).collect(),
        envs: vec![env("KUBERNETES_SERVICE_HOST", "10.96.0.1"), env("KUBERNETES_SERVICE_PORT", "443")],
        labels: [("io.kubernetes.container.name".into(), name.into())].into(),
        annotations: [("io.kubernetes.container.restartCount".into(), "0".into())].into(),
        log_path: format!("{name}/0.log"),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_shares: 2,
                oom_score_adj: 1000,
                ..LinuxContainerResources::default()
            }),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                masked_paths: strings(&MASKED_PATHS),
                readonly_paths: strings(&READONLY_PATHS),
                seccomp: Some(runtime_default()),
                ..LinuxContainerSecurityContext::default()
            }),
        }),
        ..ContainerConfig::default()
    }
}

/// Paths the kubelet has hidden by default.
pub const MASKED_PATHS: [&str; 10] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
];

/// Paths the kubelet has made read-only by default.
pub const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

fn namespaces() -> NamespaceOption {
    NamespaceOption { pid: NamespaceMode::Container.into(), ..NamespaceOption::default() }
}

fn runtime_default() -> SecurityProfile {
    SecurityProfile {
        profile_type: security_profile::ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    }
}

/// Access to what is nested in a pod's configuration.
pub trait PodConfig {
    /// `linux`
    fn linux(&mut self) -> &mut LinuxPodSandboxConfig;
    /// `linux.security_context`
    fn security(&mut self) -> &mut LinuxSandboxSecurityContext;
    /// `linux.security_context.namespace_options`
    fn namespaces(&mut self) -> &mut NamespaceOption;
    /// Puts the pod on the host's network.
    fn on_host_network(&mut self);
}

impl PodConfig for PodSandboxConfig {
    fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.linux.get_or_insert_default()
    }

    fn security(&mut self) -> &mut LinuxSandboxSecurityContext {
        self.linux().security_context.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }

    fn on_host_network(&mut self) {
        self.namespaces().network = NamespaceMode::Node.into();
        self.hostname.clear();
    }
}

/// Access to what is nested in a container's configuration.
pub trait ContainerConfigParts {
    /// `linux.security_context`
    fn security(&mut self) -> &mut LinuxContainerSecurityContext;
    /// `linux.security_context.namespace_options`
    fn namespaces(&mut self) -> &mut NamespaceOption;
    /// `linux.security_context.capabilities`
    fn capabilities(&mut self) -> &mut Capability;
    /// `linux.resources`
    fn resources(&mut self) -> &mut LinuxContainerResources;
    /// Adds a bind mount and returns it.
    fn mount(&mut self, host: &Path, container: &str) -> &mut Mount;
    /// Adds a variable.
    fn env(&mut self, key: &str, value: &str);
}

impl ContainerConfigParts for ContainerConfig {
    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    fn namespaces(&mut self) -> &mut NamespaceOption {
        self.security().namespace_options.get_or_insert_default()
    }

    fn capabilities(&mut self) -> &mut Capability {
        self.security().capabilities.get_or_insert_default()
    }

    fn resources(&mut self) -> &mut LinuxContainerResources {
        self.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    fn mount(&mut self, host: &Path, container: &str) -> &mut Mount {
        self.mounts.push(Mount {
            host_path: host.display().to_string(),
            container_path: container.into(),
            ..Mount::default()
        });
        self.mounts.last_mut().expect("one was just added")
    }

    fn env(&mut self, key: &str, value: &str) {
        self.envs.push(KeyValue { key: key.into(), value: value.into() });
    }
}
