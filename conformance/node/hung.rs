//! A file system that does not answer: who waits in it cannot be killed, and nobody else may wait with it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pinnace_conformance::cri::{ContainerConfigParts as _, failure};
use pinnace_conformance::node::Node;
use pinnace_conformance::process::poll;
use pinnace_conformance::skip;
use pinnace_cri_api::v1::*;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use tonic::Code;

/// What a call about anything else may take.
const PROMPT: Duration = Duration::from_secs(10);

/// Numbers of include/uapi/linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

/// A FUSE file system of one directory; whoever looks a name up in it waits until it is dropped.
struct Hung {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    /// Somebody waits.
    asked: Arc<AtomicBool>,
    /// Not even the root is told about any more.
    dumb: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Hung {
    /// Mounts it in the node's world; `None`, and the test is skipped, where there is no FUSE.
    fn mount(node: &Node, test: &str) -> Option<Hung> {
        let device = match File::options().read(true).write(true).open("/dev/fuse") {
            Ok(device) => device,
            Err(error) => {
                skip(test, &format!("/dev/fuse: {error}"));
                return None;
            }
        };
        let path = node.world.dir().join("hung");
        std::fs::create_dir(&path).unwrap();
        let mut mount = node.world.command("mount");
        mount.args([
            "-i",
            "-t",
            "fuse",
            "-o",
            "fd=0,rootmode=40000,user_id=0,group_id=0,allow_other",
            "hung",
        ]);
        mount.arg(&path).stdin(OwnedFd::from(device.try_clone().unwrap()));
        let output = mount.output().unwrap();
        if !output.status.success() {
            skip(test, &format!("mount -t fuse: {}", String::from_utf8_lossy(&output.stderr)));
            return None;
        }
        rustix::fs::fcntl_setfl(&device, OFlags::NONBLOCK).unwrap();
        let [stop, asked, dumb] = [(); 3].map(|()| Arc::new(AtomicBool::new(false)));
        let flags = [&stop, &asked, &dumb].map(Arc::clone);
        let thread = std::thread::spawn(move || serve(device, &flags));
        Some(Hung { path, stop, asked, dumb, thread: Some(thread) })
    }

    fn is_asked(&self) -> bool {
        self.asked.swap(false, Ordering::SeqCst)
    }

    /// Everybody who waits gets an error.
    fn release(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.release();
    }
}

fn serve(mut device: File, [stop, asked, dumb]: &[Arc<AtomicBool>; 3]) {
    let mut buffer = vec![0; 1 << 20];
    let number = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    while !stop.load(Ordering::SeqCst) {
        let mut ready = [PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)];
        let tick = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        rustix::event::poll(&mut ready, Some(&tick)).unwrap();
        let Ok(length) = device.read(&mut buffer) else { continue };
        let request = &buffer[..length];
        let (opcode, unique) = (number(request, 4), &request[8..16]);
        let (error, body) = match opcode {
            INIT => {
                let mut body = [7_u32, 31, 0, 0].map(u32::to_ne_bytes).concat();
                body.resize(64, 0);
                // max_write
                body[20..24].copy_from_slice(&4096_u32.to_ne_bytes());
                (0, body)
            }
            GETATTR if !dumb.load(Ordering::SeqCst) => {
                let mut body = vec![0; 104];
                body[16..24].copy_from_slice(&1_u64.to_ne_bytes());
                // mode, links
                body[76..80].copy_from_slice(&0o40755_u32.to_ne_bytes());
                body[80..84].copy_from_slice(&2_u32.to_ne_bytes());
                (0, body)
            }
            LOOKUP | GETATTR => {
                asked.store(true, Ordering::SeqCst);
                continue;
            }
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            _ => (-38_i32, Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).unwrap();
        let answer = [&length.to_ne_bytes()[..], &error.to_ne_bytes(), unique, &body].concat();
        let _ = device.write(&answer);
    }
}

/// Everything that is not about the pod that hangs is answered at once.
async fn others_do_not_wait(node: &Node, name: &str, hung: Option<(&str, &str)>) {
    let begun = Instant::now();
    node.cri.pods().await.unwrap();
    node.cri.runtime().list_containers(ListContainersRequest::default()).await.unwrap();
    node.cri.runtime().list_container_stats(ListContainerStatsRequest::default()).await.unwrap();
    node.cri.runtime().list_pod_sandbox_stats(ListPodSandboxStatsRequest::default()).await.unwrap();
    node.cri.runtime().status(StatusRequest { verbose: true }).await.unwrap();
    if let Some((pod, container)) = hung {
        node.cri.pod_status(pod).await.unwrap();
        assert_eq!(node.cri.status(container).await.unwrap().state(), ContainerState::ContainerRunning);
    }
    let other = node.run_script(name, "echo fine").await;
    assert_eq!(node.cri.exited(&other.container).await.exit_code, 0);
    node.remove(&other.pod).await;
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
}

fn start() -> Option<Node> {
    Node::start_changed(|config| config + "[container]\nkill_timeout = \"1s\"\n")
}

#[tokio::test]
async fn process_that_cannot_be_killed_is_named_and_holds_up_nobody_else() {
    let Some(node) = start() else { return };
    let before = node.baseline().await;
    let test = "process_that_cannot_be_killed_is_named_and_holds_up_nobody_else";
    let Some(mut hung) = Hung::mount(&node, test) else { return };
    let image = node.images.image_id("busybox");
    let pod = node.run_pod("waits", |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["cat", "/hung/file"]);
    config.mount(&hung.path, "/hung");
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    assert!(
        poll(PROMPT, || hung.is_asked().then_some(())).is_some(),
        "nobody has looked into the file system"
    );

    for answer in [node.cri.stop(&running.container, 0).await, node.cri.stop_pod(&pod.id).await] {
        let (code, text) = failure(answer);
        assert_eq!(code, Code::DeadlineExceeded, "{text}");
        for part in ["(cat)", "state D", &running.container] {
            assert!(text.contains(part), "{part} is not named in {text}");
        }
    }
    others_do_not_wait(&node, "other", Some((&pod.id, &running.container))).await;
    assert_eq!(failure(node.cri.remove(&running.container).await).0, Code::DeadlineExceeded);

    hung.release();
    assert_eq!(node.cri.exited(&running.container).await.exit_code, 137);
    node.remove(&pod.id).await;
    node.world.sh(&format!("umount -l {}", hung.path.display()));
    std::fs::remove_dir(&hung.path).unwrap();
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn mount_source_that_does_not_answer_holds_up_its_container_alone() {
    let Some(node) = start() else { return };
    let before = node.baseline().await;
    let test = "mount_source_that_does_not_answer_holds_up_its_container_alone";
    let Some(mut hung) = Hung::mount(&node, test) else { return };
    hung.dumb.store(true, Ordering::SeqCst);
    let image = node.images.image_id("busybox");
    let pod = node.run_pod("source", |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["true"]);
    config.mount(&hung.path, "/hung");
    let creating = tokio::spawn({
        let (cri, id, of) = (node.cri.clone(), pod.id.clone(), pod.config.clone());
        async move { cri.create(&id, &of, &config).await }
    });
    let end = Instant::now() + PROMPT;
    while !hung.is_asked() {
        assert!(Instant::now() < end, "nobody has looked at the mount's source");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    others_do_not_wait(&node, "other", None).await;
    assert!(!creating.is_finished());
    // The same pod, too: another of its containers is no business of the one that hangs.
    assert_eq!(node.script(&pod, "echo beside", |_| {}).await, "beside\n");
    hung.release();
    let (_, text) = failure(creating.await.unwrap());
    assert!(text.contains(&hung.path.display().to_string()), "{text}");
    node.remove(&pod.id).await;
    node.world.sh(&format!("umount -l {}", hung.path.display()));
    std::fs::remove_dir(&hung.path).unwrap();
    node.assert_nothing_left(&before);
}
