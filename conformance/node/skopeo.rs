//! Images as skopeo makes them, through every door that a real registry has: each is pulled and run.

use std::fs;
use std::process::Command;

use pinnace_conformance::node::Node;
use pinnace_conformance::registry::{MUTUAL, PASSWORD, PASSWORD_TEXT, PLAIN, TLS, USERNAME};
use pinnace_conformance::skip;
use pinnace_cri_api::v1::AuthConfig;

/// A form, the options that make skopeo write it, the image it is made of, the registry, and what its manifest says.
type Case = (&'static str, &'static [&'static str], &'static str, &'static str, &'static str);

const CASES: [Case; 4] = [
    ("oci", &["--format", "oci"], "busybox", PLAIN, "application/vnd.oci.image.manifest.v1+json"),
    (
        "schema2",
        &["--format", "v2s2"],
        "busybox",
        TLS,
        "application/vnd.docker.distribution.manifest.v2+json",
    ),
    (
        "zstd",
        &["--format", "oci", "--dest-compress-format", "zstd"],
        "busybox",
        MUTUAL,
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ),
    ("multi-arch", &["--all"], "busybox-index", PASSWORD, "application/vnd.oci.image.index.v1+json"),
];

/// Pushes an image of the catalogue through a registry's own door, in another form.
fn copy(node: &Node, (form, options, image, registry, _): Case) -> String {
    let certificates = node.world.dir().join("skopeo-certs");
    let (certificate, key) = node.registry.client();
    fs::create_dir_all(&certificates).unwrap();
    for (from, name) in [(node.registry.ca(), "ca.crt"), (certificate, "client.cert"), (key, "client.key")] {
        fs::copy(from, certificates.join(name)).unwrap();
    }
    let reference = format!("{registry}/skopeo-{form}:1");
    let mut skopeo = node.world.command("skopeo");
    skopeo
        .args(["--insecure-policy", "copy", "--quiet"])
        .args(options)
        .arg("--dest-cert-dir")
        .arg(&certificates);
    if registry == PLAIN || registry == PASSWORD {
        skopeo.arg("--dest-tls-verify=false");
    }
    if registry == PASSWORD {
        skopeo.arg("--dest-creds").arg(format!("{USERNAME}:{PASSWORD_TEXT}"));
    }
    skopeo.arg(format!("oci:{}:{image}", node.images.dir().display())).arg(format!("docker://{reference}"));
    let output = skopeo.env("HOME", node.world.dir()).output().unwrap();
    assert!(output.status.success(), "{form}: {}", String::from_utf8_lossy(&output.stderr));
    reference
}

#[tokio::test]
async fn what_skopeo_makes_is_pulled_and_runs() {
    let known = Command::new("skopeo").arg("--version").output();
    if !known.is_ok_and(|output| output.status.success()) {
        return skip("what_skopeo_makes_is_pulled_and_runs", "skopeo is not installed");
    }
    let Some(mut node) = Node::start() else { return };
    node.registry.start_tls();
    node.registry.start_mutual();
    node.registry.start_password();
    let certs = node.world.dir().join("certs.d");
    fs::create_dir_all(certs.join(TLS)).unwrap();
    fs::copy(node.registry.ca(), certs.join(TLS).join("ca.crt")).unwrap();
    let (certificate, key) = node.registry.client();
    let hosts = format!(
        "server = \"https://{MUTUAL}\"\nca = {:?}\nclient = [[{certificate:?}, {key:?}]]\n",
        node.registry.ca()
    );
    fs::create_dir_all(certs.join(MUTUAL)).unwrap();
    fs::write(certs.join(MUTUAL).join("hosts.toml"), hosts).unwrap();
    for case in CASES {
        let (form, _, _, registry, says) = case;
        let reference = copy(&node, case);
        // All registries have one store of blobs.
        let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
        let manifest = node
            .world
            .sh(&format!("curl -fsS -H 'Accept: {accept}' http://{PLAIN}/v2/skopeo-{form}/manifests/1"));
        assert!(manifest.contains(says), "{form}: {manifest}");
        let reader =
            AuthConfig { username: USERNAME.into(), password: PASSWORD_TEXT.into(), ..AuthConfig::default() };
        let auth = (registry == PASSWORD).then_some(reader);
        let image =
            node.cri.pull_as(&reference, auth).await.unwrap_or_else(|status| panic!("{form}: {status:?}"));
        let pod = node.run_pod(form, |_| {}).await;
        let config = node.container(&pod.config, "main", &image, &["cat", "/volume/from-image"]);
        let ended = node.run_to_end(&pod, config, |_| {}).await;
        assert_eq!((ended.status.exit_code, &*ended.stdout), (0, "kept by the image\n"), "{form}");
        node.remove(&pod.id).await;
        node.cri.remove_image(&image).await.unwrap();
    }
}
