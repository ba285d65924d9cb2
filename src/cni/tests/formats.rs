//! Lists and results as text: every version, and every text.

#![allow(clippy::unwrap_used, reason = "all of this is tests")]

use std::path::Path;

use pinnace_cni::{CniResult, Interface, IpConfig, NetworkList, Route, Version};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(value: &Value, asked: Version) -> CniResult {
    CniResult::parse(value.to_string().as_bytes(), asked).unwrap()
}

fn written(result: &CniResult, version: Version) -> Value {
    Value::Object(result.to_map(version))
}

fn newest() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "cni0", "mac": "00:11:22:33:44:55", "mtu": 1500},
            {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/ns", "mtu": 1400, "socketPath": "/s", "pciID": "0000:00:01.0"},
        ],
        "ips": [
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00::5/64", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1300, "advmss": 1200, "priority": 5, "table": 7, "scope": 0}],
        "dns": {"nameservers": ["10.1.0.1"], "search": ["a.b"]},
    })
}

#[test]
fn newest_form_is_kept_whole() {
    assert_eq!(written(&parse(&newest(), Version::V1_1_0), Version::V1_1_0), newest());
}

#[test]
fn older_forms_have_what_their_version_has() {
    let result = parse(&newest(), Version::V1_1_0);
    let plain = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            {"name": "cni0", "mac": "00:11:22:33:44:55"},
            {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/ns"},
        ],
        "ips": [
            {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 1},
            {"address": "fd00::5/64", "interface": 1},
        ],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}],
        "dns": {"nameservers": ["10.1.0.1"], "search": ["a.b"]},
    });
    assert_eq!(written(&result, Version::V1_0_0), plain);
    for (version, text) in
        [(Version::V0_3_0, "0.3.0"), (Version::V0_3_1, "0.3.1"), (Version::V0_4_0, "0.4.0")]
    {
        let mut expected = plain.clone();
        expected["cniVersion"] = text.into();
        expected["ips"][0]["version"] = "4".into();
        expected["ips"][1]["version"] = "6".into();
        assert_eq!(written(&result, version), expected);
        // And back.
        assert_eq!(written(&parse(&expected, version), Version::V1_0_0), plain);
    }
    let oldest = json!({
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
        "ip6": {"ip": "fd00::5/64"},
        "dns": {"nameservers": ["10.1.0.1"], "search": ["a.b"]},
    });
    assert_eq!(written(&result, Version::V0_2_0), oldest);
    let back = parse(&oldest, Version::V0_2_0);
    assert_eq!(back.ips.len(), 2);
    assert_eq!(back.routes, [Route::new("0.0.0.0/0".parse().unwrap(), Some("10.1.0.1".parse().unwrap()))]);
}

#[test]
fn gos_way_of_writing_nothing_is_understood() {
    let text = br#"{"interfaces":null,"ips":[{"address":"10.0.0.2/8","gateway":""}],"routes":null,"dns":{"nameservers":null}}"#;
    let result = CniResult::parse(text, Version::V0_4_0).unwrap();
    assert_eq!((result.cni_version, result.ips.len(), result.ips[0].gateway), (Version::V0_4_0, 1, None));
}

#[test]
fn address_of_no_interface_is_refused() {
    let text = br#"{"interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/8","interface":1}]}"#;
    let refused = CniResult::parse(text, Version::V1_0_0).unwrap_err();
    assert_eq!(refused.to_string(), "address 10.0.0.2/8 is of interface 1, there are 1");
}

#[test]
fn addresses_are_those_of_the_pods_interface() {
    let interface = |name: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        sandbox: sandbox.to_owned(),
        ..Interface::default()
    };
    let ip =
        |address: &str, interface| IpConfig { address: address.parse().unwrap(), gateway: None, interface };
    let mut result = CniResult::empty(Version::V1_0_0);
    result.interfaces = vec![interface("eth0", ""), interface("eth0", "/ns"), interface("net1", "/ns")];
    result.ips = vec![ip("10.0.0.1/8", Some(0)), ip("10.0.0.2/8", Some(1)), ip("10.0.0.3/8", Some(2))];
    let found: Vec<_> = result.addresses_of("eth0").map(|ip| ip.address.to_string()).collect();
    assert_eq!(found, ["10.0.0.2/8"]);
}

#[test]
fn wrong_lists_are_refused_with_their_reason() {
    for (text, reason) in [
        ("", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("{}", "`name` is missing"),
        (r#"{"name":7}"#, "`name` must be a string"),
        (r#"{"name":"../a","plugins":[]}"#, "network name \"../a\" must begin with"),
        (r#"{"name":"a","plugins":{}}"#, "`plugins` must be an array"),
        (r#"{"name":"a","plugins":[7]}"#, "`plugins` must be an array of objects"),
        (r#"{"name":"a","plugins":[{}]}"#, "`type` is missing"),
        (r#"{"name":"a","plugins":[{"type":"a/b"}]}"#, "plugin type \"a/b\""),
        (r#"{"name":"a","plugins":[{"type":".."}]}"#, "plugin type \"..\""),
        (r#"{"name":"a","plugins":[{"type":"b","ipam":{"type":"../x"}}]}"#, "ipam type \"../x\""),
        (
            r#"{"name":"a","plugins":[{"type":"b","capabilities":{"x":1}}]}"#,
            "`capabilities.x` must be true or false",
        ),
        (r#"{"name":"a","cniVersion":"9.0.0","plugins":[{"type":"b"}]}"#, "none of the CNI versions"),
        (r#"{"name":"a","disableCheck":"maybe","plugins":[]}"#, "`disableCheck` must be true or false"),
        (r#"{"name":"a","loadOnlyInlinedPlugins":true}"#, "`loadOnlyInlinedPlugins` is true"),
        (r#"{"name":"a","type":"bridge"}"#, "belongs into a .conflist"),
    ] {
        let refused = NetworkList::parse_list(text.as_bytes(), Path::new("x")).unwrap_err().to_string();
        assert!(refused.contains(reason), "{text}: {refused}");
    }
}

#[test]
fn highest_version_that_we_speak_is_taken() {
    for (versions, expected) in [
        (r#""cniVersion":"0.3.1""#, Version::V0_3_1),
        (r#""cniVersion":"0.4.0","cniVersions":["0.3.1","1.0.0","2.0.0"]"#, Version::V1_0_0),
        (r#""cniVersions":["1.1.0"]"#, Version::V1_1_0),
        (r#""disableGC":true"#, Version::V0_1_0),
    ] {
        let text = format!(r#"{{"name":"a",{versions},"plugins":[{{"type":"b"}}]}}"#);
        assert_eq!(NetworkList::parse_list(text.as_bytes(), Path::new("x")).unwrap().cni_version, expected);
    }
}

fn version() -> impl Strategy<Value = Version> {
    prop::sample::select(Version::ALL.to_vec())
}

/// JSON with the keys that matter in places where they may or may not belong.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "eth0",
            "10.0.0.1/8",
            "fd00::1/64",
            "1.0.0",
            "0.2.0",
            "bridge",
            "..",
            "10.0.0.1"
        ])
        .prop_map(Value::from),
    ];
    let keys = vec![
        "cniVersion",
        "interfaces",
        "ips",
        "address",
        "gateway",
        "interface",
        "routes",
        "dst",
        "gw",
        "dns",
        "ip4",
        "ip",
        "name",
        "plugins",
        "type",
        "capabilities",
        "sandbox",
        "mtu",
        "nameservers",
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(keys.clone()), inner), 0..6).prop_map(|entries| {
                Value::Object(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn no_text_makes_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), version in version()) {
        let _ = CniResult::parse(&bytes, version);
        let _ = NetworkList::parse_list(&bytes, Path::new("x"));
        let _ = NetworkList::parse_single(&bytes, Path::new("x"));
    }

    #[test]
    fn what_is_read_can_be_written_and_read_again(value in value(), asked in version()) {
        let bytes = value.to_string();
        if let Ok(result) = CniResult::parse(bytes.as_bytes(), asked) {
            let again = Value::Object(result.to_map(Version::V1_1_0)).to_string();
            prop_assert_eq!(CniResult::parse(again.as_bytes(), asked).unwrap(), result);
        }
        if let Ok(list) = NetworkList::parse_list(bytes.as_bytes(), Path::new("x")) {
            let again = Value::Object(list.raw.clone()).to_string();
            prop_assert_eq!(NetworkList::parse_list(again.as_bytes(), Path::new("x")).unwrap(), list);
        }
    }
}
