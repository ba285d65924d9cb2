//! ListImages, ImageStatus, RemoveImage.

use pinnace_conformance::cri::image_spec;
use pinnace_conformance::node::Node;
use pinnace_conformance::registry::PLAIN;
use pinnace_cri_api::v1::*;
use tonic::Code;

#[tokio::test]
async fn every_name_of_an_image_finds_it() {
    let Some(node) = Node::start() else { return };
    let id = node.image("busybox").await;
    let hex = id.strip_prefix("sha256:").expect("an id is a digest");
    let digest = node.images.find("busybox").digest;
    for name in [&*id, hex, &hex[..12], &format!("{PLAIN}/busybox:1"), &format!("{PLAIN}/busybox@{digest}")] {
        let image = node.cri.image(name).await.unwrap();
        assert_eq!(image.map(|image| image.id), Some(id.clone()), "{name}");
    }
}

#[tokio::test]
async fn absent_image_is_no_error() {
    let Some(node) = Node::start() else { return };
    let id = node.image("busybox").await;
    let other = if id.starts_with("sha256:0") { "1" } else { "0" }.repeat(64);
    for name in [
        &*format!("{PLAIN}/busybox:2"),
        &format!("sha256:{other}"),
        &other,
        &other[..12],
        "deadbeef",
        "nginx",
    ] {
        assert_eq!(node.cri.image(name).await.unwrap(), None, "{name}");
    }
    node.assert_fails(node.cri.image("").await, Code::InvalidArgument, "image");
}

#[tokio::test]
async fn list_has_one_entry_per_image_and_a_filter() {
    let Some(node) = Node::start() else { return };
    node.image("busybox").await;
    node.registry.push(&node.images, "busybox", "team/copy", "2");
    let copy = format!("{PLAIN}/team/copy:2");
    node.cri.pull(&copy).await.unwrap();
    node.image("user-name").await;
    let images = node.cri.list_images().await.unwrap();
    assert_eq!(images.len(), 2, "{images:?}");
    let busybox = images.iter().find(|image| image.id == node.images.image_id("busybox")).expect("busybox");
    let mut tags = busybox.repo_tags.clone();
    tags.sort();
    assert_eq!(tags, [format!("{PLAIN}/busybox:1"), copy.clone()]);

    let filtered = async |name: &str| {
        let filter = Some(ImageFilter { image: Some(image_spec(name)) });
        let answer = node.cri.images().list_images(ListImagesRequest { filter }).await.unwrap();
        answer.into_inner().images.into_iter().map(|image| image.id).collect::<Vec<_>>()
    };
    assert_eq!(filtered(&copy).await, [&*busybox.id]);
    assert_eq!(filtered(&format!("{PLAIN}/team/copy:3")).await, [""; 0]);
    assert_eq!(filtered("").await.len(), 2);
}

#[tokio::test]
async fn user_is_a_number_or_a_name() {
    let Some(node) = Node::start() else { return };
    for (name, uid, username) in
        [("busybox", Some(0), ""), ("user-number", Some(1234), ""), ("user-name", None, "worker")]
    {
        let id = node.image(name).await;
        let image = node.cri.image(&id).await.unwrap().expect("the image is there");
        assert_eq!((image.uid.map(|uid| uid.value), &*image.username), (uid, username), "{name}");
    }
}

#[tokio::test]
async fn remove_drops_all_names_at_once_and_frees_the_space() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let id = node.image("nginx").await;
    node.registry.push(&node.images, "nginx", "team/copy", "2");
    node.cri.pull(&format!("{PLAIN}/team/copy:2")).await.unwrap();
    node.cri.remove_image(&format!("{PLAIN}/nginx:1")).await.unwrap();
    assert_eq!(node.cri.image(&id).await.unwrap(), None);
    assert_eq!(node.cri.image(&format!("{PLAIN}/team/copy:2")).await.unwrap(), None);
    let left = node.cri.list_images().await.unwrap();
    assert!(left.iter().all(|image| image.id != id), "{left:?}");
    for name in [&*format!("{PLAIN}/nginx:1"), &id, "never/was:1"] {
        node.cri.remove_image(name).await.unwrap();
    }
    node.assert_nothing_left(&before);
}

#[tokio::test]
async fn container_outlives_its_image() {
    let Some(node) = Node::start() else { return };
    let running = node.run_script("outlives", "trap 'exit 0' TERM; while :; do sleep 0.05; done").await;
    let before = node.cri.status(&running.container).await.unwrap();
    node.cri.remove_image(&before.image_id).await.unwrap();
    assert_eq!(node.cri.list_images().await.unwrap(), []);
    let after = node.cri.status(&running.container).await.unwrap();
    assert_eq!(after, before, "the status changed with the image");
    assert_eq!(node.cri.sh(&running.container, "cat /volume/from-image").await, "kept by the image\n");
    // The same image again, while its layers are in use.
    let again = node.image("busybox").await;
    assert_eq!(again, before.image_id);
    node.cri.stop(&running.container, 10).await.unwrap();
    node.remove(&running.pod).await;
}
