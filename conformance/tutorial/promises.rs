//! What the page promises.

use std::time::Duration;

use crate::shell::Shell;

#[tokio::test]
async fn containers_of_one_image_are_independent_and_the_image_stays_as_it_is() {
    let Some(mut shell) = Shell::open().await else { return };
    let image = shell.pulled("busybox").await;
    for name in ["one", "two"] {
        shell.ok(&format!("pinnace run -d --name {name} {image} sleep 1000")).await;
    }
    shell
        .ok("pinnace exec one sh -c 'echo mine > /root/mine; rm /volume/from-image; echo x >> /etc/passwd'")
        .await;
    shell.fails("pinnace exec two cat /root/mine", 1).await;
    assert_eq!(shell.ok("pinnace exec two cat /volume/from-image").await, "kept by the image\n");
    // Deleting a file of the image is a whiteout in this container, and nothing in the image.
    shell.fails("pinnace exec one cat /volume/from-image", 1).await;
    let diff = "C /etc\nC /etc/passwd\nC /root\nA /root/mine\nC /volume\nD /volume/from-image\n";
    assert_eq!(shell.ok("pinnace diff one").await, diff);
    assert_eq!(shell.ok("pinnace diff two").await, "");
    assert_eq!(
        shell.ok(&format!("pinnace run --rm {image} cat /volume/from-image")).await,
        "kept by the image\n"
    );
    // What is committed stays, as an image of its own.
    let committed =
        shell.ok("pinnace commit -m first -a me -c 'CMD [\"cat\", \"/root/mine\"]' one mine:1").await;
    assert!(committed.starts_with("sha256:"), "{committed}");
    assert_eq!(shell.ok("pinnace run --rm mine:1").await, "mine\n");
    shell.fails("pinnace run --rm mine:1 cat /volume/from-image", 1).await;
    shell.fails("pinnace run --rm mine:1 ls /etc/hostname.d", 1).await;
    assert!(shell.ok("pinnace history mine:1").await.contains("first"));
    // What was written stays over stop and start, and is lost with the container.
    shell.ok("pinnace stop -t 0 one two && pinnace start one").await;
    assert_eq!(shell.ok("pinnace exec one cat /root/mine").await, "mine\n");
    shell.ok("pinnace rm -f one two").await;
    shell.ok(&format!("pinnace run -d --name one {image} sleep 1000")).await;
    shell.fails("pinnace exec one cat /root/mine", 1).await;
    shell.ok("pinnace rm -f one").await;
}

#[tokio::test]
async fn volumes_outlive_their_containers() {
    let Some(mut shell) = Shell::open().await else { return };
    let image = shell.pulled("busybox").await;
    assert_eq!(shell.ok("pinnace volume create data").await, "data\n");
    shell.ok(&format!("pinnace run --rm -v data:/volume {image} sh -c 'echo more > /volume/more'")).await;
    // A new volume begins with what the image has there.
    let listed = shell.ok(&format!("pinnace run --rm -v data:/volume:ro {image} ls /volume")).await;
    assert_eq!(listed, "from-image\nmore\n");
    shell.fails(&format!("pinnace run --rm -v data:/volume:ro {image} touch /volume/x"), 1).await;
    shell.ok(&format!("pinnace create --name user -v data:/volume -v /own {image} true")).await;
    let refused = shell.fails("pinnace volume rm data", 1).await;
    assert!(refused.contains("user"), "{refused}");
    assert_eq!(shell.ok("pinnace volume ls -q | wc -l").await.trim(), "2");
    shell.ok("pinnace rm -v user").await;
    assert_eq!(shell.ok("pinnace volume ls -q").await, "data\n");
    shell.ok(&format!("echo here > bound; pinnace run --rm -v ./bound:/bound {image} sh -c 'cat /bound; echo there > /bound'"))
        .await;
    assert_eq!(shell.ok("cat bound").await, "there\n");
    shell.ok("pinnace volume rm data").await;
}

#[tokio::test]
async fn ten_containers_cost_the_image_once() {
    let Some(mut shell) = Shell::open().await else { return };
    let image = shell.pulled("busybox").await;
    let store = shell.node.daemon.root.join("store");
    let bytes = |shell: &Shell| {
        let text = shell.node.world.sh(&format!("du -s -B1 {} | cut -f1", store.display()));
        text.trim().parse::<u64>().unwrap()
    };
    let before = bytes(&shell);
    for number in 0..10 {
        shell
            .ok(&format!("pinnace run -d --name c{number} {image} sh -c 'echo {number} > /mine; sleep 1000'"))
            .await;
    }
    let each = (bytes(&shell) - before) / 10;
    assert!(each < 1 << 20, "{each} bytes a container");
    shell.ok("pinnace rm -f $(pinnace ps -q)").await;
}

#[tokio::test]
async fn the_kubelet_sees_none_of_it_and_collects_none_of_it() {
    let Some(mut shell) = Shell::open().await else { return };
    let image = shell.pulled("busybox").await;
    shell.ok(&format!("pinnace run -d --name hidden {image} sleep 1000")).await;
    let cri = &shell.node.cri;
    assert!(cri.containers().await.unwrap().is_empty());
    assert!(cri.pods().await.unwrap().is_empty());
    let images = cri.list_images().await.unwrap();
    assert!(images.iter().all(|image| image.pinned), "{images:?}");
    let (code, text) = pinnace_conformance::cri::failure(cri.remove_image(&image).await);
    assert_eq!(code, tonic::Code::FailedPrecondition, "{text}");
    assert!(text.contains("hidden"), "{text}");
    shell.ok("pinnace rm -f hidden").await;
    assert!(!shell.node.cri.list_images().await.unwrap().iter().any(|image| image.pinned));
}

#[tokio::test]
async fn restart_policies_and_health() {
    let Some(mut shell) = Shell::open().await else { return };
    let image = shell.pulled("busybox").await;
    let often = "sh -c 'echo run; exit 1'";
    shell.ok(&format!("pinnace run -d --name thrice --restart on-failure:2 {image} {often}")).await;
    shell.ok(&format!("pinnace run -d --name always --restart always {image} sh -c 'sleep 0.1'")).await;
    let health = "--health-cmd 'test -e /well' --health-interval 100ms --health-retries 2";
    shell.ok(&format!("pinnace run -d --name sick {health} {image} sleep 1000")).await;
    eventually(&mut shell, "pinnace ps --format '{{.Names}} {{.Status}}'", "(unhealthy)").await;
    shell.ok("pinnace exec sick touch /well").await;
    eventually(&mut shell, "pinnace inspect -f '{{.State.Health.Status}}' sick", "healthy\n").await;
    eventually(&mut shell, "pinnace inspect -f '{{.State.Status}} {{.RestartCount}}' thrice", "exited 2")
        .await;
    assert_eq!(shell.ok("pinnace logs thrice").await, "run\nrun\nrun\n");
    eventually(
        &mut shell,
        "pinnace events --since 1h --until 0s --filter event=die --filter container=always | wc -l",
        "3",
    )
    .await;
    shell.ok("pinnace stop always").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(shell.ok("pinnace inspect -f '{{.State.Status}}' always").await, "exited\n");
    shell.ok("pinnace rm -f always sick thrice").await;
}

#[tokio::test]
async fn containers_survive_the_daemon_and_a_reboot() {
    let Some(mut shell) = Shell::open().await else { return };
    let image = shell.pulled("busybox").await;
    let runs = "sh -c 'echo started; echo kept >> /kept; trap \"exit 0\" TERM; while :; do sleep 0.05; done'";
    shell.ok(&format!("pinnace run -d --name stays --restart unless-stopped {image} {runs}")).await;
    shell.ok(&format!("pinnace run -d --name rests --restart unless-stopped {image} {runs}")).await;
    shell.ok("pinnace stop rests").await;
    let pid = shell.ok("pinnace inspect -f '{{.State.Pid}}' stays").await;
    shell.node.daemon.kill();
    shell.node.restart();
    assert_eq!(shell.ok("pinnace inspect -f '{{.State.Pid}}' stays").await, pid);
    assert_eq!(shell.ok("pinnace exec stays cat /kept").await, "kept\n");
    // A reboot: the processes and the run directory are gone.
    shell.node.daemon.kill();
    let run = shell.node.daemon.run.clone();
    let monitors = format!("grep -ho '\"monitor_pid\":[0-9]*' {}/sandboxes/*/sandbox.json", run.display());
    shell.node.world.sh(&format!("kill -9 {} $({monitors} | grep -o '[0-9]*$'); sleep 0.3", pid.trim()));
    for directory in ["sandboxes", "containers"] {
        let _ = std::fs::remove_dir_all(run.join(directory));
    }
    shell.node.restart();
    eventually(&mut shell, "pinnace inspect -f '{{.State.Status}}' stays", "running").await;
    eventually(&mut shell, "pinnace exec stays cat /kept", "kept\nkept\n").await;
    assert_eq!(shell.ok("pinnace inspect -f '{{.State.Status}}' rests").await, "exited\n");
    shell.ok("pinnace rm -f stays rests").await;
}

/// Asks until the answer has something in it.
async fn eventually(shell: &mut Shell, command: &str, wanted: &str) {
    let end = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let (output, _) = shell.run(command).await;
        if output.contains(wanted) {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{command}: {output}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
