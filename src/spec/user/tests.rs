use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    1000:x:0:0:trap:/trap:/bin/sh\n\
    4294967296:x:0:0:trap:/trap:/bin/sh\n\
    18446744073709551616:x:0:0:trap:/trap:/bin/sh\n\
    1x:x:77:77::/one:/bin/sh\n\
    # comment:x:1:1::/:\n\
    short:x:5\n\
    \n\
    big:x:4294967296:0::/:/bin/sh\n\
    neg:x:-1:0::/:/bin/sh\n\
    app:x:1000:1001:App:/home/app:/bin/sh\n\
    app:x:0:0:second line of the same name:/root:/bin/sh\n\
    alias:x:1000:7::/elsewhere:/bin/sh\n\
    homeless:x:1002:1002:::/bin/sh\n\
    crlf:x:1003:1003::/home/crlf:/bin/sh\r\n\
    odd:x:1004:1004::relative/home:/bin/sh\n";

const GROUP: &str = "root:x:0:\n\
    app:x:1001:\n\
    wheel:x:10:root,app\n\
    audio:x:29:nobody,app,other\n\
    apps:x:30:apps\n\
    500:x:0:\n\
    dup:x:600:\n\
    dup:x:0:\n\
    bad:x:99999999999:app\n";

struct Image(tempfile::TempDir);

impl Image {
    fn new() -> Self {
        let image = Self::empty();
        fs::write(image.path().join("etc/passwd"), PASSWD).unwrap();
        fs::write(image.path().join("etc/group"), GROUP).unwrap();
        image
    }

    fn empty() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn root(&self) -> OwnedFd {
        rustix::fs::open(self.path(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .unwrap()
    }

    fn resolve(&self, request: &Request<'_>) -> Result<User, Error> {
        resolve(self.root().as_fd(), request)
    }

    fn user(&self, text: &str) -> Result<User, Error> {
        self.resolve(&Request { image_user: text, ..Request::default() })
    }
}

#[test]
fn image_users() {
    let image = Image::new();
    type Resolved<'a> = (u32, u32, &'a [u32], &'a str);
    let cases: [(&str, Option<Resolved<'_>>); 29] = [
        ("", Some((0, 0, &[0, 10], "/root"))),
        ("0", Some((0, 0, &[0, 10], "/root"))),
        ("root", Some((0, 0, &[0, 10], "/root"))),
        // CVE-2016-3697: digits are a number although a line has them as its name.
        ("1000", Some((1000, 1001, &[10, 29, 1001], "/home/app"))),
        ("app", Some((1000, 1001, &[10, 29, 1001], "/home/app"))),
        ("1", Some((1, 0, &[0], "/"))),
        ("1:2", Some((1, 2, &[2], "/"))),
        ("1000:2", Some((1000, 2, &[2, 10, 29], "/home/app"))),
        ("app:audio", Some((1000, 29, &[10, 29], "/home/app"))),
        ("1:audio", Some((1, 29, &[29], "/"))),
        ("app:500", Some((1000, 500, &[10, 29, 500], "/home/app"))),
        ("app:dup", Some((1000, 600, &[10, 29, 600], "/home/app"))),
        ("1x", Some((77, 77, &[77], "/one"))),
        ("homeless", Some((1002, 1002, &[1002], "/"))),
        ("crlf", Some((1003, 1003, &[1003], "/home/crlf"))),
        ("odd", Some((1004, 1004, &[1004], "/"))),
        ("2147483647", Some((2_147_483_647, 0, &[0], "/"))),
        ("0000000000000000000001", Some((1, 0, &[0], "/"))),
        // CVE-2024-40635, CVE-2026-46680: too large is an error, not 0 and not a name.
        ("2147483648", None),
        ("2147483648:0", None),
        ("4294967295", None),
        ("4294967296", None),
        ("18446744073709551616", None),
        // CVE-2026-30892
        ("1:", None),
        (":2", None),
        ("-1", None),
        ("2x", None),
        ("1:4294967296", None),
        ("1:2:3", None),
    ];
    for (text, expected) in cases {
        let resolved = image.user(text);
        let found = resolved
            .as_ref()
            .ok()
            .map(|user| (user.uid, user.gid, user.additional_gids.as_slice(), user.home.to_str().unwrap()));
        assert_eq!(found, expected, "{text:?}: {resolved:?}");
    }
}

#[test]
fn errors_name_what_is_missing() {
    let image = Image::new();
    let message = |text| image.user(text).unwrap_err().to_string();
    assert_eq!(message("nobody"), "user \"nobody\" is not in the image's /etc/passwd");
    assert_eq!(message("app:nogroup"), "group \"nogroup\" is not in the image's /etc/group");
    assert_eq!(message("4294967296"), "user id 4294967296 is not between 0 and 2147483647");
    assert_eq!(message("1:99999999999"), "group id 99999999999 is not between 0 and 2147483647");
    assert_eq!(image.user("nobody").unwrap_err().code(), Code::NotFound);
    assert_eq!(image.user("4294967296").unwrap_err().code(), Code::InvalidArgument);
    // Lines whose id is out of range are nobody's: they do not become root.
    for name in ["big", "neg", "short"] {
        assert_eq!(image.user(name).unwrap_err().code(), Code::NotFound, "{name}");
    }
    // CVE-2022-4318: nothing that could forge a line is ever a name.
    for text in ["a\nroot:x:0:0", "a\r", "a b", "a\0", "../x", "app:a\nb"] {
        assert_eq!(image.user(text).unwrap_err().code(), Code::InvalidArgument, "{text:?}");
    }
}

#[test]
fn requests_of_cri() {
    let image = Image::new();
    let base = Request { image_user: "app", ..Request::default() };
    let ids = |request: Request<'_>| {
        image.resolve(&request).map(|user| (user.uid, user.gid, user.additional_gids)).ok()
    };
    assert_eq!(ids(base), Some((1000, 1001, vec![10, 29, 1001])));
    assert_eq!(ids(Request { run_as_user: Some(5), ..base }), Some((5, 0, vec![0])));
    assert_eq!(ids(Request { run_as_user: Some(0), ..base }), Some((0, 0, vec![0, 10])));
    assert_eq!(
        ids(Request { run_as_user: Some(1000), run_as_group: Some(3), ..base }),
        Some((1000, 3, vec![3, 10, 29]))
    );
    assert_eq!(ids(Request { run_as_username: "root", ..base }), Some((0, 0, vec![0, 10])));
    assert_eq!(ids(Request { run_as_username: "1000", ..base }), Some((1000, 1001, vec![10, 29, 1001])));
    let groups = [7, 7, 5];
    let with = Request { supplemental_groups: &groups, ..base };
    assert_eq!(ids(with), Some((1000, 1001, vec![5, 7, 10, 29, 1001])));
    assert_eq!(ids(Request { policy: GroupPolicy::Strict, ..with }), Some((1000, 1001, vec![5, 7, 1001])));
    for refused in [
        Request { run_as_user: Some(1), run_as_username: "app", ..base },
        Request { run_as_group: Some(1), ..base },
        Request { run_as_user: Some(-1), ..base },
        Request { run_as_user: Some(4_294_967_296), ..base },
        Request { run_as_user: Some(1), run_as_group: Some(i64::MIN), ..base },
        Request { run_as_username: "app:root", ..base },
        Request { run_as_username: "nobody", ..base },
        Request { supplemental_groups: &[-5], ..base },
        Request { supplemental_groups: &[1 << 40], ..base },
    ] {
        assert_eq!(ids(refused), None, "{refused:?}");
    }
    let many: Vec<i64> = (0..65_537).collect();
    assert!(matches!(
        image.resolve(&Request { supplemental_groups: &many, ..base }),
        Err(Error::TooManyGroups)
    ));
}

#[test]
fn an_image_without_accounts() {
    let image = Image::empty();
    assert_eq!(image.user("5:6").unwrap().additional_gids, [6]);
    assert_eq!(image.user("").unwrap().username, None);
    assert_eq!(image.user("root").unwrap_err().code(), Code::NotFound);
    fs::remove_dir(image.path().join("etc")).unwrap();
    assert_eq!(image.user("").unwrap().uid, 0);
    fs::write(image.path().join("etc"), "a file").unwrap();
    assert_eq!(image.user("3").unwrap().uid, 3);
}

#[test]
fn links_stay_inside_the_image() {
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("passwd"), "canary:x:4242:4242::/:\n").unwrap();
    for target in [
        host.path().join("passwd").display().to_string(),
        format!("../../../../../../../..{}/passwd", host.path().display()),
    ] {
        let image = Image::empty();
        std::os::unix::fs::symlink(&target, image.path().join("etc/passwd")).unwrap();
        assert_eq!(image.user("canary").unwrap_err().code(), Code::NotFound, "{target}");
    }
    // /etc itself a link out of the image
    let image = Image(tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(host.path(), image.path().join("etc")).unwrap();
    assert_eq!(image.user("canary").unwrap_err().code(), Code::NotFound);
    // An absolute link inside works as it does in the container.
    let image = Image::empty();
    fs::create_dir(image.path().join("real")).unwrap();
    fs::write(image.path().join("real/passwd"), "inner:x:31:32::/in:\n").unwrap();
    std::os::unix::fs::symlink("/real/passwd", image.path().join("etc/passwd")).unwrap();
    assert_eq!(image.user("inner").unwrap().uid, 31);
    // Links of /proc lead out of any root.
    let image = Image::empty();
    std::os::unix::fs::symlink("passwd", image.path().join("etc/passwd")).unwrap();
    assert_eq!(image.user("x").unwrap_err().code(), Code::InvalidArgument);
}

#[test]
fn what_is_not_a_sound_file_is_refused_at_once() {
    let started = Instant::now();
    let node = |typ, number| {
        move |path: &Path| rustix::fs::mknodat(CWD, path, typ, Mode::from_raw_mode(0o644), number).unwrap()
    };
    let sparse = |path: &Path| fs::File::create(path).unwrap().set_len(20 << 30).unwrap();
    let long = |path: &Path| fs::write(path, vec![b'a'; 2 << 20]).unwrap();
    let directory = |path: &Path| fs::create_dir(path).unwrap();
    type Maker = Box<dyn Fn(&Path)>;
    let makers: [(&str, Maker); 6] = [
        ("fifo", Box::new(node(FileType::Fifo, 0))),
        ("zero", Box::new(node(FileType::CharacterDevice, rustix::fs::makedev(1, 5)))),
        ("tty", Box::new(node(FileType::CharacterDevice, rustix::fs::makedev(5, 0)))),
        ("directory", Box::new(directory)),
        ("sparse", Box::new(sparse)),
        ("long", Box::new(long)),
    ];
    for (name, make) in &makers {
        let image = Image::empty();
        make(&image.path().join("etc/passwd"));
        assert_eq!(image.user("app").unwrap_err().code(), Code::InvalidArgument, "passwd {name}");
        let image = Image::new();
        fs::remove_file(image.path().join("etc/group")).unwrap();
        make(&image.path().join("etc/group"));
        assert_eq!(image.user("app").unwrap_err().code(), Code::InvalidArgument, "group {name}");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[test]
fn to_oci_keeps_the_primary_group_among_the_others() {
    let user = Image::new().user("app").unwrap();
    let oci = user.to_oci();
    assert_eq!((oci.uid(), oci.gid()), (1000, 1001));
    assert_eq!(oci.additional_gids().as_deref(), Some(&[10, 29, 1001][..]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hostile_files_never_panic_and_digits_are_never_names(
        passwd in proptest::collection::vec(any::<u8>(), 0..400),
        lines in "([a-z0-9]{0,3}(:[a-z0-9/-]{0,5}){0,8}\n){0,20}",
        user in "[0-9a-c:]{0,6}",
    ) {
        let image = Image::empty();
        fs::write(image.path().join("etc/passwd"), [passwd.as_slice(), b"\n", lines.as_bytes()].concat()).unwrap();
        fs::write(image.path().join("etc/group"), &lines).unwrap();
        if let Ok(resolved) = image.user(&user) {
            prop_assert!(resolved.additional_gids.contains(&resolved.gid));
            let name = user.split(':').next().unwrap();
            if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
                prop_assert_eq!(resolved.uid, name.parse::<u32>().unwrap());
            }
        }
    }
}
