//! Figures, for people: `cargo test --release -p pinnace-network --test kernel -- --ignored --nocapture measure`.

use std::time::{Duration, Instant};

use pinnace_network::{Network, PortMapping};

use crate::world::{eventually, machine, open, options, tcp};

#[test]
#[ignore = "prints figures"]
fn measure() {
    machine(|| {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let network = open(dir.path());
        run("pool, pause between", &network, &[], Duration::from_millis(20), 60);
        run("pool, one host port", &network, &[tcp("", 8080, 80)], Duration::from_millis(20), 60);
        drop(network);
        let mut options = options(dir.path());
        options.pool_size = 0;
        let network = Network::open(options).unwrap();
        network.recover([]).unwrap();
        run("fresh, pause between", &network, &[], Duration::from_millis(20), 60);
        run("fresh, back to back", &network, &[], Duration::ZERO, 200);
    });
}

fn run(name: &str, network: &Network, ports: &[PortMapping], pause: Duration, count: usize) {
    let (mut take, mut attach, mut detach, mut pods) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..count {
        let sandbox = format!("{}-{n}", name.replace([' ', ','], ""));
        let ports: Vec<PortMapping> = ports
            .iter()
            .map(|port| PortMapping { host_port: port.host_port + u16::try_from(n).unwrap(), ..*port })
            .collect();
        let at = Instant::now();
        let mut netns = network.take_netns().unwrap();
        take.push(at.elapsed());
        let at = Instant::now();
        let attachment = network.attach(&sandbox, &mut netns, &ports).unwrap();
        attach.push(at.elapsed());
        pods.push((sandbox, attachment, netns));
        std::thread::sleep(pause);
    }
    let started = Instant::now();
    for (sandbox, attachment, netns) in pods {
        let at = Instant::now();
        network.detach(&sandbox, Some(&attachment)).unwrap();
        detach.push(at.elapsed());
        drop(netns);
    }
    eventually("nothing is pending", || network.pending() == 0);
    println!(
        "{name}: take {}, attach {}, detach {}, {count} gone after {:?}",
        quantiles(take),
        quantiles(attach),
        quantiles(detach),
        started.elapsed()
    );
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    format!("p50 {} us [{}-{} p99]", at(50), at(0), at(99))
}
