//! What the process of a container may do: capabilities, seccomp, masks, read-only roots, privileged.

use std::fs;

use pinnace_conformance::cri::{ContainerConfigParts as _, PodConfig as _};
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::security_profile::ProfileType;
use pinnace_cri_api::v1::*;
use tonic::Code;

/// Numbers of capabilities(7).
const CHOWN: u32 = 0;
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const SYS_TIME: u32 = 25;

/// A set of capabilities as /proc has it.
fn set(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:\t"))).expect(name);
    u64::from_str_radix(line.trim(), 16).unwrap()
}

fn has(set: u64, capability: u32) -> bool {
    set & (1 << capability) != 0
}

const STATUS: &str = "cat /proc/self/status";

#[tokio::test]
async fn capabilities_are_those_asked_for() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("capabilities", |_| {}).await;
    let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();

    let default = node.script(&pod, STATUS, |_| {}).await;
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        let set = set(&default, name);
        assert!(has(set, CHOWN) && has(set, NET_BIND_SERVICE), "{name}: {set:x}");
        assert!(!has(set, NET_ADMIN) && !has(set, SYS_ADMIN) && !has(set, SYS_TIME), "{name}: {set:x}");
    }
    // CVE-2022-24769: never inheritable by default.
    assert_eq!((set(&default, "CapInh"), set(&default, "CapAmb")), (0, 0));

    let changed = node
        .script(&pod, STATUS, |config| {
            config.capabilities().add_capabilities = list(&["NET_ADMIN", "cap_sys_time"]);
            config.capabilities().drop_capabilities = list(&["CHOWN"]);
        })
        .await;
    let effective = set(&changed, "CapEff");
    assert!(has(effective, NET_ADMIN) && has(effective, SYS_TIME) && !has(effective, CHOWN), "{effective:x}");

    let only = node
        .script(&pod, STATUS, |config| {
            config.capabilities().add_capabilities = list(&["NET_BIND_SERVICE"]);
            config.capabilities().drop_capabilities = list(&["ALL"]);
        })
        .await;
    assert_eq!(set(&only, "CapEff"), 1 << NET_BIND_SERVICE);
    assert_eq!(set(&only, "CapBnd"), 1 << NET_BIND_SERVICE);

    let all =
        node.script(&pod, STATUS, |config| config.capabilities().add_capabilities = list(&["ALL"])).await;
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap();
    let everything = (1_u64 << (last + 1)) - 1;
    assert_eq!(set(&all, "CapBnd"), everything & set(&node.world.sh(STATUS), "CapBnd"));

    // A user who is not root has them only if they are ambient.
    let user = |ambient: &'static [&'static str]| {
        move |config: &mut ContainerConfig| {
            config.security().run_as_user = Some(Int64Value { value: 1000 });
            config.capabilities().add_ambient_capabilities = list(ambient);
            config.capabilities().add_capabilities = list(ambient);
        }
    };
    assert_eq!(set(&node.script(&pod, STATUS, user(&[])).await, "CapEff"), 0);
    let ambient = node.script(&pod, STATUS, user(&["NET_BIND_SERVICE"])).await;
    assert_eq!(set(&ambient, "CapEff"), 1 << NET_BIND_SERVICE);
    assert_eq!(set(&ambient, "CapAmb"), 1 << NET_BIND_SERVICE);

    let image = node.images.image_id("busybox");
    let mut config = node.container(&pod.config, "unknown", &image, &["true"]);
    config.capabilities().add_capabilities = list(&["FLY"]);
    node.assert_fails(node.cri.create(&pod.id, &pod.config, &config).await, Code::InvalidArgument, "FLY");
}

fn profile(kind: ProfileType, reference: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: reference.into() })
}

#[tokio::test]
async fn seccomp_profile_is_the_one_asked_for() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("seccomp", |_| {}).await;
    let mode = "grep ^Seccomp: /proc/self/status | tr -dc 0-9; unshare -U true 2>/dev/null && echo ' open' || echo ' shut'";
    assert_eq!(node.script(&pod, mode, |_| {}).await, "2 shut\n", "RuntimeDefault");
    let said = node.script(&pod, mode, |c| c.security().seccomp = profile(ProfileType::Unconfined, "")).await;
    assert_eq!(said, "0 open\n", "Unconfined");
    assert_eq!(node.script(&pod, mode, |c| c.security().seccomp = None).await, "0 open\n", "absent");

    let file = node.world.dir().join("no-mkdir.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#;
    fs::write(&file, text).unwrap();
    let path = file.display().to_string();
    let script = "mkdir /made 2>&1 || true; grep ^Seccomp: /proc/self/status | tr -dc 0-9";
    let said =
        node.script(&pod, script, |c| c.security().seccomp = profile(ProfileType::Localhost, &path)).await;
    assert!(said.contains("Function not implemented") && said.trim_end().ends_with('2'), "{said}");

    let file = node.world.dir().join("kill-mkdir.json");
    fs::write(&file, text.replace(r#""SCMP_ACT_ERRNO","errnoRet":38"#, r#""SCMP_ACT_KILL_PROCESS""#))
        .unwrap();
    let image = node.images.image_id("busybox");
    let killed = node.container(&pod.config, "killed", &image, &["mkdir", "/made"]);
    let path = file.display().to_string();
    let killed = node
        .run_to_end(&pod, killed, |c| c.security().seccomp = profile(ProfileType::Localhost, &path))
        .await
        .status;
    assert_eq!((killed.exit_code, &*killed.reason), (128 + 31, "seccomp killed"), "{killed:?}");

    fs::write(node.world.dir().join("broken.json"), "{").unwrap();
    let broken = node.world.dir().join("broken.json").display().to_string();
    let absent = node.world.dir().join("absent.json").display().to_string();
    for (kind, reference, subject) in [
        (ProfileType::Localhost, "", "localhost_ref"),
        (ProfileType::RuntimeDefault, "x.json", "x.json"),
        (ProfileType::Localhost, &*absent, &*absent),
        (ProfileType::Localhost, &*broken, &*broken),
    ] {
        let mut config = node.container(&pod.config, "wrong", &image, &["true"]);
        config.security().seccomp = profile(kind, reference);
        let (code, text) =
            pinnace_conformance::cri::failure(node.cri.create(&pod.id, &pod.config, &config).await);
        assert!([Code::InvalidArgument, Code::NotFound].contains(&code), "{reference}: {code:?} {text}");
        assert!(text.contains(subject), "{subject} is not named in {text}");
    }
}

#[tokio::test]
async fn no_new_privileges_is_set_when_asked() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("nnp", |_| {}).await;
    let script = "grep NoNewPrivs /proc/self/status | tr -dc 0-9";
    let user = |nnp: bool| {
        move |config: &mut ContainerConfig| {
            config.security().run_as_user = Some(Int64Value { value: 1000 });
            config.security().no_new_privs = nnp;
        }
    };
    assert_eq!(node.script(&pod, script, user(false)).await.trim(), "0");
    assert_eq!(node.script(&pod, script, user(true)).await.trim(), "1");
}

#[tokio::test]
async fn root_can_be_read_only() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let volume = node.world.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    let pod = node.run_pod("read-only", |_| {}).await;
    let script = "for f in /f /etc/f /etc/hostname /etc/resolv.conf; do (echo x >>$f) 2>&1 || true; done
                  echo x >/new/mount/point/f && echo x >/dev/shm/f && echo writable";
    let said = node
        .script(&pod, script, |config| {
            config.security().readonly_rootfs = true;
            config.mount(&volume, "/new/mount/point");
        })
        .await;
    assert_eq!(said.matches("Read-only file system").count(), 4, "{said}");
    assert!(said.ends_with("writable\n"), "{said}");
}

#[tokio::test]
async fn masks_are_those_asked_for() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("masks", |_| {}).await;
    let script = "wc -c </proc/timer_list 2>/dev/null || echo unreadable; ls /sys/firmware | wc -l
                  (echo 1 >/proc/sys/kernel/domainname) 2>&1 || true";
    let said = node.script(&pod, script, |_| {}).await;
    let mut lines = said.lines();
    assert!(["0", "unreadable"].contains(&lines.next().unwrap()), "{said}");
    assert_eq!(lines.next(), Some("0"), "{said}");
    assert!(lines.next().unwrap_or_default().contains("Read-only file system"), "{said}");
    let own = node
        .script(
            &pod,
            "wc -c </etc/passwd; ls /volume | wc -l; (echo >/etc/group) 2>&1 || true; ls /nothing 2>&1",
            |config| {
                let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
                config.security().masked_paths = list(&["/etc/passwd", "/volume", "/not/there"]);
                config.security().readonly_paths = list(&["/etc/group", "/not/there/either"]);
                config.command[2].push_str(" || true");
            },
        )
        .await;
    assert!(own.starts_with("0\n0\n") && own.contains("Read-only file system"), "{own}");
    let open = node
        .script(&pod, "ls /sys/firmware | wc -l; wc -c </proc/timer_list", |config| {
            config.security().masked_paths.clear();
            config.security().readonly_paths.clear();
        })
        .await;
    let firmware = fs::read_dir("/sys/firmware").map(|entries| entries.count()).unwrap_or(0);
    assert_eq!(open.lines().next(), Some(&*firmware.to_string()), "unmasked: {open}");
}

#[tokio::test]
async fn host_is_not_visible() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("hidden", |_| {}).await;
    let marker = node.world.dir().display().to_string();
    let mounts = node.script(&pod, "cat /proc/self/mountinfo", |_| {}).await;
    let sources: Vec<_> =
        mounts.lines().filter(|line| !line.contains(" overlay ") && line.contains(&marker)).collect();
    for line in sources {
        let at = line.split(' ').nth(4).unwrap_or_default();
        assert!(["/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/dev/shm"].contains(&at), "{line}");
    }
    let cgroup = node.script(&pod, "cat /proc/self/cgroup", |_| {}).await;
    assert!(!cgroup.contains("kubepods"), "the node's cgroups are visible:\n{cgroup}");
    let descriptors = node.script(&pod, "ls /proc/1/fd; true", |_| {}).await;
    let descriptors: Vec<_> = descriptors.split_whitespace().collect();
    assert_eq!(descriptors, ["0", "1", "2"], "a descriptor leaked");
    let devices = node.script(&pod, "ls /dev", |_| {}).await;
    for device in devices.split_whitespace() {
        let usual = [
            "console",
            "core",
            "fd",
            "full",
            "mqueue",
            "null",
            "ptmx",
            "pts",
            "random",
            "shm",
            "stderr",
            "stdin",
            "stdout",
            "termination-log",
            "tty",
            "urandom",
            "zero",
        ];
        assert!(usual.contains(&device), "/dev/{device}");
    }
    let block = node
        .script(&pod, "mknod /x b 7 0 2>/dev/null; dd if=/x of=/dev/null count=1 2>&1 || true", |_| {})
        .await;
    assert!(block.contains("Operation not permitted") || block.contains("No such file"), "{block}");
}

#[tokio::test]
async fn privileged_has_everything_and_only_in_a_privileged_pod() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let plain = node.run_pod("plain", |_| {}).await;
    let mut config = node.container(&plain.config, "main", &image, &["true"]);
    config.security().privileged = true;
    let (code, text) =
        pinnace_conformance::cri::failure(node.cri.create(&plain.id, &plain.config, &config).await);
    assert!(
        [Code::InvalidArgument, Code::FailedPrecondition, Code::PermissionDenied].contains(&code),
        "{code:?}"
    );
    assert!(text.contains("privileged"), "{text}");

    let pod = node.run_pod("privileged", |config| config.security().privileged = true).await;
    let script = "cat /proc/self/status; mkdir /m && mount -t tmpfs tmpfs /m && echo mounted
                  echo 1 >/proc/sys/kernel/domainname && echo sysctl; ls -d /dev/kmsg";
    let said = node
        .script(&pod, script, |config| {
            config.security().privileged = true;
            config.security().masked_paths.clear();
            config.security().readonly_paths.clear();
        })
        .await;
    assert_eq!(set(&said, "CapEff"), set(&node.world.sh(STATUS), "CapBnd"));
    assert!(said.contains("Seccomp:\t0\n"), "{said}");
    assert!(said.contains("mounted\nsysctl\n"), "{said}");
}

/// The deprecated strings mean what the typed fields mean.
#[tokio::test]
async fn profiles_can_be_named_the_old_way() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("old", |_| {}).await;
    let mode = "grep ^Seccomp: /proc/self/status | tr -dc 0-9";
    #[allow(deprecated)]
    let old = |seccomp: &str, apparmor: &str| {
        let (seccomp, apparmor) = (seccomp.to_owned(), apparmor.to_owned());
        move |config: &mut ContainerConfig| {
            config.security().seccomp = None;
            config.security().seccomp_profile_path = seccomp;
            config.security().apparmor_profile = apparmor;
        }
    };
    let file = node.world.dir().join("all.json");
    fs::write(&file, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
    let local = format!("localhost/{}", file.display());
    for (name, filtered) in
        [("unconfined", "0"), ("runtime/default", "2"), ("docker/default", "2"), (&*local, "2")]
    {
        assert_eq!(node.script(&pod, mode, old(name, "unconfined")).await, filtered, "{name}");
    }
    let image = node.images.image_id("busybox");
    let mut config = node.container(&pod.config, "wrong", &image, &["true"]);
    old("whatever", "")(&mut config);
    node.assert_fails(
        node.cri.create(&pod.id, &pod.config, &config).await,
        Code::InvalidArgument,
        "whatever",
    );
    let mut config = node.container(&pod.config, "wrong", &image, &["true"]);
    old("", "whatever")(&mut config);
    node.assert_fails(
        node.cri.create(&pod.id, &pod.config, &config).await,
        Code::InvalidArgument,
        "whatever",
    );
}

/// AppArmor fails closed: whoever names a profile gets it or does not run.
#[tokio::test]
async fn apparmor_profile_is_in_force_or_refused() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let pod = node.run_pod("apparmor", |_| {}).await;
    let current = "cat /proc/self/attr/current 2>/dev/null || echo none";
    let unconfined = |config: &mut ContainerConfig| {
        config.security().apparmor = profile(ProfileType::Unconfined, "");
    };
    let said = node.script(&pod, current, unconfined).await;
    assert!(["none", "unconfined"].contains(&said.trim_end_matches(['\0', '\n'])), "{said}");
    let mut config = node.container(&pod.config, "named", &image, &["true"]);
    config.security().apparmor = profile(ProfileType::Localhost, "pinnace-no-such-profile");
    let answer = node.run_in(&pod.id, &pod.config, &config).await;
    node.assert_fails(answer, Code::FailedPrecondition, "pinnace-no-such-profile");
    let mut config = node.container(&pod.config, "empty", &image, &["true"]);
    config.security().apparmor = profile(ProfileType::Localhost, "");
    node.assert_fails(
        node.cri.create(&pod.id, &pod.config, &config).await,
        Code::InvalidArgument,
        "localhost_ref",
    );
}

#[tokio::test]
async fn seccomp_file_is_a_short_regular_one_below_its_root() {
    let Some(node) = Node::start_in(|world, config| {
        format!("{config}[container]\nseccomp_profile_root = {:?}\n", world.dir().join("profiles"))
    }) else {
        return;
    };
    let image = node.image("busybox").await;
    let pod = node.run_pod("files", |_| {}).await;
    let root = node.world.dir().join("profiles");
    fs::create_dir_all(root.join("sub")).unwrap();
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#;
    fs::write(root.join("sub/good.json"), text).unwrap();
    fs::write(node.world.dir().join("outside.json"), text).unwrap();
    std::os::unix::fs::symlink("sub/good.json", root.join("link.json")).unwrap();
    std::os::unix::fs::symlink("../outside.json", root.join("out.json")).unwrap();
    fs::write(root.join("large.json"), " ".repeat((1 << 20) + 1)).unwrap();
    fs::write(root.join("empty.json"), "").unwrap();
    node.world.sh(&format!("mkfifo {}", root.join("pipe.json").display()));
    let absolute = root.join("sub/good.json").display().to_string();
    for good in ["sub/good.json", "link.json", &absolute] {
        let script = "mkdir /made 2>&1 || true";
        let said =
            node.script(&pod, script, |c| c.security().seccomp = profile(ProfileType::Localhost, good)).await;
        assert!(said.contains("Function not implemented"), "{good}: {said}");
    }
    let outside = node.world.dir().join("outside.json").display().to_string();
    let absent = root.join("absent.json").display().to_string();
    for (wrong, code, said) in [
        ("out.json", Code::InvalidArgument, "is not below"),
        ("../outside.json", Code::InvalidArgument, "is not below"),
        (&*outside, Code::InvalidArgument, "is not below"),
        ("/dev/zero", Code::InvalidArgument, "is not below"),
        ("sub", Code::InvalidArgument, "regular"),
        ("pipe.json", Code::InvalidArgument, "regular"),
        ("large.json", Code::InvalidArgument, "1 MiB"),
        ("empty.json", Code::InvalidArgument, "empty"),
        (&*absent, Code::NotFound, "absent.json"),
    ] {
        let mut config = node.container(&pod.config, "wrong", &image, &["true"]);
        config.security().seccomp = profile(ProfileType::Localhost, wrong);
        node.assert_fails(node.cri.create(&pod.id, &pod.config, &config).await, code, said);
    }
}

/// The whole form: argument rules and what depends on capabilities; the filter holds in execs, too.
#[tokio::test]
async fn seccomp_rules_look_at_arguments_and_capabilities() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    let pod = node.run_pod("rules", |_| {}).await;
    let file = node.world.dir().join("rules.json");
    // kill(2) with signal 10 only, and sethostname(2) unless the container has CAP_SYS_ADMIN.
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[
        {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]},
        {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],
        "syscalls":[
        {"names":["kill"],"action":"SCMP_ACT_ERRNO","errnoRet":38,
         "args":[{"index":1,"value":10,"op":"SCMP_CMP_EQ"}]},
        {"names":["sethostname"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN"]}},
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"includes":{"minKernel":"99.0"}},
        {"names":["rmdir","unlinkat"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"includes":{"minKernel":"3.0"}}]}"#;
    fs::write(&file, text).unwrap();
    let path = file.display().to_string();
    let script = "kill -12 $$ 2>/dev/null & wait; trap : USR1 USR2; kill -USR1 $$ 2>&1 || true; kill -USR2 $$ && echo other
                  mkdir /made && echo made; rmdir /made 2>&1 || true; hostname x 2>&1 || true";
    let said =
        node.script(&pod, script, |c| c.security().seccomp = profile(ProfileType::Localhost, &path)).await;
    let errors = said.matches("Function not implemented").count();
    assert!(errors == 3 && said.contains("other\nmade\n"), "{said}");
    let said = node
        .script(&pod, "hostname x 2>&1 || true", |config| {
            config.security().seccomp = profile(ProfileType::Localhost, &path);
            config.capabilities().add_capabilities = vec!["SYS_ADMIN".into()];
        })
        .await;
    assert!(!said.contains("Function not implemented"), "{said}");
}

/// With SELinux the label is in force and the volume that is to be relabelled is; without, it has no meaning, unless the
/// node is told that it must have one.
#[tokio::test]
async fn selinux_label_is_in_force_or_without_meaning() {
    let Some(node) = Node::start() else { return };
    let image = node.image("busybox").await;
    let label = |kind: &str, level: &str| {
        Some(SeLinuxOption { r#type: kind.into(), level: level.into(), ..SeLinuxOption::default() })
    };
    let pod =
        node.run_pod("selinux", |config| config.security().selinux_options = label("", "s0:c7,c8")).await;
    let volume = node.world.dir().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "x").unwrap();
    let script = "cat /volume/file; cat /proc/self/attr/current 2>/dev/null | tr -d '\\0' || true";
    let said = node
        .script(&pod, script, |config| {
            config.security().selinux_options = label("spc_t", "");
            config.mount(&volume, "/volume").selinux_relabel = true;
        })
        .await;
    let mut value = [0_u8; 256];
    let labelled = rustix::fs::getxattr(volume.join("file"), "security.selinux", &mut value[..]);
    let labelled = labelled.map(|length| String::from_utf8_lossy(&value[..length]).into_owned());
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        assert!(said.ends_with("system_u:system_r:spc_t:s0:c7,c8"), "{said}");
        assert!(
            labelled.unwrap().contains(":object_r:") && String::from_utf8_lossy(&value).contains("s0:c7,c8")
        );
        return;
    }
    assert!(!said.contains("spc_t"), "{said}");
    assert!(labelled.is_err(), "a file was relabelled without SELinux");
    for (wrong, named) in
        [(label("a b", ""), "selinux_options.type"), (label("", "s0;x"), "selinux_options.level")]
    {
        let mut config = node.container(&pod.config, "wrong", &image, &["true"]);
        config.security().selinux_options = wrong.clone();
        node.assert_fails(node.cri.create(&pod.id, &pod.config, &config).await, Code::InvalidArgument, named);
        let mut config = node.pod("wrong");
        config.security().selinux_options = wrong;
        node.assert_fails(node.cri.run_pod(&config).await, Code::InvalidArgument, named);
    }
}

#[tokio::test]
async fn selinux_label_can_be_made_to_matter() {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return;
    }
    let change = |config: String| config + "[container]\nselinux = \"required\"\n";
    let Some(node) = Node::start_changed(change) else { return };
    let before = node.baseline().await;
    let image = node.images.image_id("busybox");
    let spc = Some(SeLinuxOption { r#type: "spc_t".into(), ..SeLinuxOption::default() });
    let mut config = node.pod("labelled");
    config.security().selinux_options = spc.clone();
    node.assert_fails(node.cri.run_pod(&config).await, Code::FailedPrecondition, "SELinux");
    let pod = node.run_pod("plain", |_| {}).await;
    let mut config = node.container(&pod.config, "main", &image, &["true"]);
    config.security().selinux_options = spc;
    node.assert_fails(
        node.cri.create(&pod.id, &pod.config, &config).await,
        Code::FailedPrecondition,
        "SELinux",
    );
    assert_eq!(node.cri.containers().await.unwrap(), []);
    node.remove(&pod.id).await;
    node.assert_nothing_left(&before);
}
