//! Builds of the command line: Dockerfiles, through the program, on a real daemon. What each instruction means in every corner
//! is tested in `src/build`; here is what becomes of it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use pinnace_conformance::leak::{Ledger, Scope};
use pinnace_conformance::node::Node;
use pinnace_conformance::process::Process;
use pinnace_conformance::registry::PLAIN;
use rustix::process::Signal;

use crate::images::{assert_clean, fails, ok, verb};

/// A node with the base image in its registry, and a context.
struct Builder {
    node: Node,
    context: PathBuf,
}

impl Builder {
    fn start() -> Option<Builder> {
        let node = Node::start()?;
        node.push("busybox");
        let context = node.world.dir().join("context");
        fs::create_dir(&context).unwrap();
        Some(Builder { node, context })
    }

    /// Writes a file of the context.
    fn file(&self, path: &str, content: &str) -> &Builder {
        let path = self.context.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// The Dockerfile; `@BASE` is the base image.
    fn dockerfile(&self, text: &str) -> &Builder {
        self.file("Dockerfile", &text.replace("@BASE", &format!("{PLAIN}/busybox:1")))
    }

    /// Builds the context as `made`, with further flags; what was told on the way.
    fn build(&self, flags: &[&str]) -> String {
        let output = verb(&self.node, &self.arguments(flags));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{flags:?}: {told}\n{}", self.node.daemon.last_lines());
        told
    }

    /// The same; it must fail and say all this.
    fn refused(&self, flags: &[&str], texts: &[&str]) {
        for text in texts {
            fails(&self.node, &self.arguments(flags), 1, text);
        }
    }

    fn arguments<'a>(&'a self, flags: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec!["build", "-t", "made"];
        arguments.extend(flags);
        arguments.push(self.context.to_str().unwrap());
        arguments
    }

    /// What a shell says in a container of the image.
    fn shell(&self, script: &str) -> String {
        ok(&self.node, &["run", "--rm", "--entrypoint", "sh", "made", "-euc", script])
    }

    fn id(&self) -> String {
        ok(&self.node, &["image", "inspect", "-f", "{{.Id}}", "made"]).trim().to_owned()
    }

    /// Begins a build with a RUN that says `begun` and stays.
    fn stuck(&self) -> (Child, Process) {
        self.dockerfile("FROM @BASE\nRUN echo begun && sleep 4343\n");
        let arguments = self.arguments(&[]);
        let mut command = self.node.daemon.command("build");
        command.args(&arguments[1..]).env("PINNACE_SOCKET", &self.node.daemon.socket).stderr(Stdio::piped());
        let (mut child, process) = self.node.world.spawn(&mut command);
        let told = BufReader::new(child.stderr.take().unwrap());
        assert!(
            told.lines().map_while(Result::ok).any(|line| line.ends_with(" begun")),
            "{}",
            self.node.daemon.last_lines()
        );
        (child, process)
    }

    /// Whether what the stuck RUN runs is there.
    fn is_running(&self) -> bool {
        let script = "for file in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $file; echo; done 2>/dev/null | grep -q '^sleep 4343'";
        self.node.world.command("sh").args(["-c", script]).status().unwrap().success()
    }

    /// Waits until nothing of the stuck RUN is left.
    fn wait_ended(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.is_running() {
            assert!(Instant::now() < end, "it still runs:\n{}", self.node.daemon.last_lines());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What runs, is mounted, and lies in the run directory.
    fn scope(&self) -> Scope<'_> {
        Scope { places: vec![self.node.daemon.run.clone()], daemon: None, ..self.node.scope() }
    }
}

#[tokio::test]
async fn stages_become_an_image_that_runs() {
    let Some(builder) = Builder::start() else { return };
    builder.file("main.sh", "echo \"$GREETING $1\"\n").dockerfile(
        "# syntax=docker/dockerfile:1\n\
         ARG BASE_IMAGE=@BASE\n\
         FROM ${BASE_IMAGE} AS tools\n\
         ARG VERSION=1\n\
         WORKDIR /out\n\
         COPY main.sh .\n\
         RUN echo \"version $VERSION\" > version && chmod 755 main.sh\n\
         FROM @BASE AS unneeded\n\
         RUN exit 7\n\
         FROM ${BASE_IMAGE}\n\
         LABEL purpose=\"a test\" multi.word=yes\n\
         ENV GREETING=hello FULL=\"${GREETING:-none} all\"\n\
         WORKDIR /srv/app\n\
         COPY --from=tools /out ./\n\
         EXPOSE 8080\n\
         STOPSIGNAL SIGUSR1\n\
         VOLUME /data\n\
         USER worker\n\
         ENTRYPOINT [\"sh\", \"./main.sh\"]\n\
         CMD [\"world\"]\n",
    );
    let told = builder.build(&["--build-arg", "VERSION=2", "-t", "made:second"]);
    assert!(told.contains("[tools 1/5] FROM") && !told.contains("unneeded"), "{told}");

    let node = &builder.node;
    assert_eq!(ok(node, &["run", "--rm", "made"]), "hello world\n");
    assert_eq!(ok(node, &["run", "--rm", "made", "you"]), "hello you\n");
    assert_eq!(
        builder.shell("cat version; pwd; id -un; echo $FULL; ls /out 2>/dev/null || echo none"),
        "version 2\n/srv/app\nworker\nnone all\nnone\n"
    );
    let shown: serde_json::Value = serde_json::from_str(&ok(node, &["image", "inspect", "made"])).unwrap();
    let config = &shown[0]["Config"];
    assert_eq!(config["Labels"]["purpose"], "a test");
    assert_eq!(config["WorkingDir"], "/srv/app");
    assert_eq!(config["StopSignal"], "SIGUSR1");
    assert!(config["ExposedPorts"]["8080/tcp"].is_object() && config["Volumes"]["/data"].is_object());
    let history = ok(node, &["history", "--no-trunc", "made"]);
    assert!(
        history.contains("COPY --from=tools /out ./") && history.contains("CMD [\"world\"]"),
        "{history}"
    );

    // The kubelet finds it, and runs it in a pod.
    let id = builder.id();
    let listed = node.cri.list_images().await.unwrap();
    let image = listed.iter().find(|image| image.id == id).unwrap();
    assert_eq!(image.repo_tags, ["docker.io/library/made:latest", "docker.io/library/made:second"]);
    let pod = node.run_pod("built", |_| {}).await;
    let container = node.container(&pod.config, "main", &id, &[]);
    let ended = node.run_to_end(&pod, container, |_| {}).await;
    assert_eq!(ended.stdout, "hello world\n");
    node.remove(&pod.id).await;
    assert_clean(node);
}

#[tokio::test]
async fn files_arrive_as_the_dockerfile_says() {
    let Some(builder) = Builder::start() else { return };
    for path in
        ["a.txt", "b.txt", "c.log", "dir/one", "dir/deep/two", "secret/key", "keep/x.tmp", "keep/y.tmp"]
    {
        builder.file(path, &format!("{path}\n"));
    }
    let mode = |path: &str, mode| {
        fs::set_permissions(builder.context.join(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("dir/one", 0o4750);
    std::os::unix::fs::symlink("one", builder.context.join("dir/link")).unwrap();
    builder.node.world.sh(&format!("cd {} && tar -czf p.tgz dir", builder.context.display()));
    builder.file(".dockerignore", "# not these\nsecret\n**/*.tmp\n!keep/y.tmp\n").dockerfile(
        "FROM @BASE\n\
         COPY *.txt /globbed/\n\
         COPY dir /dir\n\
         COPY --chown=worker:staff --chmod=640 a.txt /owned/as/named\n\
         COPY --chown=7:8 dir/deep /numbered/\n\
         COPY keep /keep/\n\
         COPY . /all/\n\
         ADD p.tgz /unpacked/\n\
         COPY p.tgz /packed/\n\
         COPY --from=@BASE /etc/passwd /passwd\n\
         RUN ln -s /globbed /link\n\
         COPY b.txt /link/through\n\
         COPY --parents dir/deep/two /parents/\n\
         COPY --exclude=deep dir /excluded/\n",
    );
    builder.build(&[]);
    let stat = |path: &str| builder.shell(&format!("stat -c '%U:%G %a' {path}"));
    assert_eq!(builder.shell("cd /globbed; ls"), "a.txt\nb.txt\nthrough\n");
    assert_eq!(builder.shell("cat /dir/deep/two; readlink /dir/link"), "dir/deep/two\none\n");
    assert_eq!(stat("/dir/one"), "root:root 4750\n");
    assert_eq!(stat("/owned/as/named"), "worker:staff 640\n");
    assert_eq!(stat("/owned/as"), "root:root 755\n");
    assert_eq!(builder.shell("stat -c %u:%g /numbered/two"), "7:8\n");
    assert_eq!(builder.shell("ls /keep; test ! -e /all/secret && ls /all/keep"), "y.tmp\ny.tmp\n");
    assert_eq!(builder.shell("cat /unpacked/dir/one; ls /packed"), "dir/one\np.tgz\n");
    assert_eq!(builder.shell("cmp /passwd /etc/passwd && echo same"), "same\n");
    assert_eq!(builder.shell("cd /parents; find . -type f; ls /excluded"), "./dir/deep/two\nlink\none\n");

    let missing = [("absent.txt", "\"absent.txt\""), ("secret/key", ".dockerignore")];
    for (source, text) in missing {
        builder.dockerfile(&format!("FROM @BASE\nCOPY {source} /\n"));
        builder.refused(&[], &["Dockerfile:2", text, "not found"]);
    }
    // Out of the context leads no way.
    std::os::unix::fs::symlink("/etc/hostname", builder.context.join("out")).unwrap();
    builder.dockerfile("FROM @BASE\nCOPY ../../../../etc/hostname /\n");
    builder.refused(&[], &["not found"]);
    builder.dockerfile("FROM @BASE\nCOPY a.txt b.txt /one\n");
    builder.refused(&[], &["must be a directory and end with a /"]);
}

#[tokio::test]
async fn commands_in_all_their_forms() {
    let Some(builder) = Builder::start() else { return };
    builder.dockerfile(
        "FROM @BASE\n\
         RUN [\"touch\", \"/exec $HOME\"]\n\
         RUN echo one \\\n  # a comment inside\n  two > /shell\n\
         RUN <<EOF\n\
         set -e\n\
         cd /tmp\n\
         echo heredoc > /heredoc\n\
         EOF\n\
         RUN <<-\"SCRIPT\"\n\
         \t#!/bin/sh\n\
         \techo \"script $0 $UNSET\" > /script\n\
         SCRIPT\n\
         ENV WHO=us\n\
         COPY <<plain <<\"raw\" /documents/\n\
         for $WHO\n\
         plain\n\
         for $WHO\n\
         raw\n\
         SHELL [\"/bin/sh\", \"-euc\"]\n\
         RUN echo ${NOT_SET-default} > /own-shell\n\
         USER worker\n\
         RUN id -un > /tmp/user && echo $HOME >> /tmp/user\n\
         USER root\n\
         RUN --network=none ls /sys/class/net > /net\n\
         RUN --network=host cat /proc/self/net/dev | wc -l > /host-net\n\
         RUN --mount=type=tmpfs,target=/scratch touch /scratch/x && mount | grep -c ' /scratch ' > /mounts\n",
    );
    builder.build(&[]);
    assert_eq!(builder.shell("ls -d /exec*; cat /shell /heredoc"), "/exec $HOME\none two\nheredoc\n");
    assert!(builder.shell("cat /script").starts_with("script /"), "a script is executed by its name");
    assert_eq!(builder.shell("cat /documents/plain /documents/raw"), "for us\nfor $WHO\n");
    assert_eq!(builder.shell("cat /own-shell /tmp/user /net"), "default\nworker\n/home/worker\nlo\n");
    assert_eq!(builder.shell("cat /mounts; ls -d /scratch 2>/dev/null || echo gone"), "1\ngone\n");
    // Nothing that every container has mounted becomes part of the image, nor does where the script lay.
    assert_eq!(builder.shell("ls -A /run"), "");
    let names = ok(&builder.node, &["run", "--rm", "made", "cat", "/etc/hostname"]);
    assert!(!names.contains("build"), "{names}");
    builder.dockerfile("FROM @BASE\nSHELL [\"/bin/sh\", \"-euc\"]\nRUN echo $NOT_SET\n");
    builder.refused(&[], &["Dockerfile:3", "exit code: 2"]);
}

#[tokio::test]
async fn mounts_of_a_step() {
    let Some(builder) = Builder::start() else { return };
    let secret = builder.node.world.dir().join("token");
    fs::write(&secret, "s3cret-of-the-build").unwrap();
    builder.file("lib/data", "of the context\n").dockerfile(
        "FROM @BASE AS first\n\
         RUN mkdir /made && echo of the stage > /made/data\n\
         FROM @BASE\n\
         RUN --mount=type=cache,target=/cache,id=kept,mode=0700,uid=1000 \\\n\
             stat -c '%u %a' /cache > /cache-owner; echo x >> /cache/count; wc -l < /cache/count > /count\n\
         RUN --mount=type=bind,source=lib,target=/lib-here \\\n\
             cat /lib-here/data > /from-context && ! touch /lib-here/x 2>/dev/null\n\
         RUN --mount=type=bind,from=first,source=/made,target=/m,rw \\\n\
             cat /m/data > /from-stage && touch /m/thrown-away\n\
         RUN --mount=type=secret,id=token cmp -s /run/secrets/token /run/secrets/token && \\\n\
             stat -c %a /run/secrets/token > /secret-mode && wc -c < /run/secrets/token > /secret-size\n\
         RUN --mount=type=secret,id=token,env=TOKEN test ${#TOKEN} = 19\n\
         RUN --mount=type=tmpfs,target=/memory,size=1m ! head -c 2m /dev/zero > /memory/x 2>/dev/null\n\
         RUN --mount=type=secret,id=optional ls /run/secrets 2>/dev/null || echo none > /optional\n",
    );
    let secret_flag = format!("id=token,src={}", secret.display());
    let flags = ["--secret", &*secret_flag];
    builder.build(&flags);
    assert_eq!(builder.shell("cat /cache-owner /count"), "1000 700\n1\n");
    assert_eq!(builder.shell("cat /from-context /from-stage"), "of the context\nof the stage\n");
    assert_eq!(builder.shell("cat /secret-mode /secret-size /optional"), "400\n19\nnone\n");
    assert_eq!(
        builder.shell("ls -A /cache /m /lib-here /memory /run 2>/dev/null | grep -v : || true").trim(),
        ""
    );
    // A cache is there in the next build; a secret is nowhere.
    builder.build(&["--no-cache", flags[0], flags[1]]);
    assert_eq!(builder.shell("cat /count"), "2\n");
    let found = builder
        .node
        .world
        .command("grep")
        .args(["-rlF", "s3cret-of-the-build"])
        .args([&builder.node.daemon.root, &builder.node.daemon.run])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    builder.dockerfile("FROM @BASE\nRUN --mount=type=secret,id=token,required=true true\n");
    builder.refused(&[], &["Dockerfile:2", "secret \"token\" was not given"]);
    assert_clean(&builder.node);
}

#[tokio::test]
async fn what_was_done_is_not_done_again() {
    let Some(builder) = Builder::start() else { return };
    builder.file("first", "1\n").file("second", "1\n").dockerfile(
        "FROM @BASE\n\
         ARG UNUSED\n\
         ARG USED=0\n\
         COPY first /\n\
         RUN cat /proc/sys/kernel/random/uuid > /uuid; echo $USED > /used\n\
         COPY second /\n\
         LABEL last=yes\n",
    );
    let cached = |told: &str| told.matches(" CACHED").count();
    assert_eq!(cached(&builder.build(&[])), 0);
    let (id, uuid) = (builder.id(), builder.shell("cat /uuid"));
    // Times of files do not matter, their content does.
    builder.file("first", "1\n");
    assert_eq!(cached(&builder.build(&[])), 7);
    assert_eq!(builder.id(), id);
    builder.file("second", "2\n");
    let told = builder.build(&[]);
    assert_eq!(cached(&told), 5, "{told}");
    assert_eq!(builder.shell("cat /second /uuid"), format!("2\n{uuid}"));
    builder.build(&["--build-arg", "USED=1"]);
    let again = builder.shell("cat /uuid");
    assert_ne!(again, uuid, "an argument is a variable of RUN");
    builder.file("first", "2\n");
    builder.build(&["--build-arg", "USED=1"]);
    assert_ne!(builder.shell("cat /uuid"), again, "what came before is part of a step");
    let before = builder.id();
    assert_eq!(cached(&builder.build(&["--no-cache", "--build-arg", "USED=1"])), 0);
    assert_ne!(builder.id(), before);
    // The cache may be dropped at any time.
    ok(&builder.node, &["rmi", "made"]);
    ok(&builder.node, &["system", "prune", "-a", "-f"]);
    builder.build(&[]);
    assert_clean(&builder.node);

    // With a given time, a build is a function of its input.
    builder.dockerfile("FROM @BASE\nWORKDIR /srv\nCOPY first .\nRUN mkdir -p /x/y && echo z > /x/y/z\n");
    let epoch = ["--no-cache", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
    builder.build(&epoch);
    let first = builder.id();
    std::thread::sleep(Duration::from_millis(1100));
    builder.file("first", "2\n");
    builder.build(&epoch);
    assert_eq!(builder.id(), first);
    assert_eq!(builder.shell("stat -c %Y /x/y/z /srv/first"), "1700000000\n1700000000\n");
}

#[tokio::test]
async fn errors_name_their_line() {
    let Some(builder) = Builder::start() else { return };
    builder.dockerfile("FROM @BASE\nRUN true\nRUN echo on its way && \\\n    exit 3\n");
    builder.refused(&[], &["Dockerfile:3", "exit code: 3", "#3 on its way", ">>> RUN echo on its way"]);
    builder.refused(&["-q"], &["on its way", "exit code: 3"]);
    builder.dockerfile("FROM @BASE\n\nRUNN true\n");
    builder.refused(&[], &["Dockerfile:3", "unknown instruction: RUNN"]);
    builder.dockerfile("FROM @BASE\nCOPY --form=x a b\n");
    builder.refused(&[], &["Dockerfile:2", "unknown flag: --form"]);
    builder.dockerfile("RUN true\n");
    builder.refused(&[], &["Dockerfile:1", "FROM"]);
    builder.dockerfile(&format!("FROM {PLAIN}/absent:1\n"));
    builder.refused(&[], &["Dockerfile:1", "absent"]);
    builder.dockerfile("FROM @BASE\nUSER nobody-here\nRUN true\n");
    builder.refused(&[], &["Dockerfile:3", "nobody-here"]);
    builder.dockerfile("FROM @BASE\nRUN [\"/absent\"]\n");
    builder.refused(&[], &["Dockerfile:2", "/absent"]);
    builder.dockerfile("FROM @BASE AS one\n");
    builder.refused(&["--target", "two"], &["two"]);
    builder.refused(&["-f", "/absent/Dockerfile"], &["/absent/Dockerfile"]);
    builder.refused(&["--platform", "plan9/mips"], &["plan9/mips"]);
    builder.refused(&["--network", "wide"], &["wide"]);
    assert_eq!(ok(&builder.node, &["images", "-q", "made"]), "");
    assert_clean(&builder.node);
}

#[tokio::test]
async fn flags_of_the_verb() {
    let Some(builder) = Builder::start() else { return };
    builder.dockerfile(
        "FROM @BASE AS one\nRUN echo one > /stage\nFROM one AS two\nRUN echo two > /stage\nONBUILD RUN echo child > /child\n",
    );
    let id_file = builder.node.world.dir().join("id");
    let told = builder.build(&["--target", "one", "--iidfile", id_file.to_str().unwrap(), "--label", "a=b"]);
    assert!(told.contains("built sha256:") && told.contains("named docker.io/library/made"), "{told}");
    assert_eq!(fs::read_to_string(&id_file).unwrap(), builder.id());
    assert_eq!(builder.shell("cat /stage"), "one\n");
    assert_eq!(ok(&builder.node, &["inspect", "-f", "{{.Config.Labels.a}}", "made"]), "b\n");

    let output = verb(&builder.node, &builder.arguments(&["-q"]));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), builder.id());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    // What the image has for those who build on it.
    builder.file("other/child.Dockerfile", "FROM made\nENV X=1\n");
    builder.build(&["-f", builder.context.join("other/child.Dockerfile").to_str().unwrap()]);
    assert_eq!(builder.shell("cat /stage /child; echo $X"), "two\nchild\n1\n");

    // A Dockerfile from standard input has no context; a tar is both.
    assert!(
        piped(&builder, format!("FROM {PLAIN}/busybox:1\nRUN echo piped > /stage\n").as_bytes()).is_empty()
    );
    assert_eq!(builder.shell("cat /stage"), "piped\n");
    let refused = piped(&builder, format!("FROM {PLAIN}/busybox:1\nCOPY x /\n").as_bytes());
    assert!(refused.contains("Dockerfile:2") && refused.contains("context"), "{refused}");
    builder.dockerfile("FROM @BASE\nCOPY sent /\n").file("sent", "in a tar\n");
    let packed =
        builder.node.world.command("tar").arg("-cC").arg(&builder.context).arg(".").output().unwrap();
    assert!(piped(&builder, &packed.stdout).is_empty());
    assert_eq!(builder.shell("cat /sent"), "in a tar\n");
}

/// Builds from standard input, quietly; what was said in the end, empty for success.
fn piped(builder: &Builder, input: &[u8]) -> String {
    let mut command = builder.node.daemon.command("build");
    command.args(["-q", "-t", "made", "-"]).env("PINNACE_SOCKET", &builder.node.daemon.socket);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap()
}

#[tokio::test]
async fn whoever_gives_up_leaves_nothing() {
    let Some(builder) = Builder::start() else { return };
    builder.dockerfile("FROM @BASE\nRUN true\n");
    builder.build(&[]);
    let before = settled(&builder);
    let (mut client, program) = builder.stuck();
    assert!(builder.is_running());
    program.signal(Signal::KILL);
    client.wait().unwrap();
    builder.wait_ended();
    before.settled(&builder.scope(), Duration::from_secs(10)).unwrap_or_else(|left| panic!("left: {left}"));
    assert_clean(&builder.node);
    // The image of before is still there.
    assert_eq!(builder.shell("echo fine"), "fine\n");
}

#[tokio::test]
async fn a_daemon_killed_in_a_step_leaves_nothing() {
    let Some(mut builder) = Builder::start() else { return };
    builder.dockerfile("FROM @BASE\nRUN true\n");
    builder.build(&[]);
    let before = settled(&builder).without_daemon();
    let (mut client, _) = builder.stuck();
    builder.node.daemon.kill();
    assert!(!client.wait().unwrap().success());
    builder.node.restart();
    builder.wait_ended();
    before.settled(&builder.scope(), Duration::from_secs(10)).unwrap_or_else(|left| panic!("left: {left}"));
    assert_clean(&builder.node);
    assert_eq!(directories(&builder.node.daemon.root.join("store/snapshots")), Vec::<String>::new());
    // What was done before counts, and the step can be done again.
    builder.dockerfile("FROM @BASE\nRUN true\nRUN echo again > /again\n");
    let told = builder.build(&[]);
    assert!(told.contains("CACHED"), "{told}");
    assert_eq!(builder.shell("cat /again"), "again\n");
}

/// What is there once the first build has been taken down.
fn settled(builder: &Builder) -> Ledger {
    let end = Instant::now() + Duration::from_secs(10);
    let mut ledger = Ledger::take(&builder.scope());
    loop {
        std::thread::sleep(Duration::from_millis(400));
        let now = Ledger::take(&builder.scope());
        if ledger.difference(&now).is_empty() {
            return now;
        }
        assert!(Instant::now() < end, "the node does not come to rest");
        ledger = now;
    }
}

fn directories(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}
