//! A machine of one's own: a network namespace on a thread that ends, with an "outside" to talk to.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use pinnace_network::{Attachment, Netns, Network, Options, PortMapping, Protocol, Range};

pub const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test on a thread that is a machine of its own.
pub fn machine(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip(&["link", "set", "lo", "up"]);
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs `work` inside a network namespace.
pub fn inside<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A namespace that is not of the network's making.
pub fn foreign_netns() -> OwnedFd {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
    })
    .join()
    .unwrap()
}

/// The program `ip`, an implementation of netlink that is not ours, in the thread's namespace.
pub fn ip(arguments: &[&str]) -> String {
    program("ip", arguments)
}

/// The program `nft`, in the thread's namespace; none if this machine does not have it.
pub fn nft(arguments: &[&str]) -> Option<String> {
    Path::new("/usr/sbin/nft").exists().then(|| program("/usr/sbin/nft", arguments))
}

fn program(name: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(name).args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn range(text: &str) -> Range {
    Range::new(text.parse().unwrap()).unwrap()
}

/// A dual-stack network below a directory.
pub fn options(dir: &Path) -> Options {
    let mut options = Options::new(dir.to_owned(), dir);
    options.ranges = vec![range("10.88.0.0/16"), range("fd00:88::/64")];
    options.pool_size = 2;
    options.linger = Duration::from_millis(200);
    options
}

pub fn open(dir: &Path) -> Network {
    let network = Network::open(options(dir)).unwrap();
    network.recover([]).unwrap();
    network.ready().unwrap();
    network
}

/// A pod: a namespace that is attached.
pub struct Pod {
    pub sandbox: String,
    pub netns: OwnedFd,
    pub attachment: Attachment,
}

impl Pod {
    pub fn start(network: &Network, sandbox: &str, ports: &[PortMapping]) -> Pod {
        let mut netns = network.take_netns().unwrap();
        let attachment = network.attach(sandbox, &mut netns, ports).unwrap();
        Pod { sandbox: sandbox.to_owned(), netns: Netns::into_fd(netns), attachment }
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        inside(self.netns.as_fd(), work)
    }

    pub fn v4(&self) -> IpAddr {
        self.attachment.ips().find(IpAddr::is_ipv4).unwrap()
    }

    pub fn v6(&self) -> IpAddr {
        self.attachment.ips().find(IpAddr::is_ipv6).unwrap()
    }

    pub fn stop(self, network: &Network) {
        network.detach(&self.sandbox, Some(&self.attachment)).unwrap();
    }

    /// A TCP server that tells each caller the address that it sees.
    pub fn serve(&self, port: u16) -> Server {
        self.inside(|| Server::start("[::]".parse().unwrap_or(IpAddr::from([0u8; 16])), port))
    }
}

pub fn tcp(host_ip: &str, host_port: u16, container_port: u16) -> PortMapping {
    let host_ip = (!host_ip.is_empty()).then(|| host_ip.parse().unwrap());
    PortMapping { protocol: Protocol::Tcp, container_port, host_port, host_ip }
}

/// A TCP server in the namespace of the thread that starts it. It ends when it is dropped.
pub struct Server {
    address: SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Server {
    pub fn start(address: IpAddr, port: u16) -> Server {
        let listener = TcpListener::bind((address, port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        thread::spawn(move || {
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, peer)) => {
                        let _ = write!(stream, "{}", peer.ip().to_canonical());
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Server { address, stop }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Connects and returns the address by which the server knows us.
pub fn ask(address: IpAddr, port: u16) -> std::io::Result<IpAddr> {
    ask_within(address, port, Duration::from_secs(3))
}

pub fn ask_within(address: IpAddr, port: u16, patience: Duration) -> std::io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    text.parse().map_err(|_| std::io::Error::other(format!("answer {text:?}")))
}

/// A UDP server in the calling thread's namespace that answers one datagram with its sender's address.
pub fn answer_datagrams(port: u16) {
    let socket = UdpSocket::bind(("::", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
        }
    });
}

/// Sends a datagram and returns the address by which the server knows us.
pub fn ask_datagram(address: IpAddr, port: u16) -> std::io::Result<IpAddr> {
    let any: IpAddr = if address.is_ipv4() { [0u8; 4].into() } else { [0u8; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect((address, port))?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(std::str::from_utf8(&buffer[..length]).unwrap().parse().unwrap())
}

/// An outside: another namespace with a cable to the machine, which knows nothing of pods.
pub fn outside() -> OwnedFd {
    let netns = foreign_netns();
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&netns));
    ip(&["link", "add", "uplink", "mtu", "1400", "type", "veth", "peer", "name", "far", "netns", &path]);
    for address in ["192.0.2.1/24", "2001:db8::1/64"] {
        ip(&["address", "add", address, "dev", "uplink", "nodad"].as_slice()
            [..if address.contains("::") { 6 } else { 5 }]);
    }
    ip(&["link", "set", "uplink", "up"]);
    inside(netns.as_fd(), || {
        ip(&["link", "set", "lo", "up"]);
        ip(&["address", "add", "192.0.2.2/24", "dev", "far"]);
        ip(&["address", "add", "2001:db8::2/64", "dev", "far", "nodad"]);
        ip(&["link", "set", "far", "up"]);
    });
    ip(&["route", "add", "default", "via", "192.0.2.2"]);
    ip(&["-6", "route", "add", "default", "via", "2001:db8::2"]);
    netns
}

/// Waits until `done` holds.
pub fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The names of links in the thread's namespace.
pub fn links() -> Vec<String> {
    let names = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    names.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// The address files of a network.
pub fn address_files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("networks/pinnace")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
}
