//! Network lists: what an administrator has written, checked as the specification has it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::version::Version;

/// Largest file that is read as a configuration (rule R10).
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Plugins that one list may have.
const PLUGINS_MAX: usize = 64;

/// Longest name of a network or a plugin, that of a file.
const NAME_BYTES_MAX: usize = 255;

/// Why a text is no network list.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// No JSON at all.
    #[error("not a JSON object")]
    Json(#[from] serde_json::Error),
    /// A key that must be there is not.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A key has a value of the wrong kind.
    #[error("`{key}` must be {wanted}")]
    Kind {
        /// The key.
        key: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// A name that the specification forbids.
    #[error(
        "{what} {name:?} must begin with a letter or digit and go on with letters, digits, `_`, `.` or `-`"
    )]
    Name {
        /// Whose name.
        what: &'static str,
        /// As given, cut short.
        name: String,
    },
    /// No version of the list is one of ours.
    #[error("none of the CNI versions {0:?} is supported")]
    Version(Vec<String>),
    /// A list of nothing.
    #[error("`plugins` is empty")]
    NoPlugins,
    /// More plugins than anybody needs.
    #[error("`plugins` has {0} entries, {PLUGINS_MAX} are allowed")]
    TooManyPlugins(usize),
    /// `loadOnlyInlinedPlugins` without a plugin in line.
    #[error("`loadOnlyInlinedPlugins` is true and there is no `plugins`")]
    OnlyInlined,
    /// A configuration of one plugin where a list should be, or the other way round.
    #[error("`plugins` belongs into a .conflist file, `type` into a .conf or .json file")]
    WrongForm,
}

/// The name of a plugin: that of a file in a directory of plugins, never a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginType(String);

impl PluginType {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PluginType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PluginType {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        check_name("plugin type", text)?;
        Ok(Self(text.to_owned()))
    }
}

/// A network: plugins that are called one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkList {
    /// Unique on the machine.
    pub name: String,
    /// The highest version of the list that we speak.
    pub cni_version: Version,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// Nothing is added from the directory that has the network's name.
    pub load_only_inlined_plugins: bool,
    /// In the order of ADD.
    pub plugins: Vec<PluginConfig>,
    /// The file it came from; empty if it came from none.
    pub source: PathBuf,
    /// The whole as read.
    pub raw: Map<String, Value>,
}

/// What one plugin of a list is told.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConfig {
    /// Which plugin.
    pub kind: PluginType,
    /// What it wants to be told about every attachment.
    pub capabilities: BTreeMap<String, bool>,
    /// Everything, unknown keys too.
    pub raw: Map<String, Value>,
}

impl NetworkList {
    /// Reads a `.conflist`. `siblings` are plugins found in the directory of the network's name.
    pub fn parse_list(bytes: &[u8], source: &Path) -> Result<Self, ListError> {
        let raw: Map<String, Value> = serde_json::from_slice(bytes)?;
        Self::from_map(raw, source)
    }

    /// Reads a `.conf` or `.json`: one plugin, or a list under the wrong name, which is refused.
    pub fn parse_single(bytes: &[u8], source: &Path) -> Result<Self, ListError> {
        let raw: Map<String, Value> = serde_json::from_slice(bytes)?;
        if raw.contains_key("plugins") {
            return Err(ListError::WrongForm);
        }
        let mut list = Map::new();
        for key in ["name", "cniVersion", "cniVersions"] {
            if let Some(value) = raw.get(key) {
                list.insert(key.to_owned(), value.clone());
            }
        }
        list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(raw)]));
        Self::from_map(list, source)
    }

    /// From a list as a JSON object.
    pub fn from_map(raw: Map<String, Value>, source: &Path) -> Result<Self, ListError> {
        if raw.contains_key("type") {
            return Err(ListError::WrongForm);
        }
        let name = text(&raw, "name")?.ok_or(ListError::Missing("name"))?;
        check_name("network name", name)?;
        let load_only_inlined_plugins = boolean(&raw, "loadOnlyInlinedPlugins")?;
        let plugins = match raw.get("plugins") {
            None | Some(Value::Null) if load_only_inlined_plugins => return Err(ListError::OnlyInlined),
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(plugins)) if plugins.len() > PLUGINS_MAX => {
                return Err(ListError::TooManyPlugins(plugins.len()));
            }
            Some(Value::Array(plugins)) => {
                plugins.iter().map(PluginConfig::from_value).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(ListError::Kind { key: "plugins".to_owned(), wanted: "an array" }),
        };
        Ok(Self {
            name: name.to_owned(),
            cni_version: version(&raw)?,
            disable_check: boolean(&raw, "disableCheck")?,
            disable_gc: boolean(&raw, "disableGC")?,
            load_only_inlined_plugins,
            plugins,
            source: source.to_owned(),
            raw,
        })
    }

    /// Appends a plugin that a file in the directory of the network's name describes.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), ListError> {
        let plugin = PluginConfig::from_value(&serde_json::from_slice(bytes)?)?;
        let plugins = self.raw.entry("plugins").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(plugins) = plugins {
            plugins.push(Value::Object(plugin.raw.clone()));
        }
        self.plugins.push(plugin);
        Ok(())
    }

    /// Whether there is anything to call.
    pub fn check_complete(&self) -> Result<(), ListError> {
        if self.plugins.is_empty() { Err(ListError::NoPlugins) } else { Ok(()) }
    }

    /// Whether any plugin wants to be told `capability`.
    #[must_use]
    pub fn wants(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.capabilities.get(capability).copied().unwrap_or(false))
    }
}

impl PluginConfig {
    fn from_value(value: &Value) -> Result<Self, ListError> {
        let Value::Object(raw) = value else {
            return Err(ListError::Kind { key: "plugins".to_owned(), wanted: "an array of objects" });
        };
        let kind = text(raw, "type")?.ok_or(ListError::Missing("type"))?.parse()?;
        // Plugins that delegate look their delegate up by this name.
        if let Some(Value::Object(ipam)) = raw.get("ipam")
            && let Some(delegate) = text(ipam, "type")?
            && !delegate.is_empty()
        {
            check_name("ipam type", delegate)?;
        }
        let capabilities = match raw.get("capabilities") {
            None | Some(Value::Null) => BTreeMap::new(),
            Some(Value::Object(capabilities)) => capabilities
                .iter()
                .map(|(name, wanted)| {
                    let kind =
                        || ListError::Kind { key: format!("capabilities.{name}"), wanted: "true or false" };
                    Ok((name.clone(), wanted.as_bool().ok_or_else(kind)?))
                })
                .collect::<Result<_, ListError>>()?,
            Some(_) => return Err(ListError::Kind { key: "capabilities".to_owned(), wanted: "an object" }),
        };
        Ok(Self { kind, capabilities, raw: raw.clone() })
    }
}

/// The highest that we speak of those that the list offers; none at all is the first, as ever.
fn version(raw: &Map<String, Value>) -> Result<Version, ListError> {
    let mut offered: Vec<String> = text(raw, "cniVersion")?.map(str::to_owned).into_iter().collect();
    match raw.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(versions)) => {
            for version in versions {
                let kind =
                    || ListError::Kind { key: "cniVersions".to_owned(), wanted: "an array of strings" };
                offered.push(version.as_str().ok_or_else(kind)?.to_owned());
            }
        }
        Some(_) => {
            return Err(ListError::Kind { key: "cniVersions".to_owned(), wanted: "an array of strings" });
        }
    }
    offered.retain(|version| !version.is_empty());
    if offered.is_empty() {
        return Ok(Version::V0_1_0);
    }
    let known = offered.iter().filter_map(|version| version.parse().ok()).max();
    known.ok_or(ListError::Version(offered))
}

fn text<'a>(map: &'a Map<String, Value>, key: &'static str) -> Result<Option<&'a str>, ListError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(ListError::Kind { key: key.to_owned(), wanted: "a string" }),
    }
}

/// Also as text, which the reference library takes for these keys.
fn boolean(map: &Map<String, Value>, key: &'static str) -> Result<bool, ListError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(ListError::Kind { key: key.to_owned(), wanted: "true or false" }),
    }
}

/// The rule for names of networks and containers, which also makes them single components of a path.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<(), ListError> {
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let goes_on = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if begins && goes_on && name.len() <= NAME_BYTES_MAX {
        Ok(())
    } else {
        Err(ListError::Name { what, name: name.chars().take(NAME_BYTES_MAX).collect() })
    }
}
