//! A real kubelet on pinnace: static pods, no API server.
//!
//! `KUBELET` says which one: the path of a kubelet, or a version that is built first (`1.37`, `1.36`; see `run`). Without it
//! nothing runs: a build takes minutes. All assertions share one kubelet; those that restart something come last, in turn.
//! `KUBELET_LOGS` names a directory that gets the logs of the kubelet and of pinnace.

#![allow(clippy::large_futures, reason = "a test awaits one future on a stack of its own")]
#![allow(clippy::unwrap_used, reason = "all of this is tests")]

mod containers;
mod ground;
mod harness;
mod isolation;
mod kubelet;
mod logs;
mod observe;
mod probes;
mod resources;
mod restart;
mod stopping;
mod streaming;
mod volumes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use pinnace_conformance::go::Program;
use pinnace_conformance::skip;

use ground::Ground;
use harness::{Asked, Assertion, Results, assertions};

/// Side by side.
const TOGETHER: &[Assertion] = assertions![
    probes::exec_probes_of_every_kind,
    probes::http_probes_of_every_kind,
    probes::tcp_probes_of_every_kind,
    probes::grpc_probes_of_every_kind,
    logs::logs_are_rotated_without_a_gap,
    containers::init_containers_run_in_order,
    containers::sidecars_start_first_and_end_last,
    containers::a_sidecar_that_ends_is_started_again,
    containers::restart_policies,
    containers::a_container_that_crashes_backs_off,
    containers::what_cannot_start_says_why,
    volumes::host_paths,
    volumes::empty_directories,
    volumes::downward_api,
    volumes::read_only_file_systems,
    volumes::sub_paths_and_propagation,
    volumes::image_volumes,
    isolation::a_shared_pid_namespace,
    isolation::a_private_pid_namespace,
    isolation::user_namespaces,
    isolation::users_groups_and_capabilities,
    isolation::host_network,
    isolation::host_ports,
    logs::logs_through_the_api,
    streaming::exec_through_the_api,
    streaming::run_through_the_api,
    streaming::attach_through_the_api,
    streaming::port_forward_through_the_api,
    stopping::a_stop_runs_the_hook_and_leaves_time,
    stopping::who_does_not_listen_is_killed_after_the_grace,
    stopping::hooks_after_the_start,
    stopping::termination_messages,
    resources::limits_are_in_the_cgroup,
    resources::resources_change_in_place,
    resources::an_edited_manifest_replaces_the_pod,
    resources::too_much_memory_is_told_as_such,
    observe::pods_as_they_are,
    observe::the_stats_summary,
    observe::resource_metrics,
    observe::container_metrics,
];

/// One after the other, behind all others.
const IN_TURN: &[Assertion] = assertions![
    restart::the_kubelet_starts_again,
    restart::unused_images_are_collected,
    restart::events_and_streamed_lists,
    restart::pinnace_is_killed_and_starts_again,
    restart::pods_start_though_pinnace_is_killed_over_and_over,
    restart::everything_ends_with_its_manifest,
];

fn main() -> ExitCode {
    let asked = Asked::read();
    if asked.listed(&[TOGETHER, IN_TURN]) {
        return ExitCode::SUCCESS;
    }
    let begun = Instant::now();
    let mut results = Results::default();
    let kubelet = match kubelet() {
        Ok(kubelet) => kubelet,
        Err(reason) => {
            skip("kubernetes", &reason);
            results.conclude(begun);
            return ExitCode::SUCCESS;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let good = runtime.expect("make a runtime").block_on(async {
        let Some(ground) = Ground::start(&kubelet.path) else { return results.conclude(begun) };
        let watch = tokio::spawn(Arc::clone(&ground).watch());
        results.together(&ground, &asked, TOGETHER).await;
        results.in_turn(&ground, &asked, IN_TURN).await;
        watch.abort();
        let _ = watch.await;
        keep_logs(&ground).await;
        results.conclude(begun)
    });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A kubelet, and what keeps it on disk.
struct Found {
    path: PathBuf,
    _built: Option<Program>,
}

fn kubelet() -> Result<Found, String> {
    let asked = std::env::var("KUBELET").unwrap_or_default();
    let (file, version) = match asked.as_str() {
        "" => return Err("KUBELET names no kubelet; conformance/kubernetes/run builds and runs two".into()),
        "1.37" => ("go.mod", "v1.37.2"),
        "1.36" => ("v1.36.mod", "v1.36.3"),
        path => {
            let path = std::fs::canonicalize(path).map_err(|error| format!("KUBELET {path}: {error}"))?;
            return Ok(Found { path, _built: None });
        }
    };
    let variable = "-X k8s.io/component-base/version";
    let minor = asked.trim_start_matches("1.");
    let flags =
        format!("-s -w {variable}.gitVersion={version} {variable}.gitMajor=1 {variable}.gitMinor={minor}");
    let arguments = ["-trimpath", "-modfile", file, "-ldflags", &flags];
    let built = Program::build_with("kubernetes", &arguments).ok_or("Go 1.21 or newer is not installed")?;
    Ok(Found { path: built.path().into(), _built: Some(built) })
}

async fn keep_logs(ground: &Ground) {
    let Some(dir) = std::env::var_os("KUBELET_LOGS").map(PathBuf::from) else { return };
    std::fs::create_dir_all(&dir).expect("make the directory for logs");
    let logs = [ground.kubelet.read().await.log(), ground.node.read().await.daemon.log.clone()];
    for log in logs {
        std::fs::copy(&log, dir.join(log.file_name().unwrap_or_default())).expect("keep a log");
    }
}
