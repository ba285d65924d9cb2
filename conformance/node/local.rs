//! Containers of the command line: the program's verbs on a real daemon. What a person types is in the tutorial; here are
//! the flags, and what is true after a crash.

use std::process::{Command, Output};

use pinnace_conformance::node::Node;

/// Runs a verb with arguments; it must succeed. What it printed.
async fn ok(node: &Node, line: &str) -> String {
    let output = run(node, line).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {}\n{text}{errors}{}", output.status, node.daemon.last_lines());
    text
}

/// Runs a verb that fails; what it said.
async fn fails(node: &Node, line: &str, code: i32) -> String {
    let output = run(node, line).await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{line}: {text}");
    text
}

/// Runs a shell line in the world where `pinnace` is the program.
async fn run(node: &Node, line: &str) -> Output {
    tokio::process::Command::from(command(node, line)).kill_on_drop(true).output().await.unwrap()
}

fn command(node: &Node, line: &str) -> Command {
    let program = pinnace_conformance::daemon::program().display();
    let mut command = node.world.command("sh");
    command.args(["-c", &format!("pinnace() {{ {program} \"$@\"; }}; {line}")]);
    command.env("PINNACE_SOCKET", &node.daemon.socket);
    command
}

#[tokio::test]
async fn what_a_process_is_given() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    node.image("configured").await;
    let (busybox, configured) = (node.push("busybox"), node.push("configured"));
    let run = async |flags: &str, command: &str| {
        ok(&node, &format!("pinnace run --rm {flags} {busybox} sh -c '{command}'")).await
    };
    assert_eq!(run("-e A=1 -e B=2", "echo $A$B").await, "12\n");
    assert_eq!(run("-w /root", "pwd").await, "/root\n");
    assert_eq!(run("-u worker", "id -un; id -gn; echo $HOME").await, "worker\nworker\n/home/worker\n");
    assert_eq!(run("-u 1234:99 --group-add 77", "id -u; id -g; id -G").await, "1234\n99\n99 77\n");
    assert_eq!(run("-h named", "hostname").await, "named\n");
    assert!(run("--add-host other:10.9.8.7", "cat /etc/hosts").await.contains("10.9.8.7\tother\n"));
    let resolver =
        run("--dns 10.1.1.1 --dns-search a.local --dns-option ndots:3", "cat /etc/resolv.conf").await;
    assert_eq!(resolver, "search a.local\nnameserver 10.1.1.1\noptions ndots:3\n");
    assert_eq!(run("--ulimit nofile=100:200", "ulimit -n; ulimit -Hn").await, "100\n200\n");
    assert_eq!(run("--sysctl net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward").await, "1\n");
    assert_eq!(
        run("--shm-size 3m", "df -k /dev/shm | tail -1 | tr -s \" \" | cut -d\" \" -f2").await,
        "3072\n"
    );
    assert_eq!(
        run("--read-only --tmpfs /scratch:size=1m", "touch /x 2>/dev/null || touch /scratch/x && echo ok")
            .await,
        "ok\n"
    );
    assert_eq!(
        run("--cap-drop all --cap-add chown", "grep CapEff /proc/self/status").await,
        "CapEff:\t0000000000000001\n"
    );
    assert_eq!(
        run("--security-opt no-new-privileges", "grep NoNewPrivs /proc/self/status").await,
        "NoNewPrivs:\t1\n"
    );
    assert_eq!(
        run("--security-opt seccomp=unconfined", "grep Seccomp: /proc/self/status").await,
        "Seccomp:\t0\n"
    );
    assert!(run("", "grep Seccomp: /proc/self/status").await.contains('2'));
    assert_eq!(run("--init", "echo $$ | grep -qx 1 || echo not the first").await, "not the first\n");
    assert_eq!(run("--network none", "ls /sys/class/net").await, "lo\n");
    assert_eq!(run("--entrypoint echo", "x").await, "sh -c x\n");
    // The image's own, and what goes over it.
    assert_eq!(ok(&node, &format!("pinnace run --rm {configured}")).await, "entry default arguments\n");
    assert_eq!(ok(&node, &format!("pinnace run --rm {configured} mine")).await, "entry mine\n");
    assert_eq!(ok(&node, &format!("pinnace run --rm --entrypoint pwd {configured}")).await, "/srv/here\n");
    assert_eq!(
        ok(&node, "pinnace ps -aq; pinnace volume ls -q").await,
        "",
        "--rm takes anonymous volumes along"
    );
}

#[tokio::test]
async fn limits_are_set_and_changed() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let image = node.push("busybox");
    let flags = "--cpus 0.5 -m 64m --pids-limit 50";
    ok(&node, &format!("pinnace run -d --name limited {flags} {image} sleep 1000")).await;
    let container = ok(&node, "pinnace inspect -f '{{.Id}}' limited").await.trim().to_owned();
    let file = |controller: &str, v1: &str, v2: &str| {
        let v2_only = node.world.is_cgroup_v2();
        let dir =
            node.world.cgroups().iter().find(|cgroup| v2_only || cgroup.v1_options.contains(controller));
        let found = std::process::Command::new("find")
            .arg(&dir.unwrap().dir)
            .args(["-type", "d", "-name", &format!("*{container}*")])
            .output()
            .unwrap();
        let dir = String::from_utf8(found.stdout).unwrap().lines().last().unwrap().to_owned();
        std::fs::read_to_string(format!("{dir}/{}", if v2_only { v2 } else { v1 })).unwrap().trim().to_owned()
    };
    assert_eq!(file("memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(file("pids", "pids.max", "pids.max"), "50");
    ok(&node, "pinnace update -m 96m --memory-swap 192m --pids-limit 60 --restart on-failure:3 limited")
        .await;
    assert_eq!(file("memory", "memory.limit_in_bytes", "memory.max"), (96 << 20).to_string());
    assert_eq!(file("pids", "pids.max", "pids.max"), "60");
    let policy =
        ok(&node, "pinnace inspect -f '{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.NanoCpus}}' limited")
            .await;
    assert_eq!(policy, "on-failure 500000000\n");
    // What was changed is there after a restart, too.
    ok(&node, "pinnace restart -t 0 limited").await;
    assert_eq!(file("pids", "pids.max", "pids.max"), "60");
    ok(&node, "pinnace rm -f limited").await;
    let refused = fails(&node, &format!("pinnace run -m 1m {image} true"), 125).await;
    assert!(refused.contains("6 MiB"), "{refused}");
}

#[tokio::test]
async fn ports_lead_to_a_container_and_are_given_back() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let image = node.push("busybox");
    let serve = "sh -c 'mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www'";
    ok(&node, &format!("pinnace run -d --name web -p 8085:80 -p 127.0.0.1::81 {image} {serve}")).await;
    let ports = ok(&node, "pinnace port web").await;
    assert!(ports.contains("80/tcp -> 0.0.0.0:8085\n") && ports.contains("81/tcp -> 127.0.0.1:"), "{ports}");
    assert_eq!(ok(&node, "pinnace port web 80").await, "0.0.0.0:8085\n");
    let address = ok(&node, "pinnace inspect -f '{{.NetworkSettings.Gateway}}' web").await;
    let page = format!(
        "for try in $(seq 50); do curl -sf http://{}:8085/ && exit 0; sleep 0.1; done; exit 1",
        address.trim()
    );
    assert_eq!(ok(&node, &page).await, "page\n");
    let refused = fails(&node, &format!("pinnace run --rm -p 8085:80 {image} true"), 125).await;
    assert!(refused.contains("8085"), "{refused}");
    ok(&node, "pinnace rm -f web").await;
    ok(&node, &format!("pinnace run --rm -p 8085:80 {image} true")).await;
}

#[tokio::test]
async fn names_filters_formats_and_prune() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let image = node.push("busybox");
    ok(
        &node,
        &format!("pinnace create --name a -l tier=front --cidfile /tmp/cid-a {image} true; rm /tmp/cid-a"),
    )
    .await;
    ok(&node, &format!("pinnace run --name b -l tier=back {image} sh -c 'exit 3' || true")).await;
    ok(&node, &format!("pinnace run -d --name c {image} sleep 1000")).await;
    let names = async |filters: &str| {
        ok(&node, &format!("pinnace ps -a {filters} --format '{{{{.Names}}}}' | sort | tr '\\n' ' '")).await
    };
    assert_eq!(names("").await, "a b c ");
    assert_eq!(names("-f status=exited").await, "b ");
    assert_eq!(names("-f exited=3").await, "b ");
    assert_eq!(names("-f label=tier").await, "a b ");
    assert_eq!(names("-f label=tier=front").await, "a ");
    assert_eq!(names(&format!("-f ancestor={image} -f name=c")).await, "c ");
    assert_eq!(names("-f since=a").await, "b c ");
    assert_eq!(names("-n 1").await, "c ");
    let taken = fails(&node, &format!("pinnace create --name a {image} true"), 125).await;
    assert!(taken.contains("\"a\""), "{taken}");
    let table = ok(&node, "pinnace ps --format 'table {{.Names}}\\t{{.State}}'").await;
    assert!(table.starts_with("NAMES     STATE\n") && table.contains("c         running\n"), "{table}");
    let json = ok(&node, "pinnace ps --format json").await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["Names"], "c");
    let unknown = fails(&node, "pinnace stop bb", 1).await;
    assert!(unknown.contains("did you mean \"b\"?"), "{unknown}");
    let pruned = ok(&node, "pinnace container prune -f").await;
    assert!(
        pruned.starts_with("Deleted Containers:\n") && pruned.contains("Total reclaimed space: "),
        "{pruned}"
    );
    assert_eq!(names("").await, "c ");
    ok(&node, "pinnace rm -f c").await;
}

#[tokio::test]
async fn output_is_whole_however_it_is_read() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let image = node.push("busybox");
    let count = ok(&node, &format!("pinnace run --rm {image} head -c 5000000 /dev/zero | wc -c")).await;
    assert_eq!(count.trim(), "5000000");
    let both =
        ok(&node, &format!("pinnace run --rm {image} sh -c 'echo out; echo err >&2' 2>&1 >/dev/null")).await;
    assert_eq!(both, "err\n");
    ok(&node, &format!("pinnace run -d --name lines {image} sh -c 'seq 20000; printf end'")).await;
    let followed = ok(&node, "pinnace logs -f lines | cksum; seq 20000 | { cat; printf end; } | cksum").await;
    let sums: Vec<_> = followed.lines().collect();
    assert_eq!(sums[0], sums[1]);
    assert_eq!(ok(&node, "pinnace logs --tail 2 lines").await, "20000\nend");
    let through = "head -c 3000000 /dev/zero | tr '\\0' x";
    let count = ok(&node, &format!("{through} | pinnace run -i --rm {image} wc -c")).await;
    assert_eq!(count.trim(), "3000000");
    ok(&node, "pinnace rm lines").await;
}

#[tokio::test]
async fn a_daemon_that_is_killed_at_any_moment_leaves_whole_containers() {
    let Some(mut node) = Node::start() else { return };
    node.image("busybox").await;
    let image = node.push("busybox");
    for round in 0..6_u64 {
        let line = format!(
            "for n in 1 2 3 4 5 6; do pinnace run -d --name r{round}n$n {image} sleep 1000; done; \
             pinnace rm -f r{round}n1 r{round}n2"
        );
        let mut working = tokio::process::Command::from(command(&node, &line)).spawn().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(40 + 70 * round)).await;
        node.daemon.kill();
        node.restart();
        working.wait().await.unwrap();
        let listed = ok(&node, "pinnace ps -a --format '{{.Names}} {{.State}}'").await;
        for line in listed.lines() {
            let (name, state) = line.split_once(' ').unwrap();
            assert!(["running", "created", "exited"].contains(&state), "{line}");
            if state != "running" {
                ok(&node, &format!("pinnace start {name}")).await;
            }
            assert_eq!(ok(&node, &format!("pinnace exec {name} echo lives")).await, "lives\n");
        }
        ok(&node, "for c in $(pinnace ps -aq); do pinnace rm -f $c; done").await;
        assert_eq!(ok(&node, "pinnace ps -aq").await, "");
    }
    let left = node.world.sh(&format!(
        "ls {}/local/containers {}/store/snapshots",
        node.daemon.root.display(),
        node.daemon.root.display()
    ));
    assert_eq!(left.lines().filter(|line| line.len() == 64).count(), 0, "{left}");
}

#[tokio::test]
async fn a_daemon_that_is_killed_while_it_commits_leaves_a_clean_store() {
    let Some(mut node) = Node::start() else { return };
    node.image("busybox").await;
    let image = node.push("busybox");
    let fill = "sh -c 'for n in $(seq 400); do head -c 100000 /dev/urandom > /f$n; done'";
    ok(&node, &format!("pinnace run --name full {image} {fill}")).await;
    for round in 0..5_u64 {
        let mut working =
            tokio::process::Command::from(command(&node, "pinnace commit full made:1")).spawn().unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(15 + 45 * round)).await;
        node.daemon.kill();
        node.restart();
        working.wait().await.unwrap();
        // Either there is an image, and it is whole, or nothing is left of it.
        let listed = ok(&node, "pinnace images -q made:1").await;
        if !listed.trim().is_empty() {
            assert_eq!(ok(&node, "pinnace run --rm made:1 sh -c 'ls /f* | wc -l'").await.trim(), "400");
            ok(&node, "pinnace rmi made:1").await;
        }
        let checked = ok(&node, "pinnace system fsck").await;
        assert!(!checked.contains("damaged"), "{checked}");
    }
    let layers = node.world.sh(&format!("ls {}/store/layers | wc -l", node.daemon.root.display()));
    assert_eq!(layers.trim(), "1", "only the image's own layer is left");
    ok(&node, "pinnace commit full made:1 && pinnace run --rm made:1 test -e /f400 && pinnace rm full").await;
}
