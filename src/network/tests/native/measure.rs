//! How long the plugins take by their programs and natively: prints figures, decides nothing.
//!
//! `cargo test --release -p pinnace-network --test native measure -- --ignored --nocapture`

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use pinnace_network::native::{Call, Native};
use serde_json::{Value, json};

use crate::cases::{port_mappings, with_data_dir};
use crate::executor::{By, List, Target, add, config, del, programs_installed};
use crate::world::{foreign_netns, machine, outside};

const PODS: usize = 40;

#[test]
#[ignore = "prints figures"]
fn measure() {
    if !programs_installed() {
        return;
    }
    let mappings = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    for (what, mappings) in [("without host ports", json!([])), ("with a host port", mappings)] {
        let list = port_mappings(&json!({}), mappings);
        let (mut native, mut programs) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
        machine(|| {
            let dir = tempfile::tempdir().unwrap();
            let list = with_data_dir(&list, dir.path());
            let _outside = outside();
            let plugins = Native::open().unwrap();
            for round in 0..PODS {
                let pod = foreign_netns();
                let netns = format!("/proc/{}/fd/{}", std::process::id(), pod.as_raw_fd());
                let target = Target { container: format!("pod{round}"), netns: netns.into() };
                // The programs take long: a few of them are enough.
                if round % 8 == 0 {
                    let started = Instant::now();
                    let result = add(By::Programs, &list, &target).unwrap();
                    programs.0.push(started.elapsed());
                    let started = Instant::now();
                    del(By::Programs, &list, &target, &result).unwrap();
                    programs.1.push(started.elapsed());
                }
                let started = Instant::now();
                let result = added(&plugins, &list, &target);
                native.0.push(started.elapsed());
                let started = Instant::now();
                for plugin in list.plugins.iter().rev() {
                    plugins.del(call(&target, &config(&list, plugin, &result))).unwrap();
                }
                native.1.push(started.elapsed());
            }
        });
        for (by, (adds, dels)) in [("programs", programs), ("native", native)] {
            println!("{what}, {by}: ADD {}, DEL {}", figures(adds), figures(dels));
        }
    }
}

fn added(plugins: &Native, list: &List, target: &Target) -> Value {
    let mut previous = Value::Null;
    for plugin in &list.plugins {
        previous = plugins.add(call(target, &config(list, plugin, &previous))).unwrap();
    }
    previous
}

fn call<'a>(target: &'a Target, config: &'a Value) -> Call<'a> {
    Call { container: &target.container, netns: Some(&target.netns), ifname: "eth0", args: "", config }
}

fn figures(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    format!("{:.2?} [{:.2?} - {:.2?}]", at(50), at(0), at(95))
}
