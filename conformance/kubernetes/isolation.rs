//! Namespaces and identities of a pod.

use std::net::SocketAddr;

use serde_json::json;

use crate::containers::mounted;
use crate::ground::{Ground, busybox, idle};
use crate::kubelet::ADDRESS;

pub async fn a_shared_pid_namespace(ground: &Ground) {
    let spec = json!({
        "shareProcessNamespace": true,
        "containers": [busybox("one", "echo one >/tmp/mark; exec sleep 8642"), idle("two")],
    });
    ground.deploy("sharepid", spec).await;
    ground.ready("sharepid").await;
    let pid = ground
        .sh(
            "sharepid",
            "two",
            "for p in /proc/[0-9]*; do ! grep -q 864[2] $p/cmdline || echo ${p#/proc/}; done",
        )
        .await;
    let pid = pid.trim();
    assert_ne!(pid, "1");
    // Processes of the other container are seen, with their files, and can be signalled.
    assert_eq!(ground.sh("sharepid", "two", &format!("cat /proc/{pid}/root/tmp/mark")).await, "one\n");
    ground.sh("sharepid", "two", &format!("kill -KILL {pid}")).await;
    ground.until("sharepid", "a restart", |seen| (seen.restarts("one") >= 1).then_some(())).await;
    let seen = ground.ready("sharepid").await;
    assert_eq!(seen.restarts("two"), 0, "{seen:?}");
    ground.remove("sharepid").await;
}

pub async fn a_private_pid_namespace(ground: &Ground) {
    ground.deploy("privatepid", json!({ "containers": [idle("one"), idle("two")] })).await;
    ground.ready("privatepid").await;
    let seen = ground.sh("privatepid", "one", "echo $(cat /proc/1/comm) $(ls -d /proc/[0-9]* | wc -l)").await;
    let (name, count) = seen.trim().split_once(' ').unwrap();
    assert_eq!(name, "sh");
    assert!(count.parse::<u32>().unwrap() <= 6, "{seen}");
    // Network, IPC and UTS are shared.
    for kind in ["net", "ipc", "uts"] {
        let script = format!("readlink /proc/self/ns/{kind}");
        let (one, two) =
            (ground.sh("privatepid", "one", &script).await, ground.sh("privatepid", "two", &script).await);
        assert_eq!(one, two);
    }
    assert_eq!(ground.sh("privatepid", "two", "hostname").await, "privatepid-node\n");
    let hosts = ground.sh("privatepid", "two", "cat /etc/hosts").await;
    let ip = ground.now("privatepid").ip().to_string();
    assert!(hosts.lines().any(|line| line.starts_with(&ip) && line.contains("privatepid-node")), "{hosts}");
    ground.remove("privatepid").await;
}

pub async fn user_namespaces(ground: &Ground) {
    let script = "awk '{ print $1, $3 }' /proc/self/uid_map; echo x >/v/x; echo x >/m/x; stat -c %u:%g /v/x /m/x /etc/passwd
        id -u; [ \"$(awk '{ print $2 }' /proc/self/uid_map)\" -ge 65536 ]; chown 1000:1000 /v/x; stat -c %u /v/x";
    let spec = |name: &str| {
        json!({
            "hostUsers": false,
            "restartPolicy": "Never",
            "volumes": [
                { "name": "v", "emptyDir": {} }, { "name": "m", "emptyDir": { "medium": "Memory" } },
            ],
            "containers": [mounted(mounted(busybox(name, script), "v", "/v"), "m", "/m")],
        })
    };
    for name in ["userns-one", "userns-two"] {
        ground.deploy(name, spec("main")).await;
    }
    for name in ["userns-one", "userns-two"] {
        let seen = ground.ended(name).await;
        let output = ground.output(name, "main");
        assert_eq!(seen.phase(), "Succeeded", "{output}\n{seen:?}");
        assert_eq!(output, "0 65536\n0:0\n0:0\n0:0\n0\n1000\n", "{name}");
    }
    for name in ["userns-one", "userns-two"] {
        ground.remove(name).await;
    }
}

pub async fn users_groups_and_capabilities(ground: &Ground) {
    let script = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' ')
        stat -c %g:%a /v; grep CapEff /proc/self/status | cut -f2; grep NoNewPrivs /proc/self/status | cut -f2
        grep '^Seccomp:' /proc/self/status | cut -f2; sysctl -n net.ipv4.ip_unprivileged_port_start";
    let output = ground
        .script("users", script, |spec| {
            spec["securityContext"] = json!({
                "runAsUser": 1234, "runAsGroup": 2345, "fsGroup": 3456, "supplementalGroups": [4567],
                "supplementalGroupsPolicy": "Strict", "seccompProfile": { "type": "RuntimeDefault" },
                "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "80" }],
            });
            spec["volumes"] = json!([{ "name": "v", "emptyDir": {} }]);
            spec["containers"][0] = mounted(spec["containers"][0].clone(), "v", "/v");
            spec["containers"][0]["securityContext"] =
                json!({ "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } });
        })
        .await;
    assert_eq!(output, "1234 2345 2345 3456 4567\n3456:2777\n0000000000000000\n1\n2\n80\n");
}

pub async fn host_network(ground: &Ground) {
    let mut container = idle("main");
    container["ports"] = json!([{ "containerPort": 8123 }]);
    ground.deploy("hostnet", json!({ "hostNetwork": true, "containers": [container] })).await;
    ground.ready("hostnet").await;
    let address = ground.sh("hostnet", "main", "ip -4 address show node0").await;
    assert!(address.contains(ADDRESS), "{address}");
    let namespace = ground.sh("hostnet", "main", "readlink /proc/self/ns/net").await;
    assert_eq!(namespace, ground.world.sh("readlink /proc/self/ns/net"));
    ground.remove("hostnet").await;
}

pub async fn host_ports(ground: &Ground) {
    let mut container =
        busybox("main", "mkdir /www; echo served >/www/index.html; exec httpd -f -p 80 -h /www");
    container["ports"] = json!([
        { "containerPort": 80, "hostPort": 18080 },
        { "containerPort": 80, "hostPort": 18081, "hostIP": ADDRESS },
    ]);
    ground.deploy("hostport", json!({ "containers": [container] })).await;
    let seen = ground.ready("hostport").await;
    let fetch =
        |address: String| format!("curl --silent --show-error --noproxy '*' --max-time 10 http://{address}/");
    for address in [
        format!("{ADDRESS}:18080"),
        format!("{ADDRESS}:18081"),
        "127.0.0.1:18080".into(),
        seen.ip().to_string(),
    ] {
        assert_eq!(ground.world.sh(&fetch(address.clone())), "served\n", "{address}");
    }
    ground.remove("hostport").await;
    let address: SocketAddr = format!("{ADDRESS}:18080").parse().unwrap();
    assert!(ground.world.connect(address).is_err(), "the port is open after its pod");
}
