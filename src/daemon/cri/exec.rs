//! Exec: checks, and a URL to which a client comes for the streams. Everything is checked again when it does.

use pinnace_cri_api::v1;
use pinnace_streaming::ExecRequest;

use super::streams;
use crate::container::exec::running;
use crate::error::Error;
use crate::node::Node;
use crate::streaming::Streaming;

/// Gives out the URL.
pub fn answer(
    node: &Node,
    streaming: &Streaming,
    request: v1::ExecRequest,
) -> Result<v1::ExecResponse, Error> {
    streams::check(&request.container_id, request.tty, [request.stdin, request.stdout, request.stderr])?;
    if request.cmd.is_empty() {
        return Err(Error::invalid("cmd", "is empty"));
    }
    let container = node.container(&request.container_id)?;
    running(&container)?;
    let request = ExecRequest {
        container_id: container.id.to_string(),
        command: request.cmd,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        tty: request.tty,
    };
    Ok(v1::ExecResponse { url: streaming.url(|server| server.exec_url(request))? })
}
