//! The config of an image (image-spec, config.md), with Docker's additions.

use std::collections::BTreeMap;

use pinnace_store::DiffId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// Go writes empty lists and maps as null.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + DeserializeOwned>(from: D) -> Result<T, D::Error> {
    let value = Option::<Value>::deserialize(from)?.unwrap_or(Value::Null);
    if value.is_null() {
        Ok(T::default())
    } else {
        serde_json::from_value(value).map_err(serde::de::Error::custom)
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// An image's config.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub author: String,
    /// `amd64`, `arm64`, …
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`, …
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub variant: String,
    /// `linux`
    #[serde(default)]
    pub os: String,
    /// How to run it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: Run,
    /// Its layers.
    #[serde(default)]
    pub rootfs: RootFs,
    /// What was done to make it, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub history: Vec<History>,
    /// What else was written.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The layers of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`
    #[serde(rename = "type")]
    pub kind: String,
    /// Base first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// How containers of an image run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Run {
    /// `name`, `uid`, `name:group`, …
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub user: String,
    /// `port/protocol`
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub exposed_ports: BTreeMap<String, Map<String, Value>>,
    /// `KEY=value`, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The program, or the arguments of the entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Asked for by nobody but Docker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Health>,
    /// The command was escaped already (Windows).
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_as_default")]
    pub args_escaped: bool,
    /// Directories that get storage of their own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub volumes: BTreeMap<String, Map<String, Value>>,
    /// Where the program starts.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// Free-form data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks it to end.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub stop_signal: String,
    /// Instructions for builds that begin with this image.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub on_build: Vec<String>,
    /// What runs commands that are not lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub shell: Vec<String>,
    /// What else was written.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A health check; durations in nanoseconds, 0 for the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Health {
    /// `NONE`, or `CMD` or `CMD-SHELL` and what to run.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// For one check.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// In which a failure does not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two checks in that time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures that make it unhealthy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

/// One step of an image's making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub created_by: String,
    /// Who.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub author: String,
    /// In words.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null_as_default")]
    pub comment: String,
    /// It made no layer.
    #[serde(default, skip_serializing_if = "is_false", deserialize_with = "null_as_default")]
    pub empty_layer: bool,
}

/// Whether a step of the history has made a layer.
pub fn is_layer(step: &History) -> bool {
    !step.empty_layer
}

impl Config {
    /// From its bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Its bytes: what is hashed, stored and pushed.
    pub fn bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

impl Run {
    /// The value of a variable of the environment.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env
            .iter()
            .rev()
            .find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name))
            .map(|(_, v)| v)
    }

    /// Sets a variable; one that is there keeps its place.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        match self.env.iter_mut().find(|known| known.split_once('=').is_some_and(|(key, _)| key == name)) {
            Some(known) => *known = entry,
            None => self.env.push(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_kept() {
        let text = r#"{"architecture":"amd64","config":{"Cmd":null,"Env":null,"Hostname":"x","Labels":null,"Healthcheck":
            {"Test":["NONE"]}},"container":"old","docker_version":"1.2","os":"linux","rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!(config.config.other["Hostname"], "x");
        assert_eq!(config.other["container"], "old");
        let again = Config::parse(&config.bytes().unwrap()).unwrap();
        assert_eq!(again, config);
        assert_eq!(again.config.cmd, None);
    }

    #[test]
    fn variables_keep_their_place() {
        let mut run = Run { env: vec!["A=1".into(), "B=2".into()], ..Run::default() };
        run.set_variable("A", "x=y");
        run.set_variable("C", "");
        assert_eq!(run.env, ["A=x=y", "B=2", "C="]);
        assert_eq!(run.variable("A"), Some("x=y"));
        assert_eq!(run.variable("D"), None);
    }
}
