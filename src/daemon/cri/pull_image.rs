//! PullImage: answers the image id, the same everywhere: the kubelet compares it with what lists show.

use std::time::Duration;

use pinnace_cri_api::v1;
use pinnace_pull::PullRequest;
use pinnace_registry::{Auth, AuthFields};

use super::image::name;
use crate::error::{Error, Within as _};
use crate::node::Node;

/// What an answer has to get to the caller: a part of the caller's time, within these.
const REPLY_TIME_MIN: Duration = Duration::from_millis(50);
const REPLY_TIME_MAX: Duration = Duration::from_secs(1);
const REPLY_SHARE: u32 = 10;

/// Pulls. The caller going away ends the pull, unless others wait for the same.
///
/// `limit` is the caller's own: we answer just before it passes, and say what took so long.
pub async fn answer(
    node: &Node,
    request: v1::PullImageRequest,
    limit: Option<Duration>,
) -> Result<v1::PullImageResponse, Error> {
    let name = name("image", request.image)?;
    let what = || format!("pull image {name}");
    let reference = node.registry.reference(&name).within(what)?;
    let auth = request.auth.map(auth).transpose().within(what)?.flatten();
    let pull = node.puller.pull(PullRequest { auth, ..PullRequest::new(reference) });
    let pulled = match limit {
        None => pull.await,
        // Dropping it gives our place in the pull up.
        Some(limit) => match tokio::time::timeout(limit.saturating_sub(reply_time(limit)), pull).await {
            Ok(result) => result,
            Err(_) => return Err(Error::Deadline { what: what(), limit }),
        },
    }
    .within(what)?;
    tracing::info!(image = name, id = %pulled.image_id, "image pulled");
    Ok(v1::PullImageResponse { image_ref: pulled.image_id.to_string() })
}

fn reply_time(limit: Duration) -> Duration {
    (limit / REPLY_SHARE).clamp(REPLY_TIME_MIN, REPLY_TIME_MAX)
}

/// The fields as the registry's client reads them; it decides which of them count.
fn auth(auth: v1::AuthConfig) -> Result<Option<Auth>, Error> {
    Ok(Auth::from_fields(&AuthFields {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    })?)
}
