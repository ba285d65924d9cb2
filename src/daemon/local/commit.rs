//! Commit: what a container has written becomes a layer, and that with the layers below an image.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::record::{Record, State};
use super::{LocalContainer, create, stop};
use crate::clock;
use crate::error::{Error, Within as _};
use crate::node::Node;

/// What a commit is to be.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Name of the image; empty for none.
    pub reference: String,
    /// For its history.
    pub message: String,
    /// Who made it.
    pub author: String,
    /// Dockerfile instructions.
    pub changes: Vec<String>,
    /// Freeze the container meanwhile.
    pub pause: bool,
}

/// Splits a line at blanks, with quotes as a shell has them.
fn words(text: &str) -> Result<Vec<String>, Error> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (Some(open), letter) if letter == open => quote = None,
            (Some('\''), letter) => word.get_or_insert_default().push(letter),
            (_, '\\') => word.get_or_insert_default().extend(letters.next()),
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, blank) if blank.is_whitespace() => words.extend(word.take()),
            (_, letter) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err(Error::invalid("changes", format!("a quote of {text:?} does not end")));
    }
    words.extend(word);
    Ok(words)
}

/// An argument list as JSON, or a line for the shell.
fn command(text: &str) -> Value {
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(list) => json!(list),
        Err(_) => json!(["/bin/sh", "-c", text]),
    }
}

/// Makes one change to a configuration.
fn change(config: &mut Map<String, Value>, line: &str) -> Result<(), Error> {
    let line = line.trim();
    let (instruction, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim();
    let wrong = |reason: &str| Error::invalid("changes", format!("{line:?}: {reason}"));
    if rest.is_empty() {
        return Err(wrong("there is nothing after the instruction"));
    }
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    match instruction.to_uppercase().as_str() {
        "CMD" => set("Cmd", command(rest)),
        "ENTRYPOINT" => {
            set("Entrypoint", command(rest));
            // As in a Dockerfile: the arguments were those of another program.
            set("Cmd", Value::Null);
        }
        "USER" => set("User", rest.into()),
        "WORKDIR" => {
            let before = config.get("WorkingDir").and_then(Value::as_str).filter(|it| !it.is_empty());
            let path = std::path::Path::new(before.unwrap_or("/")).join(rest);
            config.insert("WorkingDir".to_owned(), path.to_string_lossy().into());
        }
        "STOPSIGNAL" => {
            pinnace_spec::signal::parse(rest).map_err(|error| wrong(&error.to_string()))?;
            set("StopSignal", rest.into());
        }
        "ENV" => {
            let words = words(rest)?;
            let pairs: Vec<(String, String)> = if words.first().is_some_and(|word| word.contains('=')) {
                let pair = |word: &String| {
                    let (key, value) = word.split_once('=').ok_or_else(|| wrong("is not KEY=value"))?;
                    Ok((key.to_owned(), value.to_owned()))
                };
                words.iter().map(pair).collect::<Result<_, Error>>()?
            } else {
                let (key, value) =
                    rest.split_once(char::is_whitespace).ok_or_else(|| wrong("a variable without value"))?;
                vec![(key.to_owned(), value.trim().to_owned())]
            };
            let mut env: Vec<String> = config
                .get("Env")
                .and_then(|env| serde_json::from_value(env.clone()).ok())
                .unwrap_or_default();
            for (key, value) in pairs {
                env.retain(|entry| entry.split('=').next() != Some(&key));
                env.push(format!("{key}={value}"));
            }
            config.insert("Env".to_owned(), json!(env));
        }
        "LABEL" => {
            for word in words(rest)? {
                let (key, value) = word.split_once('=').ok_or_else(|| wrong("is not KEY=value"))?;
                add(config, "Labels", key, value.into());
            }
        }
        "EXPOSE" => {
            for word in words(rest)? {
                let (port, protocol) = super::inspect::exposed(&word).ok_or_else(|| wrong("is no port"))?;
                let name = format!("{port}/{}", super::inspect::protocol(protocol));
                add(config, "ExposedPorts", &name, json!({}));
            }
        }
        "VOLUME" => {
            let paths = match serde_json::from_str::<Vec<String>>(rest) {
                Ok(paths) => paths,
                Err(_) => words(rest)?,
            };
            for path in paths {
                add(config, "Volumes", &path, json!({}));
            }
        }
        "ONBUILD" => {
            let mut list = config.get("OnBuild").and_then(Value::as_array).cloned().unwrap_or_default();
            list.push(rest.into());
            config.insert("OnBuild".to_owned(), list.into());
        }
        other => {
            let known = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR";
            return Err(Error::invalid("changes", format!("{other:?} cannot be changed; what can: {known}")));
        }
    }
    Ok(())
}

/// Adds an entry to an object of the configuration, which is made if it is not there.
fn add(config: &mut Map<String, Value>, key: &str, name: &str, value: Value) {
    let entry = config.entry(key.to_owned()).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    if let Value::Object(map) = entry {
        map.insert(name.to_owned(), value);
    }
}

/// Makes an image of a container; its id. What is killed in the middle leaves nothing: the layer is held by a lease until
/// the image has it.
pub async fn commit(node: &Node, local: Arc<LocalContainer>, request: Request) -> Result<String, Error> {
    node.mutation(|node| async move {
        let _turn = local.turn.lock().await;
        let what = format!("commit container {}", local.record().name);
        let name = match request.reference.as_str() {
            "" => None,
            name => Some(tag(&node, name)?),
        };
        let freezes = request.pause && matches!(local.state(), State::Running { paused: false, .. });
        if freezes {
            stop::freeze(&node, &local).await.within(|| what.clone())?;
        }
        let committed = Arc::clone(&local);
        let made = node.blocking(move |node| make(node, &committed, &request, name)).await;
        // One that has ended meanwhile has nothing to thaw.
        if freezes && local.state().is_running() {
            stop::thaw(&node, &local).await.within(|| what.clone())?;
        }
        let id = made.within(|| what)?;
        local.tell(&node.local, "commit", &[("imageID", id.clone())]);
        Ok(id)
    })
    .await
}

/// The whole name; a digest names what is, not what is made.
fn tag(node: &Node, name: &str) -> Result<String, Error> {
    let reference = node.registry.reference(name)?.to_string();
    match reference.contains('@') {
        true => {
            Err(Error::invalid("reference", format!("{name:?} has a digest; an image is named by a tag")))
        }
        false => Ok(reference),
    }
}

fn make(
    node: &Node,
    local: &LocalContainer,
    request: &Request,
    name: Option<String>,
) -> Result<String, Error> {
    let record = local.record();
    let config = configuration(&record, request)?;
    let mounted = record.settings.mounts.iter().map(|mount| mount.target.as_str());
    let mounted = mounted.chain(record.volumes.keys().map(String::as_str)).chain(super::diff::PROVIDED);
    let options = pinnace_store::CommitOptions {
        mount_targets: mounted.map(|target| target.as_bytes().to_vec()).collect(),
        mtime_max: None,
    };
    let lease = node.store.lease();
    for layer in &record.layers {
        lease.hold_layer(layer);
    }
    let layer = node.store.commit_snapshot(&lease, record.id.as_str(), &options)?;
    let bytes = with_layer(config, &layer.diff_id.to_string(), &record, request)?;
    let image = pinnace_archive::record(&node.store, &lease, &bytes, Vec::new(), name.into_iter().collect())?;
    Ok(image.id.to_string())
}

/// The image's configuration with the container's own and the changes in it.
fn configuration(record: &Record, request: &Request) -> Result<Value, Error> {
    let mut whole = record.image_config.clone();
    let settings = &record.settings;
    let image = create::image_part(&whole)?;
    let (entrypoint, command) = create::argv(settings, image.as_ref());
    let mut config = match whole.get("config") {
        Some(Value::Object(config)) => config.clone(),
        _ => Map::new(),
    };
    let list = |list: Vec<String>| if list.is_empty() { Value::Null } else { json!(list) };
    config.insert("Entrypoint".to_owned(), list(entrypoint));
    config.insert("Cmd".to_owned(), list(command));
    let mut env: Vec<String> =
        config.get("Env").and_then(|env| serde_json::from_value(env.clone()).ok()).unwrap_or_default();
    for own in &settings.env {
        env.retain(|entry| entry.split('=').next() != own.split('=').next());
        env.push(own.clone());
    }
    config.insert("Env".to_owned(), json!(env));
    for (key, value) in [
        ("User", &settings.user),
        ("WorkingDir", &settings.working_dir),
        ("StopSignal", &settings.stop_signal),
    ] {
        if !value.is_empty() {
            config.insert(key.to_owned(), value.as_str().into());
        }
    }
    for (key, value) in &settings.labels {
        add(&mut config, "Labels", key, value.as_str().into());
    }
    for port in &settings.ports {
        let name = format!("{}/{}", port.container_port, super::inspect::protocol(port.protocol));
        add(&mut config, "ExposedPorts", &name, json!({}));
    }
    for line in &request.changes {
        change(&mut config, line)?;
    }
    config.retain(|_, value| !value.is_null());
    whole["config"] = Value::Object(config);
    Ok(whole)
}

/// With the new layer, its history, and when it was made.
fn with_layer(mut whole: Value, diff_id: &str, record: &Record, request: &Request) -> Result<Vec<u8>, Error> {
    let created = super::inspect::time(clock::realtime_ns());
    let mut layers: Vec<Value> = record.layers.iter().map(|layer| layer.to_string().into()).collect();
    layers.push(diff_id.into());
    whole["rootfs"] = json!({ "type": "layers", "diff_ids": layers });
    let mut history = whole.get("history").and_then(Value::as_array).cloned().unwrap_or_default();
    let image = create::image_part(&record.image_config)?;
    let (entrypoint, command) = create::argv(&record.settings, image.as_ref());
    let argv = [entrypoint, command].concat().join(" ");
    let mut step = json!({ "created": created, "created_by": argv });
    for (key, value) in [("author", &request.author), ("comment", &request.message)] {
        if !value.is_empty() {
            step[key] = value.as_str().into();
        }
    }
    history.push(step);
    whole["history"] = history.into();
    whole["created"] = created.into();
    if !request.author.is_empty() {
        whole["author"] = request.author.as_str().into();
    }
    if let Value::Object(map) = &mut whole {
        // What docker's old builder kept of the container that made the image is not true of this one.
        map.retain(|key, _| !matches!(key.as_str(), "container" | "container_config" | "docker_version"));
    }
    let json = |source| crate::record::Error::Json { path: "image configuration".into(), source };
    Ok(serde_json::to_vec(&whole).map_err(json)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(lines: &[&str]) -> Result<Value, Error> {
        let mut config = Map::new();
        config.insert("Env".to_owned(), json!(["A=1", "B=2"]));
        config.insert("WorkingDir".to_owned(), "/srv".into());
        lines.iter().try_for_each(|line| change(&mut config, line))?;
        Ok(Value::Object(config))
    }

    #[test]
    fn instructions_change_the_configuration() {
        let config = changed(&[
            "CMD [\"a\", \"b c\"]",
            "ENV A=3 C='x y'",
            "env D four words",
            "LABEL k=v l=\"w x\"",
            "EXPOSE 80 53/udp",
            "WORKDIR app",
            "USER worker",
            "VOLUME /data",
        ])
        .unwrap();
        let expected = json!({
            "Cmd": ["a", "b c"],
            "Env": ["B=2", "A=3", "C=x y", "D=four words"],
            "Labels": { "k": "v", "l": "w x" },
            "ExposedPorts": { "80/tcp": {}, "53/udp": {} },
            "WorkingDir": "/srv/app",
            "User": "worker",
            "Volumes": { "/data": {} },
        });
        assert_eq!(config, expected);
        assert_eq!(
            changed(&["ENTRYPOINT run it"]).unwrap()["Entrypoint"],
            json!(["/bin/sh", "-c", "run it"])
        );
    }

    #[test]
    fn wrong_instructions_are_named() {
        for line in ["RUN x", "CMD", "ENV A", "EXPOSE x", "LABEL x", "STOPSIGNAL NOPE", "ENV A='x"] {
            let error = changed(&[line]).unwrap_err();
            assert!(error.to_string().starts_with("changes"), "{line}: {error}");
        }
    }
}
