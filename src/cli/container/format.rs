//! `--format` for containers and volumes.

use std::io::{self, Write as _};

use serde_json::Value;

use crate::images::formatted_as;
use crate::template::Template;

/// Prints rows by a `--format`: `json`, `table …`, or a template for each.
pub fn print(format: &str, rows: &[Value]) -> anyhow::Result<()> {
    let text = formatted_as(&Template::parse(format)?, rows.iter().cloned(), title)?;
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// Docker's title for a field.
fn title(field: &str) -> String {
    match field {
        "ID" => "CONTAINER ID".to_owned(),
        "RunningFor" => "CREATED".to_owned(),
        "CreatedAt" => "CREATED AT".to_owned(),
        "CPUPerc" => "CPU %".to_owned(),
        "MemUsage" => "MEM USAGE / LIMIT".to_owned(),
        "MemPerc" => "MEM %".to_owned(),
        "NetIO" => "NET I/O".to_owned(),
        "BlockIO" => "BLOCK I/O".to_owned(),
        field => field.to_uppercase(),
    }
}
