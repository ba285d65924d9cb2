//! List: containers that match, newest first.

use std::collections::BTreeMap;
use std::sync::Arc;

use pinnace_admin_api::v1;

use crate::error::Error;
use crate::local::record::{MountKind, Record, State};
use crate::local::{LocalContainer, create, inspect};
use crate::node::Node;
use crate::table::lock;

/// Answers List.
pub async fn answer(
    node: &Node,
    request: v1::ListContainersRequest,
) -> Result<v1::ListContainersResponse, Error> {
    let filters = Filters::parse(node, &request.filters)?;
    let mut containers = node.local.containers.all();
    containers.retain(|local| filters.match_all(node, local, request.all));
    containers.sort_by_key(|local| std::cmp::Reverse(local.with(|record| record.created_at_ns)));
    let measure = request.size;
    let work = move |node: &Node| {
        let summaries = containers.iter().map(|local| summary(node, local, measure));
        Ok(summaries.collect())
    };
    Ok(v1::ListContainersResponse { containers: node.blocking(work).await? })
}

fn summary(node: &Node, local: &Arc<LocalContainer>, measure: bool) -> v1::ContainerSummary {
    let record = local.record();
    let (started_at_ns, finished_at_ns) = match &record.state {
        State::Created { .. } => (0, 0),
        State::Running { started_at_ns, .. } => (*started_at_ns, 0),
        State::Restarting(ended) | State::Exited(ended) => (ended.started_at_ns, ended.finished_at_ns),
    };
    let image = create::image_part(&record.image_config).ok().flatten();
    let (entrypoint, command) = create::argv(&record.settings, image.as_ref());
    let (own, below) = if measure {
        // It may be on its way out.
        let own = node.store.usage(record.id.as_str()).map_or(0, |usage| usage.bytes);
        (own, own.saturating_add(inspect::layers_bytes(node, &record)))
    } else {
        (0, 0)
    };
    v1::ContainerSummary {
        id: record.id.to_string(),
        image: image_name(node, &record),
        image_id: record.image_id.clone(),
        command: entrypoint.into_iter().chain(command).collect(),
        created_at_ns: record.created_at_ns,
        state: record.state.name().to_owned(),
        started_at_ns,
        finished_at_ns,
        exit_code: record.state.code(),
        ports: record.ports.iter().map(port).collect(),
        labels: record.settings.labels.clone().into_iter().collect(),
        mounts: mounts(&record),
        network: record.settings.network.name().to_owned(),
        size_rw_bytes: own,
        size_root_bytes: below,
        health: lock(&local.health).status.map(|judgement| judgement.name().to_owned()).unwrap_or_default(),
        name: record.name,
    }
}

/// As it was asked for, unless that means another image by now.
fn image_name(node: &Node, record: &Record) -> String {
    let name = &record.settings.image;
    match crate::image::find(node, name) {
        Some(image) if image.id.to_string() == record.image_id => name.clone(),
        _ => {
            let id = record.image_id.strip_prefix("sha256:").unwrap_or(&record.image_id);
            id.get(..crate::local::start::SHORT_ID).unwrap_or(id).to_owned()
        }
    }
}

fn port(port: &crate::local::record::Port) -> v1::PortSetting {
    v1::PortSetting {
        protocol: inspect::protocol(port.protocol).to_owned(),
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        host_address: port.host_address.map(|address| address.to_string()).unwrap_or_default(),
    }
}

fn mounts(record: &Record) -> Vec<String> {
    let asked = record.settings.mounts.iter().filter(|mount| mount.kind != MountKind::Tmpfs);
    let asked = asked.filter(|mount| !mount.source.is_empty()).map(|mount| mount.source.clone());
    record.volumes.values().cloned().chain(asked).collect()
}

/// Labels and ages.
#[derive(Debug, Default)]
pub struct Labels {
    labels: Vec<(String, Option<String>)>,
    until_ns: Option<i64>,
}

impl Labels {
    /// `label=KEY[=value]` and `until=NANOSECONDS`.
    pub fn parse(filters: &[v1::Filter]) -> Result<Self, Error> {
        let mut parsed = Self::default();
        for filter in filters {
            match filter.key.as_str() {
                "label" => parsed.label(&filter.value),
                "until" => {
                    let until = filter.value.parse();
                    parsed.until_ns =
                        Some(until.map_err(|_| Error::invalid("filters", "until is not nanoseconds"))?);
                }
                other => return Err(unknown(other, "label and until")),
            }
        }
        Ok(parsed)
    }

    fn label(&mut self, text: &str) {
        let (key, value) = match text.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (text, None),
        };
        self.labels.push((key.to_owned(), value));
    }

    /// All labels are there, and it is old enough.
    pub fn match_all(&self, labels: &BTreeMap<String, String>, created_at_ns: i64) -> bool {
        self.until_ns.is_none_or(|until| created_at_ns <= until)
            && self.labels.iter().all(|(key, wanted)| {
                labels.get(key).is_some_and(|value| wanted.as_ref().is_none_or(|wanted| wanted == value))
            })
    }
}

fn unknown(key: &str, known: &str) -> Error {
    Error::invalid("filters", format!("{key:?} is not known; known are {known}"))
}

/// Filters of docker's `ps`. Those of one key are alternatives, but for labels.
#[derive(Debug, Default)]
struct Filters {
    labels: Labels,
    by_key: BTreeMap<String, Vec<String>>,
    before_ns: Option<i64>,
    since_ns: Option<i64>,
}

const KNOWN: [&str; 9] =
    ["id", "name", "status", "exited", "ancestor", "network", "volume", "health", "publish"];

impl Filters {
    fn parse(node: &Node, filters: &[v1::Filter]) -> Result<Self, Error> {
        let mut parsed = Self::default();
        for v1::Filter { key, value } in filters {
            match key.as_str() {
                "label" => parsed.labels.label(value),
                "before" | "since" => {
                    let at = node.local.find(value)?.with(|record| record.created_at_ns);
                    if key == "before" {
                        parsed.before_ns = Some(at);
                    } else {
                        parsed.since_ns = Some(at);
                    }
                }
                known if KNOWN.contains(&known) => {
                    let states = ["created", "running", "paused", "restarting", "exited", "dead", "removing"];
                    if key == "status" && !states.contains(&value.as_str()) {
                        let reason =
                            format!("status {value:?} is not known; known are {}", states.join(", "));
                        return Err(Error::invalid("filters", reason));
                    }
                    parsed.by_key.entry(key.clone()).or_default().push(value.clone());
                }
                other => return Err(unknown(other, &format!("{}, label, before, since", KNOWN.join(", ")))),
            }
        }
        Ok(parsed)
    }

    fn match_all(&self, node: &Node, local: &LocalContainer, all: bool) -> bool {
        let record = local.record();
        let shown = all
            || record.state.is_alive()
            || self.by_key.contains_key("status")
            || self.by_key.contains_key("exited");
        shown
            && self.labels.match_all(&record.settings.labels, record.created_at_ns)
            && self.before_ns.is_none_or(|before| record.created_at_ns < before)
            && self.since_ns.is_none_or(|since| record.created_at_ns > since)
            && self
                .by_key
                .iter()
                .all(|(key, values)| values.iter().any(|value| matches(node, local, &record, key, value)))
    }
}

fn matches(node: &Node, local: &LocalContainer, record: &Record, key: &str, value: &str) -> bool {
    match key {
        "id" => record.id.as_str().starts_with(value),
        "name" => record.name.contains(value.trim_start_matches('/')),
        "status" => record.state.name() == value,
        "exited" => matches!(record.state, State::Exited(_)) && record.state.code().to_string() == value,
        "ancestor" => {
            record.settings.image == value
                || crate::image::find(node, value).is_some_and(|image| {
                    record.image_id == image.id.to_string() || record.layers.starts_with(&image.layers)
                })
        }
        "network" => record.settings.network.name() == value,
        "volume" => mounts(record).iter().any(|mount| mount == value) || record.volumes.contains_key(value),
        "health" => lock(&local.health).status.map_or("none", crate::local::health::Judgement::name) == value,
        "publish" => record.ports.iter().any(|port| {
            let protocol = inspect::protocol(port.protocol);
            value == port.host_port.to_string() || value == format!("{}/{protocol}", port.host_port)
        }),
        _ => false,
    }
}
