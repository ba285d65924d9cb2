//! Explain: the plan of a pull, in words.

use std::path::Path;

use pinnace_admin_api::v1;
use pinnace_registry::explain::{Note, Server};

use crate::error::{Error, Within as _};
use crate::node::Node;

/// Reads the node's configuration as a pull would.
pub async fn answer(node: &Node, request: v1::ExplainRequest) -> Result<v1::ExplainResponse, Error> {
    let name = request.image;
    let what = format!("explain image {name}");
    let explained =
        node.blocking(move |node| Ok(node.registry.explain(&name, None)?)).await.within(|| what)?;
    Ok(v1::ExplainResponse {
        reference: explained.reference.to_string(),
        notes: explained.notes.into_iter().map(note).collect(),
        servers: explained.servers.into_iter().map(server).collect(),
    })
}

fn note(note: Note) -> v1::Note {
    v1::Note { file: path(note.file.as_deref()), text: note.text }
}

fn server(server: Server) -> v1::RegistryServer {
    v1::RegistryServer {
        url: server.url,
        repository: server.repository,
        is_mirror: server.is_mirror,
        resolves: server.resolves,
        pulls: server.pulls,
        decided_by: path(server.decided_by.as_deref()),
        trust: server.trust.to_string(),
        client_certificate: server.client_certificate,
        headers: server.headers,
        credentials: server.credentials.to_string(),
        proxy: server.proxy.unwrap_or_default(),
    }
}

fn path(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}
