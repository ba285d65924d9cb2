//! As whom the process of a container runs.

use pinnace_conformance::cri::{ContainerConfigParts as _, failure};
use pinnace_conformance::node::Node;
use pinnace_cri_api::v1::*;
use tonic::Code;

const WHO: &str = "id -u; id -g; id -G; echo $HOME";

fn number(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

#[tokio::test]
async fn user_of_the_image_and_of_the_pod() {
    let Some(node) = Node::start() else { return };
    let (busybox, named, numbered) =
        (node.image("busybox").await, node.image("user-name").await, node.image("user-number").await);
    let pod = node.run_pod("users", |_| {}).await;
    type Change = fn(&mut LinuxContainerSecurityContext);
    let cases: [(&str, &str, Change, &str); 12] = [
        ("nothing", &busybox, |_| {}, "0\n0\n0\n/root\n"),
        // USER worker:staff; the group of passwd does not count, those of /etc/group do.
        ("image's name", &named, |_| {}, "1000\n50\n50 2000\n/home/worker\n"),
        ("image's numbers", &numbered, |_| {}, "1234\n5678\n5678\n/\n"),
        ("number", &busybox, |s| s.run_as_user = number(1000), "1000\n1000\n1000 50 2000\n/home/worker\n"),
        ("number nobody has", &busybox, |s| s.run_as_user = number(4321), "4321\n0\n0\n/\n"),
        ("name", &busybox, |s| s.run_as_username = "nobody".into(), "65534\n65534\n65534 2000\n/\n"),
        ("over the image's", &named, |s| s.run_as_user = number(65534), "65534\n65534\n65534 2000\n/\n"),
        (
            "user and group",
            &busybox,
            |s| (s.run_as_user, s.run_as_group) = (number(1000), number(777)),
            "1000\n777\n777 50 2000\n/home/worker\n",
        ),
        // /etc/passwd has a user *named* 1000 with id 0 (CVE-2016-3697).
        (
            "digits are a number",
            &busybox,
            |s| s.run_as_user = number(1000),
            "1000\n1000\n1000 50 2000\n/home/worker\n",
        ),
        (
            "more groups",
            &busybox,
            |s| (s.run_as_user, s.supplemental_groups) = (number(1000), vec![8888, 9999]),
            "1000\n1000\n1000 50 2000 8888 9999\n/home/worker\n",
        ),
        (
            "strictly these groups",
            &busybox,
            |s| {
                (s.run_as_user, s.supplemental_groups) = (number(1000), vec![8888]);
                s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
            },
            "1000\n1000\n1000 8888\n/home/worker\n",
        ),
        ("highest id", &busybox, |s| s.run_as_user = number(2_147_483_647), "2147483647\n0\n0\n/\n"),
    ];
    for (index, (name, image, change, expected)) in cases.into_iter().enumerate() {
        let config = node.container(&pod.config, &format!("c{index}"), image, &["sh", "-euc", WHO]);
        let ended = node.run_to_end(&pod, config, |config| change(config.security())).await;
        let sorted = |text: &str| {
            let mut lines: Vec<_> = text.lines().map(String::from).collect();
            if let Some(groups) = lines.get_mut(2) {
                let mut words: Vec<_> = groups.split(' ').map(String::from).collect();
                words.sort();
                words.dedup();
                *groups = words.join(" ");
            }
            lines
        };
        assert_eq!(sorted(&ended.stdout), sorted(expected), "{name}: {}", ended.stderr);
        // ContainerStatus says the same.
        let user = ended.status.user.unwrap().linux.unwrap();
        let mut lines = ended.stdout.lines();
        assert_eq!(lines.next().unwrap().parse(), Ok(user.uid), "{name}");
        assert_eq!(lines.next().unwrap().parse(), Ok(user.gid), "{name}");
        let mut groups: Vec<i64> =
            lines.next().unwrap().split(' ').map(|word| word.parse().unwrap()).collect();
        let mut reported = user.supplemental_groups.clone();
        reported.push(user.gid);
        for list in [&mut groups, &mut reported] {
            list.sort_unstable();
            list.dedup();
        }
        assert_eq!(groups, reported, "{name}");
    }
}

#[tokio::test]
async fn users_that_cannot_be_are_refused() {
    let Some(node) = Node::start() else { return };
    let before = node.baseline().await;
    let (busybox, missing) = (node.images.image_id("busybox"), node.image("user-missing").await);
    let pod = node.run_pod("refused", |_| {}).await;
    type Change = fn(&mut LinuxContainerSecurityContext);
    let cases: [(&str, &str, Change); 8] = [
        ("run_as_group", &busybox, |s| s.run_as_group = number(5)),
        ("run_as_username", &busybox, |s| (s.run_as_user, s.run_as_username) = (number(1), "worker".into())),
        ("no-such-user", &busybox, |s| s.run_as_username = "no-such-user".into()),
        ("nobody-here", &missing, |_| {}),
        ("-1", &busybox, |s| s.run_as_user = number(-1)),
        ("4294967295", &busybox, |s| s.run_as_user = number(4_294_967_295)),
        // 2^32 is not root (CVE-2024-40635).
        ("4294967296", &busybox, |s| s.run_as_user = number(4_294_967_296)),
        ("-5", &busybox, |s| s.supplemental_groups = vec![-5]),
    ];
    for (subject, image, change) in cases {
        let mut config = node.container(&pod.config, "main", image, &["true"]);
        change(config.security());
        let answer = node.cri.create(&pod.id, &pod.config, &config).await;
        let (code, text) = failure(answer);
        assert!([Code::InvalidArgument, Code::NotFound].contains(&code), "{subject}: {code:?} {text}");
        assert!(text.contains(subject), "{subject:?} is not named in {text:?}");
    }
    assert_eq!(node.cri.containers().await.unwrap(), []);
    node.remove(&pod.id).await;
    node.cri.remove_image(&missing).await.unwrap();
    node.assert_nothing_left(&before);
}
