//! The images of the suites, in one layout that is made once and kept in the cache.
//!
//! | name | what it is for |
//! |---|---|
//! | `busybox` | a shell and its tools, users and groups in /etc; one gzip layer |
//! | `busybox-zstd`, `busybox-plain` | the same files, the layer in another form: same diffID |
//! | `busybox-index` | an index: this architecture (equal to `busybox`) and a foreign one |
//! | `configured` | entrypoint, arguments, environment, directory, user, volume, stop signal, label |
//! | `user-name`, `user-number`, `user-missing` | `USER` as a name, as numbers, as a name that is not there |
//! | `nothing` | neither entrypoint nor command |
//! | `nginx` | a real server with its shared libraries in several layers, serving [`NGINX_PAGE`] on port 80 |
//! | `menagerie` | everything a layer may legally contain; see [`menagerie`] |

use std::fs;
use std::process::Command;

use serde_json::json;

use super::debian::{self, locked};
use super::{Compression, Image, Layer, Layout, LongName, digest};
use crate::cache_dir;

/// What the `nginx` image serves.
pub const NGINX_PAGE: &str = "nginx in a pod\n";

/// Changes whenever the images do, so that a cache from before is not used.
const EDITION: u32 = 2;

/// The layout with all images.
pub fn layout() -> Layout {
    kept(&format!("images-{EDITION}"), fill)
}

/// A layout in the cache, filled if it is not there yet.
pub fn kept(name: &str, fill: impl FnOnce(&Layout)) -> Layout {
    let dir = cache_dir().join(name);
    locked(&cache_dir().join("images.lock"), || {
        if dir.exists() {
            return Layout::open(&dir);
        }
        let fresh = dir.with_extension("making");
        let _ = fs::remove_dir_all(&fresh);
        fill(&Layout::create(&fresh));
        fs::rename(&fresh, &dir).expect("move the images into place");
        Layout::open(&dir)
    })
}

fn fill(layout: &Layout) {
    let files = busybox_layer();
    let busybox = |compression| {
        let config = json!({ "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"] });
        Image::new(vec![(files.clone(), compression)], config)
    };
    let gzip = busybox(Compression::Gzip);
    let tag = |name: &str, image: &Image| {
        let descriptor = layout.image(image);
        layout.tag(name, &descriptor);
        descriptor
    };
    let native = tag("busybox", &gzip);
    tag("busybox-zstd", &busybox(Compression::Zstd));
    tag("busybox-plain", &busybox(Compression::None));

    let mut foreign = gzip.clone();
    foreign.architecture = "riscv64".into();
    let foreign = layout.image(&foreign);
    layout.tag("busybox-index", &layout.index(&[foreign, native]));

    tag(
        "configured",
        &gzip.with(json!({
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "COLOUR=blue", "SIZE=small"],
            "Entrypoint": ["/bin/echo", "entry"],
            "Cmd": ["default", "arguments"],
            "WorkingDir": "/srv/here",
            "User": "worker",
            "Volumes": { "/volume": {} },
            "StopSignal": "SIGUSR1",
            "Labels": { "purpose": "test" },
        })),
    );
    tag("user-name", &gzip.with(json!({ "User": "worker:staff" })));
    tag("user-number", &gzip.with(json!({ "User": "1234:5678" })));
    tag("user-missing", &gzip.with(json!({ "User": "nobody-here" })));
    tag("nothing", &gzip.with(json!({ "Cmd": null })));
    tag("nginx", &nginx());
    tag("menagerie", &menagerie(&files));
}

/// Busybox with a link for each of its tools, and what a shell expects around it.
fn busybox_layer() -> Layer {
    let program = debian::unpacked("busybox-static").join("bin/busybox");
    let tools = Command::new(&program).arg("--list").output().expect("run busybox").stdout;
    let program = fs::read(&program).expect("read busybox");
    let mut layer = base().file("bin/busybox", 0o755, program);
    for tool in String::from_utf8_lossy(&tools).lines().filter(|&tool| tool != "busybox") {
        layer = layer.symlink(&format!("bin/{tool}"), "busybox");
    }
    layer
        .directory("home", 0o755)
        .directory("home/worker", 0o755)
        .last_owner(1000, 1000)
        .directory("volume", 0o755)
        .file("volume/from-image", 0o644, "kept by the image\n")
}

fn base() -> Layer {
    ["bin", "dev", "etc", "proc", "root", "run", "sys", "usr", "usr/lib", "var"]
        .iter()
        .fold(Layer::new(), |layer, path| layer.directory(path, 0o755))
        .directory("tmp", 0o1777)
        .file(
            "etc/passwd",
            0o644,
            // The name "1000" must never be taken for user 1000 (CVE-2016-3697).
            "root:x:0:0:root:/root:/bin/sh\n1000:x:0:0:digits:/:/bin/sh\n\
             worker:x:1000:1000:worker:/home/worker:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        )
        .file(
            "etc/group",
            0o644,
            "root:x:0:\nstaff:x:50:worker\nworker:x:1000:\nbuilders:x:2000:worker,nobody\nnogroup:x:65534:\n",
        )
}

/// The files of Debian packages without their documentation, on a merged /usr, as the dynamic loader's path in programs
/// expects it.
pub fn packages(names: &[&str]) -> Layer {
    let merged = |path: &str| {
        let skip = ["", "usr", "usr/lib", "lib", "lib64", "etc", "bin"].contains(&path)
            || path.starts_with("usr/share/doc")
            || path.starts_with("usr/share/man")
            || path.starts_with("usr/share/lintian");
        let moved = ["lib/", "lib64/"].iter().any(|top| path.starts_with(top));
        (!skip).then(|| if moved { format!("usr/{path}") } else { path.to_string() })
    };
    names.iter().fold(Layer::new(), |layer, name| layer.append(Layer::from_tar(&debian::tar(name), merged)))
}

/// What lies below [`packages`].
pub fn merged_base() -> Layer {
    base().directory("usr/lib64", 0o755).symlink("lib", "usr/lib").symlink("lib64", "usr/lib64")
}

/// A server as Debian packages it: the C library, its other libraries, itself, and our configuration.
fn nginx() -> Image {
    let site = Layer::new()
        .directory("etc/nginx", 0o755)
        .file(
            "etc/nginx/nginx.conf",
            0o644,
            "daemon off;\nworker_processes 1;\nerror_log /dev/stderr;\npid /run/nginx.pid;\nuser nobody nogroup;\n\
             events {}\nhttp {\n  access_log /dev/stdout;\n  server { listen 80; listen [::]:80; root /srv; }\n}\n",
        )
        .directory("srv", 0o755)
        .file("srv/index.html", 0o644, NGINX_PAGE)
        .directory("var/lib", 0o755)
        .directory("var/lib/nginx", 0o755)
        .directory("var/log", 0o755)
        .directory("var/log/nginx", 0o755);
    let layers = vec![
        (merged_base().append(packages(&["libc6"])), Compression::Gzip),
        (packages(&["libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g"]), Compression::Gzip),
        (packages(&["nginx-common", "nginx"]), Compression::Gzip),
        (site, Compression::Zstd),
    ];
    let config = json!({
        "Entrypoint": ["/usr/sbin/nginx"], "StopSignal": "SIGQUIT", "ExposedPorts": { "80/tcp": {} },
    });
    Image::new(layers, config)
}

/// Everything that a layer may legally contain and that unpackers get wrong. What a container must see of it
/// is written down in [`MENAGERIE_CHECK`], a script that ends with an error if anything differs.
fn menagerie(busybox: &Layer) -> Image {
    let deep = deep_path();
    let (long, longer) = (long_name('p'), long_name('g'));
    let first = Layer::new()
        .directory("m", 0o755)
        .file("m/replaced", 0o644, "old\n")
        .file("m/removed", 0o644, "must be hidden\n")
        .directory("m/tree", 0o755)
        .file("m/tree/a", 0o644, "a\n")
        .directory("m/tree/sub", 0o755)
        .file("m/tree/sub/b", 0o644, "b\n")
        .directory("m/opaque", 0o700)
        .file("m/opaque/old", 0o644, "must be hidden\n")
        .directory("m/file-then-dir", 0o755)
        .file("m/file-then-dir/x", 0o644, "x\n")
        .file("m/dir-then-file", 0o644, "file\n")
        .directory("m/mode-changes", 0o755)
        .file("m/mode-changes/kept", 0o644, "kept\n");
    let second = Layer::new()
        .directory("m", 0o755)
        .file("m/replaced", 0o600, "new\n")
        .last_owner(1000, 50)
        .last_mtime(1_000_000_000)
        .whiteout("m/removed")
        .whiteout("m/tree")
        .directory("m/opaque", 0o711)
        .opaque("m/opaque")
        .file("m/opaque/new", 0o644, "new\n")
        .file("m/file-then-dir", 0o644, "now a file\n")
        .directory("m/dir-then-file", 0o755)
        .file("m/dir-then-file/y", 0o644, "y\n")
        // A directory that only changes its mode keeps what is in it.
        .directory("m/mode-changes", 0o750)
        // Removing what no layer has is legal.
        .whiteout("m/never-was");
    let names = Layer::new()
        .directory("m/names", 0o755)
        .file("m/names/grüße-こんにちは-🐟", 0o644, "utf-8\n")
        .file("m/names/with space and\ttab", 0o644, "space\n")
        .file("m/names/-dash", 0o644, "dash\n")
        .file("m/names/quote'\"", 0o644, "quote\n")
        .file(&format!("m/names/{long}"), 0o644, "pax\n")
        .file(&format!("m/names/{longer}"), 0o644, "gnu\n")
        .last_long_name(LongName::Gnu)
        .file(&format!("m/names/{deep}/end"), 0o644, "deep\n")
        .symlink("m/names/to-deep", &format!("{deep}/end"))
        .symlink("m/names/to-deep-gnu", &format!("{deep}/end"))
        .last_long_name(LongName::Gnu);
    let kinds = Layer::new()
        .directory("m/kinds", 0o755)
        .file("m/kinds/file", 0o644, "linked\n")
        .last_xattr("user.colour", b"blue\0binary\xff")
        .hardlink("m/kinds/hard", "m/kinds/file")
        .symlink("m/kinds/absolute", "/m/kinds/file")
        .symlink("m/kinds/relative", "file")
        .symlink("m/kinds/dangling", "/nowhere/at/all")
        .symlink("m/kinds/outside", "../../../../../../etc/passwd")
        .fifo("m/kinds/fifo", 0o622)
        .device("m/kinds/null", 0o666, b'c', 1, 3)
        .device("m/kinds/loop", 0o660, b'b', 7, 0)
        .file("m/kinds/empty", 0o000, "")
        .file("m/kinds/sticky", 0o1644, "")
        .file("m/kinds/setgid", 0o2755, "")
        // Busybox with cap_net_raw in its file, version 2 of the attribute (capabilities(7)).
        .file("m/kinds/capable", 0o755, "#!/bin/sh\n")
        .last_xattr("security.capability", &FILE_CAPABILITY)
        .directory("m/kinds/setgid-dir", 0o2775)
        .last_owner(0, 50)
        // The same path twice: the later one counts.
        .file("m/kinds/twice", 0o644, "first\n")
        .file("m/kinds/twice", 0o640, "second\n")
        .file("m/kinds/setuid", 0o4755, "")
        .last_owner(1000, 1000);
    // Parents that no entry describes are made as they are needed.
    let orphan = Layer::new().file("m/no/parent/entries/file", 0o644, "orphan\n");
    let same = Layer::new().file("m/same", 0o644, "same\n");
    let layers = vec![
        (busybox.clone(), Compression::Gzip),
        (first, Compression::Gzip),
        (second, Compression::Zstd),
        (Layer::new(), Compression::Gzip),
        (names, Compression::None),
        (kinds, Compression::Gzip),
        (orphan, Compression::Zstd),
        (same.clone(), Compression::Gzip),
        (Layer::new(), Compression::None),
        // The same diffID a second time, once as the same blob and once in another form.
        (same.clone(), Compression::Gzip),
        (same, Compression::Zstd),
    ];
    Image::new(layers, json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] }))
}

const FILE_CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A path of more than 255 bytes, each component of which is short.
fn deep_path() -> String {
    ["0123456789abcdef0123456789abcdef"; 10].join("/")
}

/// A name of more than 100 bytes, the most that a plain tar header holds.
fn long_name(letter: char) -> String {
    letter.to_string().repeat(200)
}

/// For `sh -euc` in a container of `menagerie`; silent if everything is as the layers say.
pub fn menagerie_check() -> String {
    let (deep, pax, gnu) = (deep_path(), long_name('p'), long_name('g'));
    let script = r#"
        fail() { echo "wrong: $*"; exit 1; }
        is() { [ "$1" = "$2" ] || fail "$3: '$1' is not '$2'"; }
        content() { is "$(cat "$1")" "$2" "$1"; }
        meta() { is "$(stat -c '%F %a %u:%g' "$1")" "$2" "$1"; }
        gone() { [ ! -e "$1" ] && [ ! -L "$1" ] || fail "$1 is there"; }
        content /m/replaced new; meta /m/replaced 'regular file 600 1000:50'
        is "$(stat -c %Y /m/replaced)" 1000000000 mtime
        gone /m/removed; gone /m/tree; gone /m/never-was; gone /m/opaque/old
        content /m/opaque/new new; meta /m/opaque 'directory 711 0:0'
        content /m/file-then-dir 'now a file'; content /m/dir-then-file/y y
        meta /m/mode-changes 'directory 750 0:0'; content /m/mode-changes/kept kept
        is "$(find /m -name '.wh.*' | wc -l)" 0 whiteouts
        content '/m/names/grüße-こんにちは-🐟' utf-8
        content "/m/names/with space and	tab" space
        content /m/names/-dash dash; content "/m/names/quote'\"" quote
        content "/m/names/PAX" pax; content "/m/names/GNU" gnu
        content "/m/names/DEEP/end" deep; content /m/names/to-deep deep; content /m/names/to-deep-gnu deep
        content /m/kinds/file linked; content /m/kinds/hard linked
        is "$(stat -c '%i %h' /m/kinds/file)" "$(stat -c '%i %h' /m/kinds/hard)" 'hard links'
        is "$(stat -c %h /m/kinds/file)" 2 'number of links'
        content /m/kinds/absolute linked; content /m/kinds/relative linked
        is "$(readlink /m/kinds/dangling)" /nowhere/at/all dangling
        is "$(readlink /m/kinds/outside)" ../../../../../../etc/passwd outside
        meta /m/kinds/fifo 'fifo 622 0:0'
        meta /m/kinds/null 'character special file 666 0:0'; is "$(stat -c '%t %T' /m/kinds/null)" '1 3' null
        meta /m/kinds/loop 'block special file 660 0:0'; is "$(stat -c '%t %T' /m/kinds/loop)" '7 0' loop
        meta /m/kinds/empty 'regular empty file 0 0:0'; meta /m/kinds/sticky 'regular empty file 1644 0:0'
        meta /m/kinds/setgid 'regular empty file 2755 0:0'; meta /m/kinds/setuid 'regular empty file 4755 1000:1000'
        meta /m/kinds/setgid-dir 'directory 2775 0:50'
        content /m/kinds/twice second; meta /m/kinds/twice 'regular file 640 0:0'
        content /m/no/parent/entries/file orphan; content /m/same same
    "#;
    script.replace("DEEP", &deep).replace("PAX", &pax).replace("GNU", &gnu)
}

/// Digest of the configuration and of every layer, which a test compares between two runs of the recipe.
pub fn fingerprint(image: &Image) -> Vec<String> {
    image.layers.iter().map(|(layer, form)| digest(&form.apply(&layer.tar()))).collect()
}
