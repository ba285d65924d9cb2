//! ExecSync: a time-out is `DEADLINE_EXCEEDED`, which the kubelet takes for a failed probe.

use std::time::Duration;

use pinnace_cri_api::v1;

use crate::container::exec_sync::exec_sync;
use crate::error::Error;
use crate::node::Node;

/// Runs the command.
pub async fn answer(node: &Node, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Error> {
    if request.cmd.is_empty() {
        return Err(Error::invalid("cmd", "is empty"));
    }
    let limit = match u64::try_from(request.timeout) {
        Err(_) => return Err(Error::invalid("timeout", format!("{} is negative", request.timeout))),
        Ok(0) => None,
        Ok(seconds) => Some(Duration::from_secs(seconds)),
    };
    let output = exec_sync(node, &request.container_id, request.cmd, limit).await?;
    Ok(v1::ExecSyncResponse {
        stdout: output.stdout.into(),
        stderr: output.stderr.into(),
        exit_code: output.code,
    })
}
