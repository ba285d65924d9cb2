use super::*;

fn parse(text: &str) -> Result<Config, Vec<String>> {
    match Config::parse("c.toml", text, &Overrides::default()) {
        Ok(config) => Ok(config),
        Err(ConfigError::Invalid(problems)) => {
            Err(problems.into_iter().map(|p| format!("{}: {}", p.place, p.message)).collect())
        }
        Err(other) => panic!("{other}"),
    }
}

fn problem(text: &str) -> String {
    let problems = parse(text).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.into_iter().next().unwrap()
}

#[test]
fn the_reference_is_what_is_deployed() {
    let deployed = include_str!("../../../deploy/config.toml");
    assert!(
        deployed == reference(),
        "deploy/config.toml is out of date: pinnace serve --config-reference > deploy/config.toml"
    );
}

#[test]
fn the_reference_uncommented_is_the_defaults() {
    let uncommented: String = reference()
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let keys = uncommented.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count();
    assert_eq!(keys, keys::SECTIONS.iter().map(|section| section.keys.len()).sum::<usize>());
    assert_eq!(parse(&uncommented).unwrap(), Config::defaults());
    assert_eq!(parse("").unwrap(), Config::defaults());
}

#[test]
fn values_arrive() {
    let config = parse(
        r#"
        [daemon]
        root = "/srv/pinnace/"
        run = "/run/other"
        log_level = "warn,pinnace_pull=debug"
        [image]
        pull_memory = "1GiB"
        insecure_registries = ["Registry.local:5000", "[fd00::1]:80"]
        pinned_images = ["registry.k8s.io/*"]
        [network]
        ipv4_subnet = "10.1.2.0/24"
        ipv6_subnet = ""
        [container]
        umask = "077"
        rlimits = ["core=0", "memlock=65536:unlimited"]
        "#,
    )
    .unwrap();
    assert_eq!(config.daemon.root, Path::new("/srv/pinnace"));
    assert_eq!(config.socket(), Path::new("/run/other/pinnace.sock"));
    assert_eq!(config.image.pull_memory, 1 << 30);
    assert_eq!(config.image.insecure_registries, ["registry.local:5000", "[fd00::1]:80"]);
    assert!(config.image.pinned_images[0].matches("registry.k8s.io/pause:3.10"));
    assert!(!config.image.pinned_images[0].matches("docker.io/library/a:1"));
    let pins = |pattern: &str, name: &str| {
        let text = format!("[image]\npinned_images = [\"{pattern}\"]");
        parse(&text).unwrap().image.pinned_images[0].matches(name)
    };
    for (pattern, name, expected) in [
        ("a.io/pause:3", "a.io/pause:3", true),
        ("a.io/pause:3", "a.io/pause:31", false),
        ("*/pause:*", "a.io/x/pause:3", true),
        ("*/pause:*", "a.io/pauses:3", false),
        ("a*b*c", "abc", true),
        ("a*b*c", "axbxbxc", true),
        ("a*b*c", "acb", false),
        ("ab*ba", "aba", false),
        ("*:latest", "a.io/b:latest", true),
    ] {
        assert_eq!(pins(pattern, name), expected, "{pattern} {name}");
    }
    assert_eq!(config.network.ipv4_subnet.unwrap().to_string(), "10.1.2.0/24");
    assert_eq!(config.network.ipv6_subnet, None);
    assert_eq!(config.container.umask, 0o077);
    let memlock = Rlimit { name: "RLIMIT_MEMLOCK".into(), soft: 65_536, hard: u64::MAX };
    assert_eq!(config.container.rlimits[1], memlock);
}

#[test]
fn unknown_names_are_refused_where_they_stand() {
    assert_eq!(
        problem("[image]\nlayer_from = \"auto\"\n"),
        "c.toml:2:1: unknown key `image.layer_from`, did you mean `layer_form`?"
    );
    assert_eq!(
        problem("[image]\n  stall-timeout = \"1s\""),
        "c.toml:2:3: unknown key `image.stall-timeout`, did you mean `stall_timeout`?"
    );
    assert_eq!(problem("[images]\n"), "c.toml:1:2: unknown section `images`, did you mean `image`?");
    assert_eq!(problem("umask = 18"), "c.toml:1:1: unknown key `umask`, it belongs under [container]");
    assert_eq!(
        problem("[network]\nlog_level = \"info\""),
        "c.toml:2:1: unknown key `network.log_level`, it belongs under [daemon]"
    );
    assert_eq!(problem("[image]\nzzz = 1"), "c.toml:2:1: unknown key `image.zzz`");
    assert_eq!(problem("image = 1"), "c.toml:1:9: `image` is a section: write [image]");
}

#[test]
fn wrong_values_are_refused_where_they_stand() {
    let cases = [
        ("[daemon]\nroot = 1", "2:8: `daemon.root` must be a path, not an integer"),
        ("[daemon]\nroot = \"x\"", "2:8: `daemon.root` must be an absolute path, not \"x\""),
        ("[daemon]\nroot = \"/a/../b\"", "2:8: `daemon.root` must be a path without `..`, not \"/a/../b\""),
        (
            "[daemon]\nlog_level = \"inof\"",
            "2:13: `daemon.log_level` must be one of off, error, warn, info, debug, trace or a filter such as \
             \"info,pinnace_pull=debug\", not \"inof\", did you mean `info`?",
        ),
        (
            "[image]\nlayer_form = \"dir\"",
            "2:14: `image.layer_form` must be one of \"auto\", \"tar-erofs\", \"directory\", not \"dir\"",
        ),
        (
            "[image]\nmax_parallel_downloads = 0",
            "2:26: `image.max_parallel_downloads` must be an integer from 1 to 64, not 0",
        ),
        (
            "[image]\nmax_parallel_downloads = -3",
            "2:26: `image.max_parallel_downloads` must be an integer from 1 to 64, not -3",
        ),
        (
            "[image]\nstall_timeout = 30",
            "2:17: `image.stall_timeout` must be a time such as \"250ms\", \"30s\", \"2m\" or \"1h\", not an integer",
        ),
        (
            "[image]\npull_memory = \"64MB\"",
            "2:15: `image.pull_memory` must be a size such as \"64KiB\", \"32MiB\" or \"1GiB\", not \"64MB\"",
        ),
        ("[network]\nbridge = \"a/b\"", "2:10: `network.bridge` must be 1 to 15 characters"),
        (
            "[network]\nipv4_subnet = \"10.1.2.3/24\"",
            "2:15: `network.ipv4_subnet` has bits set behind its prefix: \"10.1.2.3/24\"",
        ),
        (
            "[network]\nipv4_subnet = \"fd00::/64\"",
            "2:15: `network.ipv4_subnet` must be a network such as \"10.88.0.0/16\", or empty, not \"fd00::/64\"",
        ),
        ("[network]\nmtu = 600", "2:7: `network.mtu` must be 0 or at least 1280"),
        (
            "[container]\nrlimits = [\"nofiles=1\"]",
            "2:11: `container.rlimits` has no limit \"nofiles\", did you mean `nofile`?",
        ),
        (
            "[container]\nrlimits = [\"core=2:1\"]",
            "2:11: `container.rlimits` has a soft limit above the hard one",
        ),
        ("[container]\numask = \"0o22\"", "2:9: `container.umask` must be an octal mask"),
        ("[container]\ncgroup_parent = \"pods\"", "2:17: `container.cgroup_parent` must be a path"),
    ];
    for (text, expected) in cases {
        let found = problem(text);
        assert!(found.starts_with(&format!("c.toml:{expected}")), "{text:?}\n  {found}\n  {expected}");
    }
}

#[test]
fn all_problems_come_at_once_and_syntax_errors_too() {
    let problems = parse("[daemon]\nroot = 1\nlog_format = \"xml\"\nrn = \"/r\"\n[[image]]\n").unwrap_err();
    let places: Vec<&str> = problems.iter().map(|p| p.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["c.toml:2:8", "c.toml:3:14", "c.toml:4:1", "c.toml:5:1"], "{problems:?}");
    assert!(problem("[daemon]\nroot = \n").starts_with("c.toml:2:"));
}

#[test]
fn what_spans_keys_is_checked_and_flags_win() {
    assert_eq!(
        problem("[daemon]\nroot = \"/run/pinnace/root\"\n"),
        "c.toml: `daemon.run` /run/pinnace and root /run/pinnace/root must not lie in each other"
    );
    let long = format!("[daemon]\nsocket = \"/{}\"", "s".repeat(107));
    assert!(problem(&long).starts_with("c.toml:2:10: `daemon.socket` /sss"));
    assert!(problem("[network]\nipv4_subnet = \"\"\nipv6_subnet = \"\"").contains("cannot both be empty"));
    assert!(problem("[streaming]\ntls_key = \"/k\"").contains("together or not at all"));
    assert!(problem("[streaming]\ntls_client_ca = \"/c\"").contains("needs tls_certificate"));
    assert!(
        problem("[streaming]\nlisten = \"localhost\"").starts_with("c.toml:2:10: `streaming.listen` must be")
    );
    assert!(problem("[streaming]\npublic_host = \"node:1\"").contains("without a port"));

    let overrides = Overrides {
        root: Some("/a".into()),
        run: Some("/b".into()),
        socket: None,
        log_level: Some("debug".into()),
    };
    let config = Config::parse("c.toml", "[daemon]\nroot = \"/x\"", &overrides).unwrap();
    assert_eq!(config.daemon.root, Path::new("/a"));
    assert_eq!(config.socket(), Path::new("/b/pinnace.sock"));
    assert_eq!(config.daemon.log_level, "debug");
    let relative = Overrides { root: Some("a".into()), ..Overrides::default() };
    let error = Config::parse("c.toml", "", &relative).unwrap_err();
    assert_eq!(error.to_string(), "--root: must be an absolute path, not \"a\"");
}

#[test]
fn a_file_that_was_named_must_exist() {
    let error = Config::load(Some(Path::new("/nonexistent/c.toml")), &Overrides::default()).unwrap_err();
    assert_eq!(error.to_string(), "/nonexistent/c.toml: read configuration");
}
