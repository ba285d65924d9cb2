//! Plugins that are programs: a misbehaving one of ours in every way there is, and whole chains with their ledger.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pinnace_cni::{Chain, ChainError, Invocation, Ledger, NetworkList, Owed, PluginError, Plugins};
use serde_json::{Value, json};

/// Writes a line for every call, then behaves as the key `mode` of its configuration says for ADD, `del` for DEL.
const PLUGIN: &str = r#"#!/bin/sh
dir=${0%/*}
input=$(cat)
name=${0##*/}
printf '%s %s %s\n' "$CNI_COMMAND" "$name" "$CNI_NETNS" >>"$dir/calls"
printf '%s' "$input" >"$dir/$CNI_COMMAND-$name.json"
mode=$(printf '%s' "$input" | sed -n 's/.*"'"$CNI_COMMAND"'":"\([a-z-]*\)".*/\1/p')
result='{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.1.2.3/24","interface":0}]}'
case $mode in
'') [ "$CNI_COMMAND" != ADD ] || echo "$result" ;;
hang) echo $$ >"$dir/pid"; sleep 300 ;;
hang-deaf) trap '' TERM; (trap '' TERM; echo $$ >"$dir/pid"; sleep 300) ;;
grandchild) sleep 300 & echo $! >"$dir/pid"; echo "$result" ;;
garbage) echo 'eth0 is up' ;;
partial) printf '{"cniVersion":"1.0.0","ips":[{"addr' ;;
empty) ;;
wrong-type) echo '{"cniVersion":"1.0.0","ips":"10.1.2.3/24"}' ;;
flood) exec yes ;;
flood-errors) yes | head -c 3000000 >&2; echo "$result" ;;
crash) kill -SEGV $$ ;;
crash-after) echo "$result"; kill -KILL $$ ;;
words) echo 'no route to the moon' >&2; exit 3 ;;
refused) echo '{"cniVersion":"1.0.0","code":11,"msg":"busy","details":"come back"}'; exit 1 ;;
refused-well) echo '{"cniVersion":"1.0.0","code":100,"msg":"own trouble"}' ;;
unknown) echo '{"code":3,"msg":"no such container"}'; exit 1 ;;
esac
"#;

struct Ground {
    dir: tempfile::TempDir,
    chain: Chain,
}

impl Ground {
    fn new(timeout: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for name in ["one", "two"] {
            fs::write(bin.join(name), PLUGIN).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let ledger = Ledger::open(dir.path().join("results")).unwrap();
        let chain = Chain::new(Plugins::new(vec![dir.path().join("none"), bin]), ledger, timeout);
        Self { dir, chain }
    }

    fn patient() -> Self {
        Self::new(Duration::from_secs(20))
    }

    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("bin/calls")).unwrap_or_default();
        text.lines().map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    }

    fn told(&self, call: &str) -> Value {
        let path = self.dir.path().join("bin").join(format!("{call}.json"));
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn owed(&self) -> usize {
        let (owed, broken) = self.chain.ledger().read().unwrap();
        assert!(broken.is_empty(), "{broken:?}");
        owed.len()
    }

    /// The process that a plugin left its number of is gone.
    async fn assert_killed(&self) {
        let pid = fs::read_to_string(self.dir.path().join("bin/pid")).unwrap();
        let stat = PathBuf::from(format!("/proc/{}/stat", pid.trim()));
        let end = Instant::now() + Duration::from_secs(5);
        while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < end, "process {} lives", pid.trim());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn list(version: &str, one: Value, two: Value) -> Arc<NetworkList> {
    let mut plugins = vec![
        json!({"type": "one"}),
        json!({"type": "two", "capabilities": {"portMappings": true, "dns": false}}),
    ];
    for (plugin, more) in plugins.iter_mut().zip([one, two]) {
        plugin.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    let text = json!({"cniVersion": version, "name": "net", "plugins": plugins}).to_string();
    Arc::new(NetworkList::parse_list(text.as_bytes(), Path::new("10-net.conflist")).unwrap())
}

fn invocation() -> Invocation {
    Invocation {
        container_id: "pod1".to_owned(),
        netns: Some("/proc/self/ns/net".into()),
        ifname: "eth0".to_owned(),
        args: vec![("IgnoreUnknown".to_owned(), "1".to_owned())],
        capability_args: [
            ("portMappings".to_owned(), json!([{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}])),
            ("dns".to_owned(), json!({"servers": ["10.0.0.10"]})),
        ]
        .into(),
    }
}

#[tokio::test]
async fn add_in_order_del_in_reverse_with_the_same_words() {
    let ground = Ground::patient();
    let list = list("1.0.0", json!({"keep": {"me": 1}, "runtimeConfig": "mine", "cni.dev/x": 1}), json!({}));
    let owed = ground.chain.add(list, invocation()).await.unwrap();
    assert_eq!(owed.result.as_ref().unwrap().addresses_of("eth0").count(), 1);
    assert_eq!(ground.owed(), 1);
    let one = ground.told("ADD-one");
    assert_eq!(one, json!({"type": "one", "cniVersion": "1.0.0", "name": "net", "keep": {"me": 1}}));
    let two = ground.told("ADD-two");
    assert_eq!(two["runtimeConfig"], json!({"portMappings": invocation().capability_args["portMappings"]}));
    assert_eq!(two["prevResult"]["ips"][0]["address"], "10.1.2.3/24");
    assert!(two.get("capabilities").is_none());
    ground.chain.check(&owed).await.unwrap();

    // A later daemon knows all of it from the ledger alone.
    let (found, _) = ground.chain.ledger().read().unwrap();
    assert_eq!(found, [owed]);
    ground.chain.del(&found[0]).await.unwrap();
    assert_eq!(ground.told("DEL-one")["prevResult"], two["prevResult"]);
    assert_eq!(ground.calls(), ["ADD one", "ADD two", "CHECK one", "CHECK two", "DEL two", "DEL one"]);
    assert_eq!(ground.owed(), 0);
}

#[tokio::test]
async fn every_failure_is_told_and_deleted() {
    for (mode, expected) in [
        ("garbage", "plugin two returned \"eth0 is up\""),
        ("partial", "plugin two returned \"{"),
        ("empty", "plugin two returned nothing"),
        ("wrong-type", "plugin two returned"),
        ("flood", "wrote more than 1048576 bytes and was killed"),
        ("crash", "signal: 11"),
        ("crash-after", "signal: 9"),
        ("words", "plugin two exit status: 3: no route to the moon"),
        ("refused", "plugin two: busy; come back (code 11)"),
        ("refused-well", "plugin two: own trouble (code 100)"),
    ] {
        let ground = Ground::patient();
        let failed = ground.chain.add(list("1.0.0", json!({}), json!({"ADD": mode})), invocation()).await;
        let Err(ChainError::Network(failure)) = failed else { panic!("{mode}: {failed:?}") };
        assert_eq!(failure.to_string(), "ADD of network net");
        assert!(failure.source.to_string().contains(expected), "{mode}: {}", failure.source);
        assert_eq!(ground.calls(), ["ADD one", "ADD two", "DEL two", "DEL one"], "{mode}");
        assert_eq!(ground.owed(), 0, "{mode}");
    }
}

#[tokio::test]
async fn too_many_words_beside_a_result_are_no_failure() {
    let ground = Ground::patient();
    let list = list("1.0.0", json!({"ADD": "flood-errors"}), json!({}));
    ground.chain.add(list, invocation()).await.unwrap();
}

#[tokio::test]
async fn hanging_plugin_is_killed_with_all_of_its_group() {
    for mode in ["hang", "hang-deaf"] {
        let ground = Ground::new(Duration::from_millis(1500));
        let began = Instant::now();
        let failed = ground.chain.add(list("1.0.0", json!({"ADD": mode}), json!({})), invocation()).await;
        assert!(
            matches!(&failed, Err(ChainError::Network(failure)) if matches!(failure.source, PluginError::TimedOut { .. })),
            "{failed:?}"
        );
        assert!(began.elapsed() < Duration::from_secs(10));
        ground.assert_killed().await;
    }
}

#[tokio::test]
async fn grandchild_that_holds_the_output_does_not_hold_us() {
    let ground = Ground::patient();
    let began = Instant::now();
    ground.chain.add(list("1.0.0", json!({"ADD": "grandchild"}), json!({})), invocation()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    ground.assert_killed().await;
}

#[tokio::test]
async fn del_that_fails_is_owed_until_it_succeeds() {
    let ground = Ground::patient();
    let failing = list("1.0.0", json!({}), json!({"DEL": "words"}));
    let mut owed = ground.chain.add(failing, invocation()).await.unwrap();
    for round in 1..3 {
        ground.chain.del(&owed).await.unwrap_err();
        assert_eq!((ground.owed(), ground.chain.failed_dels()), (1, round));
    }
    // The plugin behind the one that fails is called all the same.
    assert!(ground.calls().ends_with(&["DEL two".to_owned(), "DEL one".to_owned()]));
    owed.list = NetworkList::clone(&list("1.0.0", json!({}), json!({"DEL": "unknown"})));
    ground.chain.del(&owed).await.unwrap();
    assert_eq!(ground.owed(), 0);
}

#[tokio::test]
async fn missing_plugin_names_where_it_was_looked_for() {
    let ground = Ground::patient();
    let list = NetworkList::parse_list(
        br#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"absent"}]}"#,
        Path::new("x"),
    );
    let failed = ground.chain.add(Arc::new(list.unwrap()), invocation()).await.unwrap_err();
    let ChainError::Network(failure) = failed else { panic!("{failed:?}") };
    assert!(failure.source.to_string().contains("plugin absent is in none of"), "{}", failure.source);
    // Whether an earlier plugin of that name did something nobody knows: the DEL is owed.
    assert_eq!(ground.owed(), 1);
}

#[tokio::test]
async fn namespace_that_is_gone_is_not_named() {
    let ground = Ground::patient();
    let mut told = invocation();
    let path = ground.dir.path().join("netns");
    fs::write(&path, "").unwrap();
    told.netns = Some(path.clone());
    let owed = ground.chain.add(list("1.0.0", json!({}), json!({})), told).await.unwrap();
    fs::rename(&path, ground.dir.path().join("elsewhere")).unwrap();
    fs::write(&path, "another namespace under the same name").unwrap();
    ground.chain.del(&owed).await.unwrap();
    let calls = fs::read_to_string(ground.dir.path().join("bin/calls")).unwrap();
    assert!(calls.ends_with("DEL two \nDEL one \n"), "{calls}");
}

#[tokio::test]
async fn gc_and_status_are_asked_only_of_those_that_know_them() {
    let ground = Ground::patient();
    let old = list("1.0.0", json!({}), json!({}));
    let (list_of_owed, invocation) = (NetworkList::clone(&old), invocation());
    let owed = Owed { list: list_of_owed, invocation, netns: None, result: None };
    ground.chain.ledger().write(&owed, false).unwrap();
    assert_eq!(ground.chain.ledger().of("pod1").unwrap().0, [owed]);
    assert_eq!(ground.chain.ledger().of("pod").unwrap().0, []);
    assert!(ground.chain.gc(&old).await.unwrap().unwrap().is_empty());
    ground.chain.status(&old).await.unwrap();
    assert_eq!(ground.calls(), [] as [String; 0]);
    let new = list("1.1.0", json!({"GC": "words"}), json!({"STATUS": "refused"}));
    assert_eq!(ground.chain.gc(&new).await.unwrap().unwrap().len(), 1);
    assert_eq!(ground.calls(), ["GC one", "GC two"]);
    let told = &ground.told("GC-two")["cni.dev/valid-attachments"];
    assert_eq!(*told, json!([{"containerID": "pod1", "ifname": "eth0"}]));
    assert_eq!(ground.chain.status(&new).await.unwrap_err().source.code(), Some(11));
}
