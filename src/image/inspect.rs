//! Images as `inspect` and `history` show them: Docker's words, for the scripts that read them.

use serde_json::{Value, json};

use crate::config::{Config, is_layer};

/// What is known of an image besides its config.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Its id.
    pub id: String,
    /// `name:tag` as people write it.
    pub repo_tags: Vec<String>,
    /// `name@digest` as people write it.
    pub repo_digests: Vec<String>,
    /// What it takes on disk, in bytes.
    pub size_bytes: u64,
    /// Uncompressed bytes of its layers, base first.
    pub layer_bytes: Vec<u64>,
}

/// What `docker image inspect` prints of one image.
pub fn inspect(facts: &Facts, config: &Config) -> Value {
    let layers: Vec<String> = config.rootfs.diff_ids.iter().map(ToString::to_string).collect();
    let mut run = serde_json::to_value(&config.config).unwrap_or_default();
    if let Value::Object(run) = &mut run {
        // Scripts read these without asking whether they are there.
        for key in ["Cmd", "Entrypoint", "Env", "Labels", "Volumes", "OnBuild"] {
            run.entry(key).or_insert(Value::Null);
        }
        for key in ["User", "WorkingDir"] {
            run.entry(key).or_insert_with(|| "".into());
        }
    }
    let mut shown = json!({
        "Id": facts.id,
        "RepoTags": facts.repo_tags,
        "RepoDigests": facts.repo_digests,
        "Parent": "",
        "Comment": config.history.last().map(|step| step.comment.clone()).unwrap_or_default(),
        "Created": config.created.clone().unwrap_or_default(),
        "Author": config.author,
        "Config": run,
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": facts.size_bytes,
        "RootFS": {"Type": "layers", "Layers": layers},
    });
    if let (Value::Object(shown), false) = (&mut shown, config.variant.is_empty()) {
        shown.insert("Variant".to_owned(), config.variant.clone().into());
    }
    shown
}

/// One row of `docker history`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRow {
    /// The image's id for the last step, else nothing: steps have no images of their own.
    pub id: String,
    /// RFC 3339; empty if it is not known.
    pub created: String,
    /// The command.
    pub created_by: String,
    /// Bytes of the layer that it made.
    pub size_bytes: u64,
    /// In words.
    pub comment: String,
}

/// The steps of an image, newest first. Layers that no step accounts for are the oldest.
pub fn history(facts: &Facts, config: &Config) -> Vec<HistoryRow> {
    let mut layers = facts.layer_bytes.iter().rev();
    let mut rows: Vec<HistoryRow> = config
        .history
        .iter()
        .rev()
        .map(|step| HistoryRow {
            id: String::new(),
            created: step.created.clone().unwrap_or_default(),
            created_by: step.created_by.clone(),
            size_bytes: if is_layer(step) { layers.next().copied().unwrap_or(0) } else { 0 },
            comment: step.comment.clone(),
        })
        .collect();
    rows.extend(layers.map(|size| HistoryRow {
        id: String::new(),
        created: String::new(),
        created_by: String::new(),
        size_bytes: *size,
        comment: String::new(),
    }));
    if let Some(first) = rows.first_mut() {
        first.id.clone_from(&facts.id);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::History;

    #[test]
    fn sizes_go_to_the_steps_that_made_layers() {
        let step =
            |text: &str, empty_layer| History { created_by: text.into(), empty_layer, ..History::default() };
        let config = Config {
            history: vec![step("COPY", false), step("ENV", true), step("RUN", false)],
            ..Config::default()
        };
        let facts = Facts { id: "id".into(), layer_bytes: vec![7, 1, 2], ..Facts::default() };
        let rows: Vec<_> =
            history(&facts, &config).into_iter().map(|r| (r.id, r.created_by, r.size_bytes)).collect();
        let row = |id: &str, text: &str, size| (id.to_owned(), text.to_owned(), size);
        assert_eq!(rows, [row("id", "RUN", 2), row("", "ENV", 0), row("", "COPY", 1), row("", "", 7)]);
    }
}
