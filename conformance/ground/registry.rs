//! The registries of a world serve what was pushed, each in its way. Asked with curl, inside.

use std::fs;
use std::sync::Arc;

use pinnace_conformance::images::catalog;
use pinnace_conformance::registry::{DOWN, PASSWORD, PASSWORD_TEXT, PLAIN, Registry, TLS, USERNAME};

#[test]
fn serves_plain_tls_and_password() {
    let Some(world) = super::world::world() else { return };
    let world = Arc::new(world);
    let layout = catalog::layout();
    let mut registry = Registry::start(world.clone());
    registry.start_tls();
    registry.start_password();
    registry.push(&layout, "busybox-index", "team/busybox", "1");

    let manifest = "v2/team/busybox/manifests/1";
    let accept = "-H 'accept: application/vnd.oci.image.index.v1+json'";
    let curl = format!("curl --silent --show-error --noproxy '*' {accept} -w '%{{http_code}}' -o /run/body");
    let ca = registry.ca();
    let expected = layout.read(&layout.find("busybox-index").digest);
    for (url, code) in [
        (format!("http://{PLAIN}/{manifest}"), "200"),
        (format!("--cacert {} https://{TLS}/{manifest}", ca.display()), "200"),
        (format!("--user {USERNAME}:{PASSWORD_TEXT} http://{PASSWORD}/{manifest}"), "200"),
        (format!("http://{PASSWORD}/{manifest}"), "401"),
        (format!("--user {USERNAME}:wrong http://{PASSWORD}/{manifest}"), "401"),
        (format!("http://{PLAIN}/v2/team/other/manifests/1"), "404"),
    ] {
        assert_eq!(world.sh(&format!("{curl} {url}")), code, "{url}");
        if code == "200" {
            assert_eq!(fs::read(world.inside("/run/body")).unwrap(), expected, "{url}");
        }
    }
    let untrusted = world.command("curl").args(["--silent", &format!("https://{TLS}/v2/")]).status().unwrap();
    assert_eq!(untrusted.code(), Some(60), "curl trusts a CA it does not know");
    let down = world.command("curl").args(["--silent", &format!("http://{DOWN}/v2/")]).status().unwrap();
    assert_eq!(down.code(), Some(7), "something listens on {DOWN}");
}

#[test]
fn corrupt_changes_what_is_served() {
    let Some(world) = super::world::world() else { return };
    let world = Arc::new(world);
    let layout = catalog::layout();
    let registry = Registry::start(world.clone());
    registry.push(&layout, "busybox", "busybox", "1");
    let layer = layout.children(&layout.find("busybox")).remove(0);
    let fetch =
        format!("curl --silent --noproxy '*' http://{PLAIN}/v2/busybox/blobs/{} -o /run/blob", layer.digest);
    world.sh(&fetch);
    assert_eq!(fs::read(world.inside("/run/blob")).unwrap(), layout.read(&layer.digest));
    registry.corrupt(&layer.digest);
    world.sh(&fetch);
    let served = fs::read(world.inside("/run/blob")).unwrap();
    assert_eq!(served.len(), layout.read(&layer.digest).len());
    assert_ne!(served, layout.read(&layer.digest));
}
