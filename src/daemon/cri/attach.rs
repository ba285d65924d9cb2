//! Attach: checks, and a URL to which a client comes for the streams. Everything is checked again when it does.

use pinnace_cri_api::v1;
use pinnace_streaming::AttachRequest;

use super::streams;
use crate::container::exec::running;
use crate::error::Error;
use crate::node::Node;
use crate::streaming::Streaming;

/// Gives out the URL.
pub fn answer(
    node: &Node,
    streaming: &Streaming,
    request: v1::AttachRequest,
) -> Result<v1::AttachResponse, Error> {
    streams::check(&request.container_id, request.tty, [request.stdin, request.stdout, request.stderr])?;
    let container = node.container(&request.container_id)?;
    running(&container)?;
    let request = AttachRequest {
        container_id: container.id.to_string(),
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    Ok(v1::AttachResponse { url: streaming.url(|server| server.attach_url(request))? })
}
