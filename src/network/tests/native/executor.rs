//! Two ways to run a list of plugins.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pinnace_network::native::{Call, Native};
use serde_json::{Map, Value, json};

const PROGRAMS: &str = "/usr/lib/cni";
const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Programs,
    Native,
}

/// A list of plugins, and what the runtime says of a pod.
#[derive(Debug, Clone)]
pub struct List {
    pub version: &'static str,
    pub name: &'static str,
    pub plugins: Vec<Value>,
    pub capabilities: Value,
}

/// A pod as the plugins see it.
#[derive(Debug, Clone)]
pub struct Target {
    pub container: String,
    pub netns: PathBuf,
}

/// Whether the programs are there; says so if not.
pub fn programs_installed() -> bool {
    let installed = Path::new(PROGRAMS).join("bridge").exists();
    if !installed {
        skip(&format!("{PROGRAMS} has no plugins (containernetworking-plugins)"));
    }
    installed
}

/// Says why a test does nothing, past the harness, which swallows what tests print that pass.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("test");
    let line = format!("SKIP {}: {reason}\n", name.rsplit("::").next().unwrap_or(name));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

pub fn add(by: By, list: &List, target: &Target) -> Result<Value, String> {
    add_after(by, list, target, &Value::Null)
}

/// Like [`add`] for plugins that come after others.
pub fn add_after(by: By, list: &List, target: &Target, previous: &Value) -> Result<Value, String> {
    let mut previous = previous.clone();
    for plugin in &list.plugins {
        let config = config(list, plugin, &previous);
        previous = call(by, "ADD", target, &config)?;
    }
    Ok(previous)
}

pub fn check(by: By, list: &List, target: &Target, result: &Value) -> Result<(), String> {
    for plugin in &list.plugins {
        call(by, "CHECK", target, &config(list, plugin, result))?;
    }
    Ok(())
}

pub fn del(by: By, list: &List, target: &Target, result: &Value) -> Result<(), String> {
    for plugin in list.plugins.iter().rev() {
        call(by, "DEL", target, &config(list, plugin, result))?;
    }
    Ok(())
}

/// What a runtime passes to one plugin of a list.
pub fn config(list: &List, plugin: &Value, previous: &Value) -> Value {
    let mut config = plugin.as_object().unwrap().clone();
    config.insert("cniVersion".to_owned(), list.version.into());
    config.insert("name".to_owned(), list.name.into());
    let wanted = plugin.get("capabilities").and_then(Value::as_object).cloned().unwrap_or_default();
    let given = list.capabilities.as_object().cloned().unwrap_or_default();
    let runtime: Map<String, Value> =
        given.into_iter().filter(|(name, _)| wanted.contains_key(name)).collect();
    if !runtime.is_empty() {
        config.insert("runtimeConfig".to_owned(), runtime.into());
    }
    if !previous.is_null() {
        config.insert("prevResult".to_owned(), previous.clone());
    }
    config.into()
}

fn call(by: By, command: &str, target: &Target, config: &Value) -> Result<Value, String> {
    match by {
        By::Programs => execute(command, target, config),
        By::Native => native(command, target, config),
    }
}

fn native(command: &str, target: &Target, config: &Value) -> Result<Value, String> {
    Native::supports(config).map_err(|error| format!("unsupported: {error}"))?;
    let native = Native::open().unwrap();
    let call =
        Call { container: &target.container, netns: Some(&target.netns), ifname: "eth0", args: ARGS, config };
    let done = match command {
        "ADD" => native.add(call),
        "DEL" => native.del(call).map(|()| json!(null)),
        _ => native.check(call).map(|()| json!(null)),
    };
    done.map_err(|error| {
        let mut text = error.to_string();
        let mut next = std::error::Error::source(&error);
        while let Some(cause) = next {
            text = format!("{text}: {cause}");
            next = cause.source();
        }
        text
    })
}

fn execute(command: &str, target: &Target, config: &Value) -> Result<Value, String> {
    let program = Path::new(PROGRAMS).join(config["type"].as_str().unwrap());
    let mut child = Command::new(program)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &target.container)
        .env("CNI_NETNS", &target.netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", ARGS)
        .env("CNI_PATH", PROGRAMS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        return Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    }
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
}
