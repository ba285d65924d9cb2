//! Images of the command line: verbs against the real daemon, archives and pushes against the tools that others use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use pinnace_conformance::node::Node;
use pinnace_conformance::registry::PLAIN;
use pinnace_conformance::skip;

/// Runs a verb of the program; what it printed, and whether it succeeded.
pub fn verb(node: &Node, arguments: &[&str]) -> Output {
    let (first, rest) = arguments.split_first().expect("a verb");
    let mut command = node.daemon.command(first);
    command.args(rest).env("PINNACE_SOCKET", &node.daemon.socket).stdin(Stdio::null());
    command.output().expect("run the program")
}

/// The same; it must succeed.
pub fn ok(node: &Node, arguments: &[&str]) -> String {
    let output = verb(node, arguments);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{out}{err}\n{}",
        output.status,
        node.daemon.last_lines()
    );
    out.into_owned()
}

/// The same; it must fail with this exit code, and say this.
pub fn fails(node: &Node, arguments: &[&str], code: i32, text: &str) {
    let output = verb(node, arguments);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
    assert!(err.contains(text), "{arguments:?}: {err}");
}

/// Whether a program of another project is there; if not, the test is skipped.
fn has(node: &Node, program: &str, test: &str) -> bool {
    let found = node.world.command("which").arg(program).output().is_ok_and(|output| output.status.success());
    if !found {
        skip(test, &format!("{program} is not installed"));
    }
    found
}

/// The store is whole, and nothing is left of what was cut short.
pub fn assert_clean(node: &Node) {
    let text = ok(node, &["system", "fsck"]);
    assert!(text.contains("are whole"), "{text}");
    for place in ["spool", "store/work", "store/trash"] {
        let dir = node.daemon.root.join(place);
        let left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[tokio::test]
async fn verbs_speak_docker() {
    let Some(node) = Node::start() else { return };
    let id = node.image("busybox").await;
    let short = &id["sha256:".len()..][..12];
    let reference = format!("{PLAIN}/busybox:1");

    let table = ok(&node, &["images"]);
    let mut lines = table.lines();
    let head: Vec<_> =
        lines.next().unwrap().split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(head, ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]);
    let row = lines.next().unwrap();
    assert!(
        row.starts_with(&format!("{PLAIN}/busybox")) && row.contains(short) && row.contains(" 1 "),
        "{table}"
    );
    assert_eq!(ok(&node, &["images", "-q", "--no-trunc"]).trim(), id);
    assert_eq!(ok(&node, &["images", "--format", "{{.Repository}}:{{.Tag}}"]).trim(), reference);

    ok(&node, &["tag", short, "mine:v1"]);
    ok(&node, &["tag", "mine:v1", "mine:v2"]);
    assert_eq!(ok(&node, &["images", "mine", "--format", "{{.Tag}}"]), "v1\nv2\n");
    fails(&node, &["tag", "mine:v1", "Not/Good"], 1, "lower-case");
    // What the command line names, the kubelet finds.
    assert_eq!(node.cri.image("docker.io/library/mine:v1").await.unwrap().unwrap().id, id);

    let shown: serde_json::Value = serde_json::from_str(&ok(&node, &["inspect", "mine:v1"])).unwrap();
    assert_eq!(shown[0]["Id"], id.as_str());
    assert_eq!(shown[0]["Config"]["Cmd"][0], "sh");
    assert_eq!(
        ok(&node, &["image", "inspect", "-f", "{{.Os}} {{len .RootFS.Layers}}", short]).trim(),
        "linux 1"
    );
    fails(&node, &["inspect", "mine:v1", "absent"], 1, "no such object: absent");
    assert!(ok(&node, &["history", "mine:v1"]).starts_with("IMAGE"), "history has a head");

    fails(&node, &["rmi", short], 1, "must be forced");
    assert_eq!(ok(&node, &["rmi", "mine:v1"]), "Untagged: mine:v1\n");
    ok(&node, &["rmi", "mine:v2"]);
    let gone = ok(&node, &["rmi", &reference]);
    assert!(gone.starts_with(&format!("Untagged: {reference}\nUntagged: {PLAIN}/busybox@sha256:")), "{gone}");
    assert!(gone.contains(&format!("Deleted: {id}\nDeleted: sha256:")), "{gone}");
    fails(&node, &["rmi", "absent"], 1, "absent");
    assert_eq!(ok(&node, &["images", "-q"]), "");
    assert_clean(&node);
}

#[tokio::test]
async fn images_in_use_stay() {
    let Some(node) = Node::start() else { return };
    let id = node.image("busybox").await;
    let pod = node.run_pod("user", |_| {}).await;
    let config = node.container(&pod.config, "main", &id, &["sleep", "4242"]);
    let running = node.run_in(&pod.id, &pod.config, &config).await.unwrap();
    let reference = format!("{PLAIN}/busybox:1");
    fails(&node, &["rmi", &reference], 1, "is being used by running container");
    fails(&node, &["rmi", "-f", &reference], 1, "cannot be forced");
    node.cri.stop(&running.container, 0).await.unwrap();
    fails(&node, &["rmi", &reference], 1, "must be forced");
    ok(&node, &["rmi", "-f", &reference]);
    assert!(ok(&node, &["images"]).contains("<none>"));
    assert_eq!(ok(&node, &["image", "prune", "-f"]), "Total reclaimed space: 0B\n");
    node.remove(&pod.id).await;
    let pruned = ok(&node, &["image", "prune", "-f"]);
    assert!(pruned.contains(&format!("deleted: {id}")), "{pruned}");
}

#[tokio::test]
async fn disk_usage_counts_shared_layers_once() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    ok(&node, &["tag", &format!("{PLAIN}/busybox:1"), "again:1"]);
    let table = ok(&node, &["system", "df"]);
    let images = table.lines().find(|line| line.starts_with("Images")).unwrap();
    assert_eq!(images.split_whitespace().nth(1), Some("1"), "{table}");
    assert!(ok(&node, &["system", "df", "-v"]).contains("again:1"));
    assert!(ok(&node, &["image", "tree"]).contains("again:1"));
}

/// A file in the world's directory, which has the same path inside.
fn file(node: &Node, name: &str) -> PathBuf {
    node.world.dir().join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test")
}

fn config_digest(node: &Node, source: &str) -> String {
    let raw = node.world.sh(&format!("skopeo --insecure-policy inspect --config --raw {source} | sha256sum"));
    format!("sha256:{}", raw.split_whitespace().next().unwrap_or_default())
}

#[tokio::test]
async fn archives_go_to_others_and_come_back() {
    let Some(node) = Node::start() else { return };
    if !has(&node, "skopeo", "archives_go_to_others_and_come_back") {
        return;
    }
    let (id, other) = (node.image("menagerie").await, node.image("nginx").await);
    let (menagerie, nginx) = (format!("{PLAIN}/menagerie:1"), format!("{PLAIN}/nginx:1"));
    let archive = file(&node, "both.tar");
    ok(&node, &["save", "-o", text(&archive), &menagerie, &nginx]);
    // Others read both halves of it.
    let path = text(&archive);
    assert_eq!(config_digest(&node, &format!("docker-archive:{path}:{menagerie}")), id);
    assert_eq!(config_digest(&node, &format!("docker-archive:{path}:{nginx}")), other);
    let (one, oci) = (file(&node, "one.tar"), file(&node, "oci"));
    ok(&node, &["save", "-o", text(&one), &nginx]);
    node.world.sh(&format!("mkdir {0} && tar -xf {1} -C {0}", oci.display(), one.display()));
    assert_eq!(config_digest(&node, &format!("oci:{}:1", oci.display())), other);
    // Saved again it is the same, byte for byte.
    let again = file(&node, "again.tar");
    ok(&node, &["save", "-o", text(&again), &menagerie, &nginx]);
    assert_eq!(fs::read(&archive).unwrap(), fs::read(&again).unwrap());

    ok(&node, &["rmi", &menagerie, &nginx]);
    let loaded = ok(&node, &["load", "-i", path]);
    assert_eq!(loaded, format!("Loaded image: {menagerie}\nLoaded image: {nginx}\n"));
    assert_eq!(ok(&node, &["images", "-q", "--no-trunc", &format!("{PLAIN}/menagerie")]).trim(), id);

    // And what others have written, plain and compressed.
    let by = |form: &str| format!("skopeo --insecure-policy copy -q docker-archive:{path}:{nginx} {form}");
    for (form, name) in [("docker-archive", "d.tar"), ("oci-archive", "o.tar")] {
        let made = file(&node, name);
        node.world.sh(&by(&format!("{form}:{}:example.test/made/{form}:7", made.display())));
        node.world.sh(&format!("gzip -k {}", made.display()));
        // Another format is another config, and so another image.
        let name = format!("example.test/made/{form}:7");
        let expected = config_digest(&node, &format!("{form}:{}:{name}", made.display()));
        ok(&node, &["rmi", "-f", &other]);
        for path in [made.clone(), made.with_extension("tar.gz")] {
            let loaded = ok(&node, &["load", "-i", text(&path)]);
            assert_eq!(loaded, format!("Loaded image: {name}\n"));
            let shown = ok(&node, &["inspect", "-f", "{{.Id}}", &name]);
            assert_eq!(shown.trim(), expected, "{}", path.display());
        }
    }
    // By id there is no name in the archive.
    let nameless = file(&node, "nameless.tar");
    ok(&node, &["save", "-o", text(&nameless), &id]);
    assert_eq!(ok(&node, &["load", "-i", text(&nameless)]), format!("Loaded image ID: {id}\n"));
    assert_clean(&node);
}

#[tokio::test]
async fn archives_that_are_none_say_so() {
    let Some(node) = Node::start() else { return };
    let wrong = file(&node, "wrong.tar");
    fs::write(&wrong, "no tar at all").unwrap();
    assert!(!verb(&node, &["load", "-i", text(&wrong)]).status.success());
    node.world.sh(&format!("cd {}; echo x > f; tar -cf only.tar f", node.world.dir().display()));
    fails(&node, &["load", "-i", text(&file(&node, "only.tar"))], 1, "neither index.json nor manifest.json");
    fails(&node, &["load", "-i", "/absent"], 1, "/absent");
    fails(&node, &["save", "absent"], 1, "absent");
    // A manifest that promises what is not there.
    fs::write(file(&node, "manifest.json"), r#"[{"Config":"c.json","RepoTags":null,"Layers":["l.tar"]}]"#)
        .unwrap();
    node.world.sh(&format!("cd {}; tar -cf lacks.tar manifest.json", node.world.dir().display()));
    fails(&node, &["load", "-i", text(&file(&node, "lacks.tar"))], 1, "c.json is not in the archive");
    assert_clean(&node);
}

/// A tar of a root file system that does not compress, so that it takes its time.
fn noise(node: &Node, name: &str, megabytes: u32) -> PathBuf {
    let path = file(node, name);
    node.world.sh(&format!(
        "mkdir -p {0}.d/bin && head -c {megabytes}M /dev/urandom > {0}.d/noise && echo {name} > {0}.d/name && \
         tar -C {0}.d -cf {0} .",
        path.display()
    ));
    path
}

#[tokio::test]
async fn pushed_images_are_what_they_were() {
    let Some(node) = Node::start() else { return };
    // Pulled, and pushed to another repository of the same registry: nothing is sent.
    let id = node.image("nginx").await;
    let copy = format!("{PLAIN}/copies/nginx:2");
    ok(&node, &["tag", &format!("{PLAIN}/nginx:1"), &copy]);
    let pushed = ok(&node, &["push", &copy]);
    assert!(!pushed.contains(": Pushed") && pushed.contains("2: digest: sha256:"), "{pushed}");

    // Made here: sent once.
    let made = noise(&node, "made", 3);
    let name = format!("{PLAIN}/made:1");
    let imported = ok(&node, &["import", "-m", "by a test", text(&made), &name]).trim().to_owned();
    let first = ok(&node, &["push", &name]);
    assert!(first.contains(": Pushed"), "{first}");
    let second = ok(&node, &["push", &name]);
    assert!(second.contains(": Layer already exists") && !second.contains(": Pushed"), "{second}");
    assert_eq!(first.lines().last(), second.lines().last(), "the same image has the same digest");
    let elsewhere = format!("{PLAIN}/elsewhere:1");
    ok(&node, &["tag", &name, &elsewhere]);
    let third = ok(&node, &["push", &elsewhere]);
    assert!(third.contains(": Mounted from another repository"), "{third}");

    // And back.
    for (reference, expected) in [(&copy, &id), (&name, &imported), (&elsewhere, &imported)] {
        ok(&node, &["rmi", "-f", expected]);
        assert_eq!(ok(&node, &["pull", "-q", reference]).trim(), *expected);
    }
    if has(&node, "skopeo", "pushed_images_are_what_they_were") {
        let raw = node.world.sh(&format!(
            "skopeo --insecure-policy inspect --tls-verify=false --config --raw docker://{name} | sha256sum"
        ));
        assert_eq!(format!("sha256:{}", raw.split_whitespace().next().unwrap()), imported);
    }
    fails(&node, &["push", "127.0.0.1:5999/made:1"], 1, "127.0.0.1:5999/made:1");
    assert_clean(&node);
}

#[tokio::test]
async fn passwords_let_a_push_in() {
    let Some(mut node) = Node::start() else { return };
    node.registry.start_password();
    node.image("busybox").await;
    let name = format!("{}/inside:1", pinnace_conformance::registry::PASSWORD);
    ok(&node, &["tag", &format!("{PLAIN}/busybox:1"), &name]);
    fails(&node, &["push", &name], 1, "authentication required");
    ok(&node, &["push", "--creds", "reader:correct-horse", &name]);
    fails(&node, &["push", "--creds", "reader:wrong", &name], 1, "not accepted");
}

#[tokio::test]
async fn a_daemon_that_dies_leaves_a_clean_store() {
    let Some(mut node) = Node::start() else { return };
    let made = noise(&node, "made", 16);
    let name = format!("{PLAIN}/made:1");
    let id = ok(&node, &["import", text(&made), &name]).trim().to_owned();
    let archive = file(&node, "made.tar");
    ok(&node, &["save", "-o", text(&archive), &name]);
    for (arguments, wait_ms) in
        [(vec!["push", &name], 60), (vec!["push", &name], 300), (vec!["load", "-i", text(&archive)], 120)]
    {
        if arguments[0] == "load" {
            ok(&node, &["rmi", "-f", &id]);
        }
        let mut command = node.daemon.command(arguments[0]);
        command.args(&arguments[1..]).env("PINNACE_SOCKET", &node.daemon.socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = command.spawn().expect("run the program");
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        node.daemon.kill();
        let _ = running.wait();
        node.daemon.start_again();
        assert_clean(&node);
        if arguments[0] == "load" {
            assert_eq!(ok(&node, &["load", "-i", text(&archive)]).trim(), format!("Loaded image: {name}"));
        }
        ok(&node, &["push", &name]);
    }
    ok(&node, &["rmi", "-f", &id]);
    assert_eq!(ok(&node, &["pull", "-q", &name]).trim(), id);
}
