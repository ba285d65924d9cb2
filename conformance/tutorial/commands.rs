//! The transcript: the page's commands in their order.

use crate::shell::Shell;

#[tokio::test]
async fn the_tutorial_is_typed_from_its_first_command_to_its_last() {
    let Some(mut shell) = Shell::open().await else { return };
    let image = shell.node.push("busybox");
    // The first container brings the cgroup that all are in.
    shell.ok(&format!("pinnace run --rm {image} true && pinnace version >/dev/null")).await;
    let before = shell.node.baseline().await;

    // "Get an image, and run a first container."
    let pulled = shell.ok(&format!("pinnace pull {image}")).await;
    assert!(pulled.contains("sha256:"), "{pulled}");
    let hello = shell.ok(&format!("pinnace run --rm {image} echo hello from a container")).await;
    assert_eq!(hello, "hello from a container\n");

    // "Look around inside."
    shell.begin(&format!("pinnace run -it --name first {image} sh")).await;
    shell.until("# ").await;
    shell.type_in("echo size:$(stty size)\n").await;
    shell.until("size:40 100").await;
    shell.type_in("hostname; echo kept > /root/note; echo written:$?\n").await;
    shell.until("written:0").await;
    shell.type_in("exit 7\n").await;
    assert_eq!(shell.end().await.1, 7);

    // "What runs, and what has run."
    assert!(!shell.ok("pinnace ps").await.contains("first"));
    let all = shell.ok("pinnace ps -a").await;
    assert!(all.starts_with("CONTAINER ID   IMAGE"), "{all}");
    assert!(all.contains("Exited (7)") && all.contains("first"), "{all}");
    let id = shell.ok("pinnace ps -aq --no-trunc").await.trim().to_owned();
    assert_eq!(id.len(), 64, "{id}");

    // "A stopped container keeps what it wrote."
    shell.begin("pinnace start -ai first").await;
    shell.type_in("cat /root/note; echo read:$?\n").await;
    shell.until("kept").await;
    shell.until("read:0").await;
    shell.type_in("exit\n").await;
    assert_eq!(shell.end().await.1, 0);

    // "In the background."
    let script = "'i=0; trap \"exit 0\" TERM; while :; do i=$((i+1)); echo line $i; sleep 0.1; done'";
    let id = shell.ok(&format!("pinnace run -d --name web -e COLOUR=blue {image} sh -c {script}")).await;
    let id = id.trim().to_owned();
    assert_eq!(id.len(), 64, "{id}");
    let running = shell.ok("pinnace ps --format '{{.Names}}|{{.State}}|{{.Status}}'").await;
    assert!(running.starts_with("web|running|Up "), "{running}");
    assert_eq!(
        shell.ok(&format!("pinnace ps -q --filter id={}", &id[..8])).await,
        format!("{}\n", &id[..12])
    );

    // "A second program in it."
    assert_eq!(shell.ok("pinnace exec web sh -c 'echo $COLOUR'").await, "blue\n");
    shell.begin("pinnace exec -it web sh").await;
    shell.until("# ").await;
    shell.type_in("ps | grep -c 'line'; echo tty:$(tty)\n").await;
    shell.until("tty:/dev/pts/").await;
    shell.type_in("exit 3\n").await;
    assert_eq!(shell.end().await.1, 3);
    shell.fails("pinnace exec web /no/such/program", 127).await;
    shell.ok("pinnace exec -d web touch /detached").await;

    // "What it writes."
    let followed = shell.fails("timeout 2 pinnace logs -f --tail 2 web", 124).await;
    assert!(followed.lines().count() > 4, "{followed}");
    assert!(shell.ok("pinnace logs --tail 1 -t web").await.contains("Z line "));
    assert!(!shell.ok("pinnace logs --since 1h web | head -1").await.is_empty());

    // "What is known of it."
    assert_eq!(shell.ok("pinnace inspect -f '{{.State.Status}} {{.Name}}' web").await, "running /web\n");
    let address = shell.ok("pinnace inspect -f '{{.NetworkSettings.IPAddress}}' web").await;
    assert!(address.trim().parse::<std::net::Ipv4Addr>().is_ok(), "{address}");
    let json = shell.ok("pinnace inspect web").await;
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(parsed[0]["Id"], id.as_str());
    let missing = shell.fails("pinnace inspect wep", 1).await;
    assert!(missing.contains("did you mean \"web\"?") || missing.contains("no such object"), "{missing}");
    let top = shell.ok("pinnace top web").await;
    assert!(top.starts_with("UID") && top.contains("sh -c"), "{top}");
    let stats = shell.ok("pinnace stats --no-stream web").await;
    assert!(stats.contains("MEM USAGE / LIMIT") && stats.contains("web"), "{stats}");

    // "Files in and out."
    shell.ok("echo from here > file; pinnace cp file web:/root/").await;
    assert_eq!(shell.ok("pinnace exec web cat /root/file").await, "from here\n");
    shell.ok("pinnace cp web:/root/file back; cat back").await;
    shell.ok("pinnace cp web:/etc - | tar -t | grep -q '^etc/passwd$'").await;
    let diff = shell.ok("pinnace diff web").await;
    assert!(diff.contains("A /root/file\n") && diff.contains("C /root\n"), "{diff}");
    shell.ok("pinnace export web | tar -t | grep -q '^root/file$'").await;

    // "Pause, stop, start, restart, rename, kill, wait."
    shell.ok("pinnace pause web").await;
    assert!(shell.ok("pinnace ps --format '{{.Status}}'").await.contains("(Paused)"));
    shell.fails("pinnace exec web true", 1).await;
    shell.ok("pinnace unpause web").await;
    assert_eq!(shell.ok("pinnace stop web").await, "web\n");
    assert_eq!(shell.ok("pinnace wait web").await, "0\n");
    shell.ok("pinnace start web").await;
    assert_eq!(shell.ok("pinnace exec web cat /root/file").await, "from here\n");
    shell.ok("pinnace restart -t 1 web").await;
    shell.ok("pinnace rename web shop").await;
    shell.ok("pinnace kill shop").await;
    assert_eq!(shell.ok("pinnace wait shop").await, "137\n");

    // "Remove."
    shell.ok("pinnace start shop").await;
    let refused = shell.fails("pinnace rm shop", 1).await;
    assert!(refused.contains("-f"), "{refused}");
    shell.ok("pinnace rm -f shop").await;
    assert_eq!(shell.ok("pinnace rm first").await, "first\n");
    assert_eq!(shell.ok("pinnace ps -aq").await, "");
    shell.node.assert_nothing_left(&before);
}

#[tokio::test]
async fn leaving_and_coming_back() {
    let Some(mut shell) = Shell::open().await else { return };
    let image = shell.pulled("busybox").await;
    shell.begin(&format!("pinnace run -it --name term {image} sh")).await;
    shell.until("# ").await;
    // ctrl-p ctrl-q.
    shell.type_in("\x10\x11").await;
    assert_eq!(shell.end().await.1, 0);
    assert!(shell.ok("pinnace ps").await.contains("term"));
    shell.begin("pinnace attach term").await;
    shell.type_in("echo again:$((40+2))\n").await;
    shell.until("again:42").await;
    shell.type_in("exit 5\n").await;
    assert_eq!(shell.end().await.1, 5);
    // A pipe instead of a terminal: its end is the program's.
    assert_eq!(shell.ok(&format!("echo through | pinnace run -i --rm {image} cat")).await, "through\n");
    // Signals go to the program.
    let trap = "'trap \"echo got it; exit 9\" INT; echo up; while :; do sleep 0.1; done'";
    shell.begin(&format!("pinnace run --rm {image} sh -c {trap}")).await;
    shell.until("up").await;
    shell.type_in("\x03").await;
    let (output, code) = shell.end().await;
    assert!(output.contains("got it") && code == 9, "{output} {code}");
    let refused = shell.fails(&format!("echo | pinnace run -it --rm {image} sh"), 125).await;
    assert!(refused.contains("not a TTY"), "{refused}");
    shell.ok("pinnace rm term").await;
}

#[tokio::test]
async fn exit_codes_are_dockers() {
    let Some(mut shell) = Shell::open().await else { return };
    let image = shell.pulled("busybox").await;
    shell.fails(&format!("pinnace run --rm {image} sh -c 'exit 42'"), 42).await;
    shell.fails(&format!("pinnace run --rm --init {image} sh -c 'kill -9 $$'"), 137).await;
    shell.fails(&format!("pinnace run --rm {image} /no/such"), 127).await;
    shell.fails(&format!("pinnace run --rm {image} /etc/passwd"), 126).await;
    shell.fails(&format!("pinnace run --rm --no-such-flag {image}"), 125).await;
    shell.fails("pinnace run --rm --pull never no.such/image:1", 125).await;
    shell.fails(&format!("pinnace run --rm --network mesh {image} true"), 125).await;
    assert_eq!(shell.ok("pinnace ps -aq").await, "", "a start that fails leaves nothing with --rm");
    shell.fails("pinnace stop nobody", 1).await;
    shell.ok("pinnace rm -f nobody").await;
}

#[tokio::test]
async fn every_verb_has_help_a_page_and_completion() {
    let Some(mut shell) = Shell::open().await else { return };
    shell.ok("pinnace man pages >/dev/null").await;
    for verb in [
        "run", "create", "start", "stop", "restart", "kill", "pause", "unpause", "wait", "rm", "rename",
        "update", "attach", "exec", "logs", "ps", "inspect", "top", "stats", "port", "diff", "cp", "export",
        "events", "pull", "version", "info", "serve",
    ] {
        let page =
            std::fs::read_to_string(shell.directory().join(format!("pages/pinnace-{verb}.1"))).unwrap();
        assert!(page.contains(".TH") && page.contains(verb), "{verb}");
        let help = shell.ok(&format!("pinnace {verb} --help")).await;
        assert!(help.contains("Usage:"), "{help}");
    }
    for name in ["bash", "zsh", "fish"] {
        let script = shell.ok(&format!("pinnace completion {name} | grep -c restart")).await;
        assert!(script.trim().parse::<u32>().unwrap() > 0, "{name}");
    }
}
