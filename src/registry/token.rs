//! Answers to challenges: Basic credentials and bearer tokens, one of each per repository and
//! secret, kept and renewed early.
//!
//! Who may see a secret is decided here. The registry itself may (the administrator or the pod
//! named it). A token service may if it is the registry's own: same host, or a neighbour in the
//! same domain over https (`registry-1.docker.io` and `auth.docker.io`), or one that the
//! administrator lists. An anonymous token may be fetched from anywhere public.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, AUTHORIZATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use pinnace_store::Digest;
use serde::Deserialize;
use url::{Host, Url};

use crate::auth::{Secret, basic_value};
use crate::challenge::Challenge;
use crate::error::Problem;
use crate::exchange::{Session, Transport};
use crate::origin::{Origin, is_loopback_host};

/// Longest reply of a token service (R10).
const REPLY_MAX: u64 = 1 << 20;
/// What a reply without `expires_in`, or with less, means (distribution, token specification).
const LIFETIME_MIN: Duration = Duration::from_secs(60);
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
const SLOTS_MAX: usize = 1024;
const CLIENT_ID: &str = "pinnace";

/// What is known about how to be let in.
#[derive(Default)]
pub(crate) struct Tokens {
    slots: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Slot>>>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    origin: Origin,
    path: String,
    secret: Option<Digest>,
}

#[derive(Default)]
enum Slot {
    /// Nobody asked for anything yet.
    #[default]
    Open,
    Basic,
    Bearer {
        value: HeaderValue,
        realm: Realm,
        renew_at: Instant,
    },
}

#[derive(Clone)]
struct Realm {
    url: Url,
    service: String,
    scope: Vec<String>,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Tokens {
    /// The header to send without having been asked, renewed if it is about to expire.
    pub(crate) async fn current(
        &self,
        transport: &Transport,
        session: &Session,
    ) -> Result<Option<HeaderValue>, Problem> {
        if let Some(Secret::RegistryToken(token)) = &session.secret {
            return bearer(token).map(Some);
        }
        let slot = self.slot(session);
        let mut slot = slot.lock().await;
        match &*slot {
            Slot::Open => Ok(None),
            Slot::Basic => basic(session),
            Slot::Bearer { value, renew_at, .. } if Instant::now() < *renew_at => Ok(Some(value.clone())),
            Slot::Bearer { realm, .. } => {
                let realm = realm.clone();
                fill(&mut slot, transport, session, realm).await.map(Some)
            }
        }
    }

    /// The header that answers a challenge; nothing if we have none. `refused` is the header that
    /// was just not accepted.
    pub(crate) async fn answer(
        &self,
        transport: &Transport,
        session: &Session,
        challenge: &Challenge,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, Problem> {
        if matches!(session.secret, Some(Secret::RegistryToken(_))) {
            return Ok(None);
        }
        let slot = self.slot(session);
        let mut slot = slot.lock().await;
        match challenge {
            Challenge::Basic => {
                let value = basic(session)?.filter(|value| Some(value) != refused);
                if value.is_some() {
                    *slot = Slot::Basic;
                }
                Ok(value)
            }
            Challenge::Bearer { realm, service, scope } => {
                // Another request of this pull may have renewed it in the meantime.
                if let Slot::Bearer { value, renew_at, .. } = &*slot
                    && Some(value) != refused
                    && Instant::now() < *renew_at
                {
                    return Ok(Some(value.clone()));
                }
                let url = Url::parse(realm).map_err(|_| Problem::Realm { realm: realm.clone() })?;
                let scope = if scope.is_empty() {
                    vec![format!("repository:{}:pull", session.path)]
                } else {
                    scope.clone()
                };
                let realm = Realm { url, service: service.clone(), scope };
                fill(&mut slot, transport, session, realm).await.map(Some)
            }
        }
    }

    fn slot(&self, session: &Session) -> Arc<tokio::sync::Mutex<Slot>> {
        let key = Key {
            origin: session.endpoint.origin.clone(),
            path: session.path.clone(),
            secret: session.secret.as_ref().map(Secret::fingerprint),
        };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= SLOTS_MAX && !slots.contains_key(&key) {
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

async fn fill(
    slot: &mut Slot,
    transport: &Transport,
    session: &Session,
    realm: Realm,
) -> Result<HeaderValue, Problem> {
    *slot = Slot::Open;
    let host = realm.url.host_str().unwrap_or_default().to_owned();
    let asked_at = Instant::now();
    let reply = match fetch(transport, session, &realm).await {
        Ok(reply) => reply,
        // These say by themselves which server they are about.
        Err(problem @ (Problem::Realm { .. } | Problem::Setup(_))) => return Err(problem),
        Err(problem) => return Err(Problem::Token { host, source: Box::new(problem) }),
    };
    let token = if reply.token.is_empty() { &reply.access_token } else { &reply.token };
    let value = match bearer(token) {
        Ok(value) if !token.is_empty() => value,
        _ => return Err(Problem::Token { host, source: Box::new(Problem::NoToken) }),
    };
    let lifetime = Duration::from_secs(reply.expires_in.unwrap_or(0)).clamp(LIFETIME_MIN, LIFETIME_MAX);
    // By our clock, from before the request, and with a fifth to spare: clocks differ and
    // requests take time.
    let renew_at = asked_at + lifetime.mul_f64(0.8);
    *slot = Slot::Bearer { value: value.clone(), realm, renew_at };
    Ok(value)
}

async fn fetch(transport: &Transport, session: &Session, realm: &Realm) -> Result<Reply, Problem> {
    let refused = || Problem::Realm { realm: shown(&realm.url) };
    let endpoint = &session.endpoint;
    let origin = Origin::of(&realm.url).ok_or_else(refused)?;
    if !realm.url.username().is_empty() || realm.url.password().is_some() {
        return Err(refused());
    }
    let allowed = match &session.secret {
        Some(_) => may_see_secrets(&endpoint.origin, &realm.url, &origin, &transport.token_realms),
        None => origin.is_secure() || !endpoint.origin.is_secure(),
    };
    if !allowed {
        return Err(refused());
    }
    let client = if origin == endpoint.origin {
        transport.client_for_own(endpoint)?
    } else {
        if !transport.token_realms.contains(&origin) {
            transport.judge_literal(endpoint, &realm.url).await?;
        }
        transport.client_for_others(endpoint).await?
    };

    let (basic, refresh) = match &session.secret {
        Some(Secret::Password { username, password }) => (Some(basic_value(username, password)), None),
        Some(Secret::IdentityToken(token)) => (None, Some(token.as_str())),
        Some(Secret::RegistryToken(_)) | None => (None, None),
    };
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let request = if let Some(refresh) = refresh {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("service", &realm.service)
            .append_pair("client_id", CLIENT_ID)
            .append_pair("scope", &realm.scope.join(" "))
            .append_pair("refresh_token", refresh);
        headers.insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-www-form-urlencoded"),
        );
        client.post(realm.url.clone()).body(form.finish())
    } else {
        let mut url = realm.url.clone();
        {
            let mut query = url.query_pairs_mut();
            if !realm.service.is_empty() {
                query.append_pair("service", &realm.service);
            }
            for scope in &realm.scope {
                query.append_pair("scope", scope);
            }
        }
        if let Some(basic) = basic {
            headers.insert(AUTHORIZATION, sensitive(&basic)?);
        }
        client.get(url)
    };
    let response = transport.within("token", request.headers(headers).send()).await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED => {
            let anonymous = session.secret.is_none();
            return Err(match transport.refusal(response, true).await {
                Problem::Status { excerpt, .. } => Problem::Unauthorized { anonymous, excerpt },
                other => other,
            });
        }
        // Redirects too: a token service that moved must be named by the registry.
        _ => return Err(transport.refusal(response, true).await),
    }
    let body = transport.read_bounded(response, "token reply", REPLY_MAX).await?;
    serde_json::from_slice(&body).map_err(|_| Problem::NoToken)
}

/// Whether a realm is the registry's own token service (R14 of the threat model: CVE-2026-48978,
/// CVE-2026-33540).
fn may_see_secrets(registry: &Origin, realm: &Url, origin: &Origin, trusted: &[Origin]) -> bool {
    if origin == registry || trusted.contains(origin) {
        return true;
    }
    if !origin.is_secure() {
        return false;
    }
    if origin.host() == registry.host() {
        return true;
    }
    matches!(realm.host(), Some(Host::Domain(_)))
        && !is_loopback_host(origin.host())
        && are_neighbours(registry.host(), origin.host())
}

/// Parent and child, or children of one parent, where the parent is a domain that someone owns.
fn are_neighbours(one: &str, other: &str) -> bool {
    let parent = |name: &str| name.split_once('.').map(|(_, parent)| parent.to_owned());
    let (one_parent, other_parent) = (parent(one), parent(other));
    let is_owned = |domain: &str| {
        let labels: Vec<&str> = domain.split('.').collect();
        match labels.as_slice() {
            // `co.uk`, `com.au`: registries of names, not owners.
            [second, top] => second.len() > 3 || top.len() > 2,
            [] | [_] => false,
            _ => true,
        }
    };
    let common = if one_parent.as_deref() == Some(other) {
        Some(other.to_owned())
    } else if other_parent.as_deref() == Some(one) {
        Some(one.to_owned())
    } else if one_parent == other_parent {
        one_parent
    } else {
        None
    };
    common.is_some_and(|domain| is_owned(&domain))
}

fn basic(session: &Session) -> Result<Option<HeaderValue>, Problem> {
    match &session.secret {
        Some(Secret::Password { username, password }) => {
            sensitive(&basic_value(username, password)).map(Some)
        }
        _ => Ok(None),
    }
}

fn bearer(token: &str) -> Result<HeaderValue, Problem> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Result<HeaderValue, Problem> {
    let mut value = HeaderValue::try_from(text).map_err(|_| Problem::NoToken)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A realm without query and user, for messages.
fn shown(url: &Url) -> String {
    match Origin::of(url) {
        Some(origin) => format!("{origin}{}", url.path()),
        None => url.scheme().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(registry: &str, realm: &str) -> bool {
        let registry = Origin::of(&Url::parse(registry).unwrap()).unwrap();
        let url = Url::parse(realm).unwrap();
        let trusted = [Origin::of(&Url::parse("https://sso.example.net").unwrap()).unwrap()];
        may_see_secrets(&registry, &url, &Origin::of(&url).unwrap(), &trusted)
    }

    #[test]
    fn token_services_of_real_registries_see_secrets() {
        for (registry, realm) in [
            ("https://registry-1.docker.io", "https://auth.docker.io/token"),
            ("https://quay.io", "https://quay.io/v2/auth"),
            ("https://ghcr.io", "https://ghcr.io/token"),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("https://registry.corp.example.com:5000", "https://gitlab.corp.example.com/jwt/auth"),
            ("https://mine.azurecr.io", "https://mine.azurecr.io/oauth2/token"),
            ("http://localhost:5000", "http://localhost:5000/token"),
            ("https://10.0.0.5:5000", "https://10.0.0.5:5001/token"),
            ("https://r.io", "https://sso.example.net/token"),
        ] {
            assert!(allowed(registry, realm), "{registry} {realm}");
        }
    }

    #[test]
    fn strangers_do_not() {
        for (registry, realm) in [
            ("https://quay.io", "https://evil.io/token"),
            ("https://quay.io", "http://quay.io/token"),
            ("https://registry.foo.co.uk", "https://registry.co.uk/token"),
            ("https://foo.co.uk", "https://evil.co.uk/token"),
            ("https://a.foo.com", "https://a.evil.com/token"),
            ("https://foo.com", "https://evil.com/token"),
            ("https://a.foo.com", "https://com/token"),
            ("https://quay.io", "https://169.254.169.254/token"),
            ("https://10.0.0.5", "https://10.0.0.6/token"),
            ("https://quay.io", "https://quay.io.evil.io/token"),
            ("https://quay.io", "https://evilquay.io/token"),
            ("http://localhost:5000", "http://localhost:5001/token"),
            ("http://plain.io:5000", "http://auth.plain.io/token"),
            ("https://localhost", "https://localhost.evil.io/"),
        ] {
            assert!(!allowed(registry, realm), "{registry} {realm}");
        }
    }

    #[test]
    fn realms_are_shown_without_their_query() {
        assert_eq!(shown(&Url::parse("https://u:p@a.io/t?secret=1").unwrap()), "https://a.io/t");
    }
}
