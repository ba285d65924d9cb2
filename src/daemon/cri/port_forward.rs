//! PortForward: checks, and a URL to which a client comes with its connections.

use pinnace_cri_api::v1;
use pinnace_streaming::PortForwardRequest;

use crate::error::Error;
use crate::node::Node;
use crate::sandbox::port_forward::ready;
use crate::streaming::Streaming;

/// Gives out the URL.
pub fn answer(
    node: &Node,
    streaming: &Streaming,
    request: v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse, Error> {
    if request.pod_sandbox_id.is_empty() {
        return Err(Error::invalid("pod_sandbox_id", "is empty"));
    }
    let port = |port: i32| match u16::try_from(port) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(Error::invalid("port", format!("{port} is not between 1 and 65535"))),
    };
    let ports = request.port.into_iter().map(port).collect::<Result<_, _>>()?;
    let sandbox = node.sandbox(&request.pod_sandbox_id)?;
    ready(&sandbox)?;
    let request = PortForwardRequest { sandbox_id: sandbox.id.to_string(), ports };
    Ok(v1::PortForwardResponse { url: streaming.url(|server| server.port_forward_url(request))? })
}
