//! The images that critest names, made offline from Debian packages: the same references, users and behaviour as far as
//! its specs look, served through mirrors of the registries in the names.

use std::fs;
use std::process::Command;

use pinnace_conformance::images::{Compression, Image, Layer, Layout, catalog, debian};
use pinnace_conformance::registry::{PLAIN, Registry};
use pinnace_conformance::world::World;
use serde_json::{Value, json};

/// Changes whenever the images do, so that a cache from before is not used.
const EDITION: u32 = 1;

/// Registries in the names of images.
const HOSTS: [&str; 4] = ["registry.k8s.io", "gcr.io", "docker.io", "k8s.gcr.io"];

/// Where most of them are.
const STAGING: &str = "k8s-staging-cri-tools";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbin:x:2:2:bin:/bin:/bin/false\nmail:x:8:8:mail:/var/mail:/bin/false\n\
    www-data:x:33:33:www-data:/var/www:/bin/false\nnginx:x:101:101:nginx:/nonexistent:/bin/false\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nbin:x:2:\nadm:x:4:\ntty:x:5:\nmail:x:8:\nwheel:x:10:root\nwww-data:x:33:\nusers:x:100:\nnginx:x:101:\n\
    nogroup:x:65534:\n";

/// procps and util-linux have more of them; the specs look at numbers in the second column and at ids.
const IPCS: &str = "#!/bin/sh\necho '------ Shared Memory Segments --------'\nawk 'NR > 1 { print $1, $2, $5, $3, $4 }' /proc/sysvipc/shm\n";
const PGREP: &str = "#!/bin/sh\nfound=1\nfor comm in /proc/[0-9]*/comm; do\n  \
    if grep -q \"$1\" \"$comm\" 2>/dev/null; then pid=${comm#/proc/}; echo \"${pid%/comm}\"; found=0; fi\ndone\nexit $found\n";

/// Writes the mirrors where the configuration of all suites has the daemon look for them.
pub fn mirrors(world: &World) {
    let dir = world.dir().join("certs.d");
    for host in HOSTS {
        let hosts = dir.join(host);
        fs::create_dir_all(&hosts).expect("make a directory for mirrors");
        let text = format!(
            "server = \"http://{PLAIN}\"\n[host.\"http://{PLAIN}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(hosts.join("hosts.toml"), text).expect("write a mirror");
    }
}

/// Makes all images, or takes those of an earlier run, and pushes them.
pub fn push(registry: &Registry) {
    let layout = catalog::kept(&format!("critest-images-{EDITION}"), fill);
    for name in layout.names() {
        let (repository, tag) = name.rsplit_once(':').expect("a name with a tag");
        registry.push(&layout, &name, repository, tag);
    }
}

fn fill(layout: &Layout) {
    let base = base();
    let shell = json!({ "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"] });
    // The base is in all of them and large: it travels as it is, which costs nothing on loopback.
    let image = |mut layers: Vec<Layer>, config: &Value| {
        let last = layers.pop().map(|layer| (layer, Compression::Gzip));
        let layers = layers.into_iter().map(|layer| (layer, Compression::None)).chain(last).collect();
        Image::new(layers, config.clone())
    };
    let publish = |name: &str, layers: Vec<Layer>, config: &Value| {
        layout.tag(name, &layout.image(&image(layers, config)));
    };
    let marked = |mark: &str| vec![base.clone(), Layer::new().file(mark, 0o644, "")];

    // One that has to be chosen from an index.
    let mut busybox = image(marked("default"), &shell);
    let native = layout.image(&busybox);
    busybox.architecture = "riscv64".into();
    layout.tag("e2e-test-images/busybox:1.29-2", &layout.index(&[layout.image(&busybox), native]));
    for tag in ["latest", "1.36"] {
        publish(&format!("library/busybox:{tag}"), marked("library"), &shell);
    }
    for name in ["test-image-1", "test-image-2", "test-image-3", "test-image-latest", "test-image-digest"] {
        publish(&format!("{STAGING}/{name}:latest"), marked(name), &shell);
    }
    for tag in ["1", "2", "3"] {
        publish(&format!("{STAGING}/test-image-tags:{tag}"), marked("same"), &shell);
    }
    for tag in ["test", "all"] {
        publish(&format!("{STAGING}/test-image-tag:{tag}"), marked(tag), &shell);
    }
    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ] {
        let mut config = shell.clone();
        config["User"] = user.into();
        publish(&format!("{STAGING}/test-image-user-{name}:latest"), marked(name), &config);
    }
    let groups = Layer::new()
        .file("etc/passwd", 0o644, format!("{PASSWD}default-user:x:1000:1000::/:/bin/sh\n"))
        .file(
            "etc/group",
            0o644,
            format!("{GROUP}default-user:x:1000:\ngroup-in-image:x:50000:default-user\n"),
        );
    let mut config = shell.clone();
    config["User"] = "1000".into();
    publish(&format!("{STAGING}/test-image-predefined-group:latest"), vec![base.clone(), groups], &config);

    let mut config = shell.clone();
    config["Entrypoint"] = json!(["/usr/sbin/nginx", "-g", "daemon off;"]);
    config["Cmd"] = Value::Null;
    for (name, port) in
        [("e2e-test-images/nginx:1.14-2", 80), (&*format!("{STAGING}/hostnet-nginx-amd64:latest"), 12003)]
    {
        let mut layers = vec![base.clone()];
        layers.extend(nginx(port));
        publish(name, layers, &config);
    }
    let httpd = Layer::new()
        .file(
            "bin/httpd-foreground",
            0o755,
            "#!/bin/sh\necho \"httpd -D FOREGROUND\" >&2\nexec /bin/httpd -f -p 80 -h /srv\n",
        )
        .file("srv/index.html", 0o644, "<html><body><h1>It works!</h1></body></html>\n");
    let mut config = shell.clone();
    config["Cmd"] = json!(["httpd-foreground"]);
    publish("e2e-test-images/httpd:2.4.39-4", vec![base.clone(), httpd], &config);

    let program = std::env::current_exe().expect("this program's path").with_file_name("critest-workload");
    let program = fs::read(&program)
        .unwrap_or_else(|error| panic!("{}: {error}: build it with this program", program.display()));
    let mut config = shell.clone();
    config["Entrypoint"] = json!(["/nnp"]);
    config["Cmd"] = Value::Null;
    let nnp = Layer::new().file("nnp", 0o4755, &program);
    publish("e2e-test-images/nonewprivs:1.3", vec![base, nnp], &config);
    let pause = Layer::new().file("pause", 0o755, &program);
    let config = json!({ "Entrypoint": ["/pause"], "User": "65535:65535" });
    publish("pause:3.9", vec![pause], &config);
}

/// A busybox whose shell looks programs up in PATH, which Debian's static one does not.
fn base() -> Layer {
    let program = debian::unpacked("busybox").join("bin/busybox");
    let tools = Command::new(&program).arg("--list").output().expect("run busybox").stdout;
    let program = fs::read(&program).expect("read busybox");
    let layer =
        catalog::merged_base().append(catalog::packages(&["libc6"])).file("bin/busybox", 0o755, program);
    let tools = String::from_utf8_lossy(&tools).into_owned();
    tools
        .lines()
        .filter(|&tool| tool != "busybox")
        .fold(layer, |layer, tool| layer.hardlink(&format!("bin/{tool}"), "bin/busybox"))
        .file("bin/ipcs", 0o755, IPCS)
        .file("bin/pgrep", 0o755, PGREP)
        .file("etc/passwd", 0o644, PASSWD)
        .file("etc/group", 0o644, GROUP)
}

fn nginx(port: u16) -> [Layer; 2] {
    let site = Layer::new()
        .directory("etc/nginx", 0o755)
        .file(
            "etc/nginx/nginx.conf",
            0o644,
            format!(
                "worker_processes 1;\nerror_log /dev/stderr;\npid /var/run/nginx.pid;\nuser nginx;\nevents {{}}\n\
                 http {{\n  access_log /dev/stdout;\n  server {{ listen {port}; root /srv; }}\n}}\n"
            ),
        )
        .file("srv/index.html", 0o644, "<html><title>Welcome to nginx!</title></html>\n")
        .symlink("var/run", "/run")
        .directory("var/lib/nginx", 0o755)
        .directory("var/log/nginx", 0o755);
    let packages = ["libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g", "nginx-common", "nginx"];
    [catalog::packages(&packages), site]
}
