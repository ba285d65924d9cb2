//! Images are what they say.

use std::fs;
use std::process::Command;

use pinnace_conformance::images::{Compression, Layer, LongName, catalog, digest};
use serde_json::Value;

#[test]
fn tar_is_what_other_programs_read() {
    let long = "l".repeat(150);
    let layer = Layer::new()
        .directory("d", 0o750)
        .last_owner(12, 34)
        .file("d/file", 0o4711, "content\n")
        .last_mtime(1_000_000_000)
        .file(&format!("d/{long}"), 0o600, "pax")
        .file(&format!("d/{long}-gnu"), 0o600, "gnu")
        .last_long_name(LongName::Gnu)
        .symlink("d/link", &format!("{long}/target"))
        .last_long_name(LongName::Gnu)
        .hardlink("d/hard", "d/file")
        .fifo("d/fifo", 0o622)
        .device("d/null", 0o666, b'c', 1, 3)
        .file("d/grüße", 0o644, "x")
        .last_xattr("user.name", b"a\0b");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layer.tar");
    fs::write(&file, layer.tar()).unwrap();
    let list =
        Command::new("tar").args(["--numeric-owner", "--xattrs", "-tvvf"]).arg(&file).output().unwrap();
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    // Columns are padded.
    let list: String = list
        .lines()
        .map(|line| line.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ") + "\n")
        .collect();
    for expected in [
        "drwxr-x--- 12/34",
        "-rws--x--x 0/0 8 ",
        "2001-09-09",
        &format!("d/{long}\n"),
        &format!("d/{long}-gnu\n"),
        &format!("d/link -> {long}/target\n"),
        "d/hard link to d/file\n",
        "prw--w--w- 0/0 0 ",
        "1,3 ",
        "x: 3 user.name",
    ] {
        assert!(list.contains(expected), "{expected:?} is not in:\n{list}");
    }
}

#[test]
fn layers_are_deterministic() {
    let layer = || Layer::new().file("a", 0o644, "a").last_xattr("user.x", b"1").directory("b", 0o755);
    for form in [Compression::None, Compression::Gzip, Compression::Zstd] {
        assert_eq!(digest(&form.apply(&layer().tar())), digest(&form.apply(&layer().tar())), "{form:?}");
    }
}

#[test]
fn catalogue_is_a_sound_layout() {
    let layout = catalog::layout();
    let names =
        ["busybox", "busybox-zstd", "busybox-plain", "busybox-index", "configured", "nginx", "menagerie"];
    for name in names {
        let manifest = layout.manifest(name);
        for blob in layout.children(&manifest).iter().chain([&manifest]) {
            let bytes = layout.read(&blob.digest);
            assert_eq!(digest(&bytes), blob.digest, "{name}");
            assert_eq!(u64::try_from(bytes.len()).unwrap(), blob.size, "{name}");
        }
        let config: Value = serde_json::from_slice(&layout.read(&layout.image_id(name))).unwrap();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        let layers: Vec<_> =
            layout.children(&manifest).into_iter().filter(|d| d.media_type.contains("layer")).collect();
        assert_eq!(diff_ids.len(), layers.len(), "{name}");
        for (diff_id, layer) in diff_ids.iter().zip(&layers) {
            let bytes = layout.read(&layer.digest);
            let tar = match layer.media_type.rsplit_once('+') {
                Some((_, "gzip")) => {
                    let mut tar = Vec::new();
                    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*bytes), &mut tar).unwrap();
                    tar
                }
                Some((_, "zstd")) => zstd::stream::decode_all(&*bytes).unwrap(),
                _ => bytes,
            };
            assert_eq!(diff_id, &digest(&tar), "{name}");
        }
    }
    assert_eq!(layout.image_id("busybox"), layout.image_id("busybox-index"));
    assert_ne!(layout.manifest("busybox").digest, layout.manifest("busybox-zstd").digest);
}
