use std::fs;

use oci_spec::runtime::Spec;

use super::*;

const NULL: &str = r#""deviceNodes":[{"path":"/dev/vendor0","hostPath":"/dev/null"}]"#;

fn file(directory: &Path, name: &str, kind: &str, devices: &[(&str, &str)]) {
    let devices: Vec<_> = devices
        .iter()
        .map(|(name, edits)| format!(r#"{{"name":"{name}","containerEdits":{{{edits}}}}}"#))
        .collect();
    let text = format!(r#"{{"cdiVersion":"0.6.0","kind":"{kind}","devices":[{}]}}"#, devices.join(","));
    fs::write(directory.join(name), text).unwrap();
}

fn inject(registry: &Registry, names: &[&str]) -> Result<Spec, Error> {
    let mut spec = Spec::default();
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    registry.inject(&mut spec, &names).map(|()| spec)
}

fn env(spec: &Spec) -> Vec<String> {
    let env = spec.process().as_ref().unwrap().env().clone().unwrap_or_default();
    env.into_iter().filter(|entry| entry.starts_with("CDI")).collect()
}

#[test]
fn names_are_qualified() {
    for good in ["v/c=d", "vendor.com/gpu-x_y.z=all", "v/c=0:1.2-3_4", "V1/c=GPU0"] {
        assert_eq!(good.parse::<Name>().unwrap().to_string(), good);
    }
    for bad in [
        "",
        "=",
        "v/c",
        "v=c",
        "/c=d",
        "v/=d",
        "v/c=",
        "v/c=d d",
        "v/c=-d",
        "v/c=d-",
        "1v/c=d",
        "v-/c=d",
        "v/c/x=d",
        "v/../c=d",
        "v/c=d\n",
        "v/c=d=e",
        "v/c=\u{e9}",
    ] {
        let error = bad.parse::<Name>().unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{bad:?}");
        assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
    }
    assert!(format!("v/c={}", "d".repeat(600)).parse::<Name>().is_err());
}

#[test]
fn annotations_name_devices() {
    let of = |pairs: &[(&str, &str)]| {
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        annotated(pairs.iter().map(|(key, value)| (key, value)))
    };
    let found = of(&[("cdi.k8s.io/a", "v/c=1,v/c=2"), ("other", "v/c=3"), ("cdi.k8s.io/b", "w/c=1")]);
    assert_eq!(found.unwrap(), ["v/c=1", "v/c=2", "w/c=1"]);
    let error = of(&[("cdi.k8s.io/a", "v/c=1,x")]).unwrap_err();
    assert!(error.to_string().contains("cdi.k8s.io/a") && error.to_string().contains("\"x\""), "{error}");
}

#[test]
fn every_edit_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let text = "
cdiVersion: 1.0.0
kind: vendor.com/net
annotations: {a: b}
containerEdits:
  env: [CDI_ALL=1]
devices:
- name: one
  containerEdits:
    env: [CDI_ONE=x, PATH=/opt]
    deviceNodes:
    - {path: /dev/v, type: c, major: 10, minor: 200, fileMode: 0o640, permissions: rw, uid: 7, gid: 8}
    - {path: /dev/null2, hostPath: /dev/null}
    mounts:
    - {hostPath: /etc, containerPath: /vendor, options: [ro, nosuid]}
    additionalGids: [0, 44, 44]
- name: two
  containerEdits: {env: [CDI_TWO=y]}
";
    fs::write(directory.path().join("v.yaml"), text).unwrap();
    let registry = Registry::new(vec![directory.path().to_owned()]);
    let spec =
        inject(&registry, &["vendor.com/net=one", "vendor.com/net=two", "vendor.com/net=one"]).unwrap();
    assert_eq!(env(&spec), ["CDI_ALL=1", "CDI_ONE=x", "CDI_TWO=y"]);
    let process = spec.process().as_ref().unwrap();
    assert!(process.env().as_ref().unwrap().contains(&"PATH=/opt".to_owned()));
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[44][..]));
    let linux = spec.linux().as_ref().unwrap();
    let devices = linux.devices().as_ref().unwrap();
    let by = |path: &str| devices.iter().find(|device| device.path() == Path::new(path)).unwrap();
    let node = by("/dev/v");
    assert_eq!((node.major(), node.minor(), node.file_mode()), (10, 200, Some(0o640)));
    assert_eq!((node.uid(), node.gid()), (Some(7), Some(8)));
    assert_eq!((by("/dev/null2").major(), by("/dev/null2").minor()), (1, 3));
    let rules = linux.resources().as_ref().unwrap().devices().clone().unwrap();
    let access: Vec<_> =
        rules.iter().rev().take(2).map(|rule| (rule.minor(), rule.access().clone().unwrap())).collect();
    assert_eq!(access, [(Some(3), "rwm".to_owned()), (Some(200), "rw".to_owned())]);
    let mounts = spec.mounts().as_ref().unwrap();
    let mount = mounts.iter().find(|mount| mount.destination() == Path::new("/vendor")).unwrap();
    assert_eq!(mount.options().as_ref().unwrap(), &["ro", "nosuid", "rbind"]);
}

#[test]
fn later_directories_win_and_equals_conflict() {
    let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let registry = Registry::new(vec![low.path().to_owned(), high.path().to_owned()]);
    file(low.path(), "a.json", "v/c", &[("x", r#""env":["CDI=low"]"#), ("y", r#""env":["CDI=y"]"#)]);
    assert_eq!(env(&inject(&registry, &["v/c=x"]).unwrap()), ["CDI=low"]);
    file(high.path(), "b.json", "v/c", &[("x", r#""env":["CDI=high"]"#)]);
    assert_eq!(env(&inject(&registry, &["v/c=x"]).unwrap()), ["CDI=high"]);
    file(high.path(), "c.json", "v/c", &[("x", r#""env":["CDI=other"]"#)]);
    let error = inject(&registry, &["v/c=x"]).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    assert!(error.to_string().contains("b.json") && error.to_string().contains("c.json"), "{error}");
    assert_eq!(env(&inject(&registry, &["v/c=y"]).unwrap()), ["CDI=y"], "others are not concerned");
    fs::remove_file(high.path().join("b.json")).unwrap();
    assert_eq!(env(&inject(&registry, &["v/c=x"]).unwrap()), ["CDI=other"]);
    fs::remove_file(high.path().join("c.json")).unwrap();
    assert_eq!(env(&inject(&registry, &["v/c=x"]).unwrap()), ["CDI=low"]);
    // Replaced by a rename, as drivers do.
    file(low.path(), "new", "v/c", &[("x", r#""env":["CDI=new"]"#)]);
    fs::rename(low.path().join("new"), low.path().join("a.json")).unwrap();
    assert_eq!(env(&inject(&registry, &["v/c=x"]).unwrap()), ["CDI=new"]);
}

#[test]
fn what_cannot_be_done_names_device_and_file() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::new(vec![directory.path().to_owned(), "/nowhere/cdi".into()]);
    file(
        directory.path(),
        "v.json",
        "v/c",
        &[
            ("hook", r#""hooks":[{"hookName":"createContainer","path":"/usr/bin/hook"}]"#),
            ("rdt", r#""intelRdt":{"closID":"x"}"#),
            ("net", r#""netDevices":[{"hostInterfaceName":"eth9","name":"eth0"}]"#),
            ("gone", r#""deviceNodes":[{"path":"/dev/no-such-device"}]"#),
            ("other", r#""deviceNodes":[{"path":"/dev/null","major":9}]"#),
            ("file", r#""deviceNodes":[{"path":"/dev/x","hostPath":"/etc/passwd"}]"#),
            ("good", NULL),
        ],
    );
    for (device, said) in [
        ("hook", "createContainer hook /usr/bin/hook"),
        ("rdt", "intelRdt"),
        ("net", "eth9"),
        ("gone", "/dev/no-such-device"),
        ("other", "major number"),
        ("file", "is not a device"),
    ] {
        let error = inject(&registry, &[&format!("v/c={device}")]).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
        for part in [&format!("v/c={device}"), "v.json", said] {
            assert!(error.to_string().contains(part), "{part} is not named in {error}");
        }
    }
    assert!(inject(&registry, &["v/c=good"]).is_ok());
    // Nothing of a request that fails is kept.
    let mut spec = Spec::default();
    assert!(registry.inject(&mut spec, &["v/c=good".into(), "v/c=hook".into()]).is_err());
    assert_eq!(spec, Spec::default());

    fs::write(directory.path().join("broken.json"), "{").unwrap();
    fs::write(directory.path().join("ignored.txt"), "{").unwrap();
    let error = inject(&registry, &["v/c=absent"]).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.to_string().contains("broken.json") && !error.to_string().contains("ignored"), "{error}");
    assert!(inject(&registry, &["v/c=good"]).is_ok(), "one broken file spoils no other");
    let error = inject(&Registry::new(Vec::new()), &["v/c=good"]).unwrap_err();
    assert!(error.to_string().contains("cdi_spec_dirs"), "{error}");
}

#[test]
fn what_is_not_a_sound_file_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.json");
    let with =
        |inside: &str| format!(r#"{{"cdiVersion":"0.6.0","kind":"v/c","devices":[{{"name":"x"{inside}}}]}}"#);
    let edits = |inside: &str| with(&format!(r#","containerEdits":{{{inside}}}"#));
    for text in [
        String::new(),
        "null".into(),
        r#"{"cdiVersion":"9.9.9","kind":"v/c","devices":[{"name":"x"}]}"#.into(),
        r#"{"cdiVersion":"0.6.0","kind":"v","devices":[{"name":"x"}]}"#.into(),
        r#"{"cdiVersion":"0.6.0","kind":"v/c","devices":[]}"#.into(),
        r#"{"cdiVersion":"0.6.0","kind":"v/c","devices":[{"name":"x"},{"name":"x"}]}"#.into(),
        with(r#","unknown":1"#),
        edits(r#""env":["A"]"#),
        edits(r#""env":["=x"]"#),
        edits(r#""hooks":[{"hookName":"whenever","path":"/x"}]"#),
        edits(r#""deviceNodes":[{"path":"/dev/x","type":"q"}]"#),
        edits(r#""deviceNodes":[{"path":"/dev/x","permissions":"rwx"}]"#),
        format!("{}{}", with(""), " ".repeat(5 << 20)),
    ] {
        fs::write(&path, &text).unwrap();
        let error = inject(&Registry::new(vec![directory.path().to_owned()]), &["v/c=x"]).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("a.json: "), "{}: {error}", text.chars().take(100).collect::<String>());
    }
    fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let error = inject(&Registry::new(vec![directory.path().to_owned()]), &["v/c=x"]).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}
