//! The daemon's life: open what it works on, recover, serve, drain.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pinnace_admin_api::v1::builds_server::BuildsServer;
use pinnace_admin_api::v1::containers_server::ContainersServer;
use pinnace_admin_api::v1::images_server::ImagesServer;
use pinnace_admin_api::v1::system_server::SystemServer;
use pinnace_admin_api::v1::volumes_server::VolumesServer;
use pinnace_cgroup::{Driver, Hierarchy, Systemd};
use pinnace_cri_api::v1::image_service_server::ImageServiceServer;
use pinnace_cri_api::v1::runtime_service_server::RuntimeServiceServer;
use pinnace_pull::Puller;
use pinnace_push::Pusher;
use pinnace_registry::Client;
use pinnace_spec::Facts;
use pinnace_store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use crate::config::{self, Config};
use crate::container::exec;
use crate::cri::Services;
use crate::network::PodNetworks;
use crate::node::{Node, Parts};
use crate::streaming::Streaming;
use crate::{admin, apparmor, build, clock, logging, owner_map, record, recover, socket, state_lock};

/// Largest message of a call, as the kubelet has it; tonic's default of 4 MiB would cut large lists.
const MESSAGE_BYTES: usize = 16 << 20;

/// How long clients may take to close their connections once every call was answered.
const CONNECTION_GRACE: Duration = Duration::from_millis(100);

/// How often what is kept for nobody is let go of.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// Less CPU time than this in between is no work that anybody waits for: a few lists and probes of a kubelet.
const IDLE_CPU: Duration = Duration::from_millis(300);

/// Serves the CRI until a signal ends it. Containers run on.
pub fn serve(config: Config) -> anyhow::Result<()> {
    logging::init(&config.daemon.log_level, config.daemon.log_format)?;
    let _lock = state_lock::StateLock::acquire(&config.daemon.root, &config.daemon.run)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let path = config.socket();
    let grace = config.daemon.drain_timeout;
    // Bound before recovery: a client that comes early waits in the backlog instead of being refused.
    let socket::Listening { listener, bound } = socket::listen(&path)?;
    listener.set_nonblocking(true).context("make the socket asynchronous")?;
    let listener = tokio::net::UnixListener::from_std(listener).context("register the socket")?;
    let mut parts = tokio::task::spawn_blocking(move || open(config)).await??;
    if parts.facts.apparmor {
        parts.apparmor = apparmor::load().await;
    }
    let node = Node::new(parts);
    recover::recover(&node).await.context("recover")?;
    node.blocking(build::recover).await.context("recover builds")?;

    let streaming = Arc::new(Streaming::bind(&node).await.context("serve streams")?);
    let services = Services::new(Arc::clone(&node), Arc::clone(&streaming));
    let containers = admin::containers::Containers::new(Arc::clone(&node));
    let server = tonic::transport::Server::builder()
        .add_service(
            RuntimeServiceServer::new(services.clone())
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES * 4),
        )
        .add_service(
            ImageServiceServer::new(services)
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(
            ImagesServer::new(admin::Services::new(Arc::clone(&node)))
                .max_decoding_message_size(MESSAGE_BYTES)
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(
            BuildsServer::new(admin::Services::new(Arc::clone(&node)))
                .max_decoding_message_size(MESSAGE_BYTES),
        )
        .add_service(
            SystemServer::new(admin::Services::new(Arc::clone(&node)))
                .max_encoding_message_size(MESSAGE_BYTES),
        )
        .add_service(ContainersServer::new(containers.clone()))
        .add_service(VolumesServer::new(containers));
    let stop = node.closing.clone();
    let accepting = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
        stop.cancelled().await;
    });
    let serving = tokio::spawn(accepting);
    tracing::info!(socket = %path.display(), "serving");
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("tell the service manager")?;

    release_idle(&node);
    wait_for_signal().await?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("draining; containers run on");
    node.tasks.close();
    let ending = async {
        tokio::join!(streaming.shutdown(), node.tasks.wait());
    };
    let drained = tokio::select! {
        drained = tokio::time::timeout(grace, ending) => drained.is_ok(),
        second = wait_for_signal() => { second?; false }
    };
    if !drained {
        tracing::warn!("operations under way were cut short; the next start completes or undoes them");
    }
    node.closing.cancel();
    let _ = tokio::time::timeout(CONNECTION_GRACE, serving).await;
    if let Some(path) = bound
        && let Err(error) = std::fs::remove_file(&path)
    {
        tracing::warn!(socket = %path.display(), %error, "the socket stays");
    }
    let close = tokio::task::spawn_blocking(move || {
        // What is left of a node without pods is nothing: the layers' mounts go too.
        if node.sandboxes.all().is_empty() && node.containers.all().is_empty() {
            node.store.release_pins()?;
        }
        drop(node);
        anyhow::Ok(())
    });
    close.await?
}

fn open(config: Config) -> anyhow::Result<Parts> {
    let root = &config.daemon.root;
    let run = &config.daemon.run;
    let mut options = pinnace_store::Options::new(root.join("store"), run.join("store"));
    options.form = match config.image.layer_form {
        config::LayerForm::Auto => None,
        config::LayerForm::TarErofs => Some(pinnace_store::LayerForm::TarErofs),
        config::LayerForm::Directory => Some(pinnace_store::LayerForm::Directory),
    };
    options.writable_limit = config.container.writable_layer_limit;
    let store = Store::open(options).map_err(|error| match error {
        error @ pinnace_store::Error::NoQuota { .. } => {
            anyhow::Error::new(error).context("container.writable_layer_limit")
        }
        error => anyhow::Error::new(error).context("open the store"),
    })?;
    let recovered = store.recovered();
    for layer in &recovered.removed_layers {
        tracing::warn!(%layer, "layer was not whole and is gone");
    }
    for image in &recovered.removed_images {
        tracing::warn!(image = %image.id, "image lost a layer and is gone; pull it again");
    }
    tracing::info!(form = ?store.form(), why = store.form_reason(), quota = store.quota(), "layer form");
    let network = PodNetworks::open(&config)?;
    let hierarchy = Hierarchy::detect().context("find cgroups")?;
    let systemd = systemd(&config, &hierarchy)?;
    let facts = Facts::detect().context("find out what this kernel can do")?;
    let monitor_program =
        pinnace_launcher::client::seal(pinnace_monitor_image::BYTES).context("seal the monitor's program")?;
    let user_namespaces = match owner_map::probe(monitor_program.as_fd(), root) {
        Ok(()) => true,
        Err(error) => {
            tracing::info!(why = error.chain(), "no user namespaces for pods");
            false
        }
    };
    let kernel = pinnace_seccomp::KernelVersion::running().context("read the kernel version")?;
    let registry = Client::new(registry_options(&config)).context("set up the registry client")?;
    let registry = Arc::new(registry);
    let spool = root.join("spool");
    record::make_directory(&spool)?;
    Ok(Parts {
        pusher: Pusher::new(store.clone(), Arc::clone(&registry), spool),
        puller: Puller::new(store.clone(), Arc::clone(&registry), pull_options(&config)?),
        registry,
        network,
        store,
        hierarchy,
        systemd,
        facts,
        apparmor: apparmor::DefaultProfile::Disabled,
        kernel,
        monitor_program,
        user_namespaces,
        config,
    })
}

/// systemd, if it is the one that makes cgroups.
fn systemd(config: &Config, hierarchy: &Hierarchy) -> anyhow::Result<Option<Systemd>> {
    let possible = hierarchy.driver() == Driver::Systemd;
    if config.container.cgroup_driver == config::CgroupDriver::Systemd && !possible {
        anyhow::bail!(
            "container.cgroup_driver is \"systemd\", which needs systemd as process 1, the system bus, and unified \
             cgroups (v2); here they are {:?}",
            hierarchy.mode()
        );
    }
    let wanted = possible && config.container.cgroup_driver != config::CgroupDriver::Cgroupfs;
    tracing::info!(driver = if wanted { "systemd" } else { "cgroupfs" }, mode = ?hierarchy.mode(), "cgroups");
    Ok(wanted.then(Systemd::new))
}

fn registry_options(config: &Config) -> pinnace_registry::Options {
    pinnace_registry::Options {
        hosts_dirs: config.image.registry_config_dirs.clone(),
        registries_files: config.image.registries_files.clone(),
        auth_files: config.image.registry_auth_files.clone(),
        insecure: config.image.insecure_registries.clone(),
        stall_timeout: config.image.stall_timeout,
        ..Default::default()
    }
}

fn pull_options(config: &Config) -> anyhow::Result<pinnace_pull::Options> {
    Ok(pinnace_pull::Options {
        layers_at_once: usize::try_from(config.image.max_parallel_downloads)?,
        memory_bytes: usize::try_from(config.image.pull_memory)?,
        partial_dir: Some(config.daemon.root.join("pull")),
        ..Default::default()
    })
}

/// Lets go of what is kept for nobody, now and then, until the node closes: layer mounts without a container, heap that
/// many pods at once have left behind, and, after the start and where next to nothing was done since, pages of code that
/// happened to be needed.
fn release_idle(node: &Arc<Node>) {
    let node = Arc::downgrade(node);
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(IDLE_INTERVAL);
        let mut worked = None;
        loop {
            interval.tick().await;
            let now = clock::process_cpu();
            let idle = worked.replace(now).is_none_or(|before| now.saturating_sub(before) < IDLE_CPU);
            let Some(node) = node.upgrade() else { return };
            if node.closing.is_cancelled() {
                return;
            }
            let released = node.blocking(move |node| {
                node.store.release_idle()?;
                node.containers.all().iter().for_each(|container| exec::sweep(container));
                pinnace_sys::process::trim_heap();
                if idle && let Err(error) = pinnace_sys::process::release_text() {
                    tracing::debug!(%error, "release pages of code");
                }
                Ok(())
            });
            if let Err(error) = released.await {
                tracing::warn!(error = error.chain(), "release idle layers");
            }
        }
    });
}

async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
