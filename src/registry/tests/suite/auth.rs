//! Who is shown a secret: the registry, its token service, and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine;
use pinnace_registry::server::Content;
use pinnace_registry::{Auth, AuthFields, Client, ErrorKind, Options};

use crate::world::*;

fn basic() -> String {
    let value = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{SECRET}"));
    format!("Basic {value}")
}

fn challenge(value: &str) -> http::Response<pinnace_registry::server::Body> {
    with_header(status(401), "www-authenticate", value)
}

fn fields(edit: impl FnOnce(&mut AuthFields)) -> Auth {
    let mut fields = AuthFields::default();
    edit(&mut fields);
    Auth::from_fields(&fields).unwrap().unwrap()
}

/// A registry that wants Basic credentials.
async fn with_basic(content: Content) -> Registry {
    Registry::start(content, |seen| {
        (seen.header("authorization") != Some(&basic())).then(|| challenge("Basic realm=\"r\""))
    })
    .await
}

/// A registry that wants tokens and hands them out itself, to the right user or to everyone.
async fn with_tokens(content: Content, everyone: bool, expires_at_once: bool) -> Registry {
    let issued = AtomicUsize::new(0);
    Registry::start(content, move |seen| {
        let host = seen.header("host").unwrap().to_owned();
        if seen.uri.starts_with("/token") {
            if !everyone && seen.header("authorization") != Some(&basic()) {
                return Some(with_header(json(r#"{"details":"who are you"}"#.into()), "x", "y")).map(
                    |mut reply| {
                        *reply.status_mut() = http::StatusCode::UNAUTHORIZED;
                        reply
                    },
                );
            }
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Some(json(format!(r#"{{"token":"t{number}","expires_in":300}}"#)));
        }
        let newest = issued.load(Ordering::SeqCst);
        let accepted = match seen.header("authorization").and_then(|value| value.strip_prefix("Bearer t")) {
            // A registry that forgets a token after its first use.
            Some(number) if expires_at_once => {
                number.parse::<usize>().is_ok_and(|number| number == newest && newest > 1)
            }
            Some(_) => true,
            None => false,
        };
        (!accepted).then(|| {
            challenge(&format!(
                "Bearer realm=\"http://{host}/token\",service=\"svc\",scope=\"repository:test/image:pull\""
            ))
        })
    })
    .await
}

#[tokio::test]
async fn basic_credentials_answer_a_basic_challenge() {
    let (content, _) = one_layer(10);
    let registry = with_basic(content).await;
    let client = client();
    let reference = registry.reference("test/image");
    client.resolve(&reference, Some(&auth())).await.unwrap();
    let seen = registry.seen();
    assert!(!has_secret(&seen[0]), "nothing is sent unasked");
    assert_eq!(seen.len(), 3, "one refusal, manifest, config");
    expect_kind(client.resolve(&reference, None).await, ErrorKind::Unauthorized, "authentication required");
    let before = registry.seen().len();
    let wrong = Auth::basic(USER, "wrong");
    expect_kind(client.resolve(&reference, Some(&wrong)).await, ErrorKind::Unauthorized, "not accepted");
    assert_eq!(registry.seen().len(), before + 2, "a refused secret is not tried again");
}

#[tokio::test]
async fn tokens_are_fetched_once_and_used() {
    let (content, image) = one_layer(10);
    let registry = with_tokens(content, false, false).await;
    let client = client();
    let reference = registry.reference("test/image");
    client.resolve(&reference, Some(&auth())).await.unwrap();
    let repository = client.repository(&reference, Some(&auth())).unwrap();
    let (one, two) = tokio::join!(
        collect(repository.fetch_blob(&image.layers[0], 0)),
        collect(repository.fetch_blob(&image.layers[0], 0))
    );
    assert!(one.is_ok() && two.is_ok());
    let seen = registry.seen();
    let tokens: Vec<&Seen> = seen.iter().filter(|seen| seen.uri.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].uri, "/token?service=svc&scope=repository%3Atest%2Fimage%3Apull");
    assert_eq!(tokens[0].header("authorization"), Some(basic().as_str()));
    assert!(seen.iter().filter(|seen| !seen.uri.starts_with("/token")).all(|seen| !has_secret(seen)));
    // Another secret, or none, does not get this one's token.
    let other = Auth::basic(USER, "wrong");
    expect_kind(client.resolve(&reference, Some(&other)).await, ErrorKind::Unauthorized, "who are you");
    expect_kind(client.resolve(&reference, None).await, ErrorKind::Unauthorized, "token from 127.0.0.1");
}

#[tokio::test]
async fn anonymous_tokens_and_forgotten_tokens() {
    let (content, _) = one_layer(10);
    let registry = with_tokens(content, true, false).await;
    client().resolve(&registry.reference("test/image"), None).await.unwrap();
    assert!(registry.seen().iter().all(|seen| seen.header("authorization").is_none_or(|v| v == "Bearer t1")));

    let (content, _) = one_layer(10);
    let registry = with_tokens(content, true, true).await;
    let client = client();
    let reference = registry.reference("test/image");
    let first = client.resolve(&reference, None).await;
    expect_kind(first, ErrorKind::Unauthorized, "");
    client.resolve(&reference, None).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_always_refuses_is_asked_twice() {
    let registry = Registry::start(Content::default(), |seen| {
        Some(if seen.uri.starts_with("/token") {
            json(r#"{"access_token":"x"}"#.into())
        } else {
            challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap()))
        })
    })
    .await;
    let result = client().resolve(&registry.reference("a"), Some(&auth())).await;
    expect_kind(result, ErrorKind::Unauthorized, "not accepted");
    assert_eq!(registry.seen().len(), 3);
}

#[tokio::test]
async fn identity_tokens_are_posted_and_registry_tokens_sent() {
    let (content, _) = one_layer(10);
    let registry = Registry::start(content, |seen| {
        if seen.uri.starts_with("/token") {
            assert_eq!(seen.header("content-type"), Some("application/x-www-form-urlencoded"));
            assert_eq!((seen.method.as_str(), seen.uri.as_str()), ("POST", "/token"));
            return Some(json(r#"{"access_token":"good"}"#.into()));
        }
        let host = seen.header("host").unwrap();
        (seen.header("authorization") != Some("Bearer good"))
            .then(|| challenge(&format!("Bearer realm=\"http://{host}/token\",service=\"s\"")))
    })
    .await;
    let client = client();
    let reference = registry.reference("test/image");
    let identity = fields(|f| f.identity_token = SECRET.into());
    client.resolve(&reference, Some(&identity)).await.unwrap();
    let before = registry.seen().len();
    let direct = fields(|f| f.registry_token = "good".into());
    client.resolve(&reference, Some(&direct)).await.unwrap();
    let seen = registry.seen();
    assert!(seen[before..].iter().all(|seen| seen.header("authorization") == Some("Bearer good")));
    let wrong = fields(|f| f.registry_token = SECRET.into());
    expect_kind(client.resolve(&reference, Some(&wrong)).await, ErrorKind::Unauthorized, "not accepted");
}

#[tokio::test]
async fn credentials_for_another_registry_stay_here() {
    let (content, _) = one_layer(10);
    let registry = with_basic(content).await;
    let other = fields(|f| {
        f.username = USER.into();
        f.password = SECRET.into();
        f.server_address = "quay.io".into();
    });
    let result = client().resolve(&registry.reference("test/image"), Some(&other)).await;
    expect_kind(result, ErrorKind::Unauthorized, "authentication required");
    assert!(!registry.seen().iter().any(has_secret));
}

/// Everything that another origin can do to get the secret.
#[tokio::test]
async fn redirects_to_another_origin_carry_nothing() {
    for answer in ["serve", "basic", "bearer"] {
        let (content, image) = one_layer(1000);
        let thief = Registry::start(content, move |seen| match answer {
            "basic" => Some(challenge("Basic realm=\"r\"")),
            "bearer" => {
                let host = seen.header("host").unwrap();
                Some(challenge(&format!("Bearer realm=\"http://{host}/token\",service=\"s\"")))
            }
            _ => None,
        })
        .await;
        let target = thief.url("");
        let (content, _) = one_layer(1000);
        let registry = Registry::start(content, move |seen| {
            if seen.header("authorization") != Some(&basic()) {
                return Some(challenge("Basic realm=\"r\""));
            }
            let blob = seen.uri.contains("/blobs/");
            blob.then(|| with_header(redirect(&format!("{target}{}", seen.uri)), "set-cookie", "a=b"))
        })
        .await;
        let client = client();
        let repository = client.repository(&registry.reference("test/image"), Some(&auth())).unwrap();
        let result = collect(repository.fetch_blob(&image.layers[0], 0)).await;
        match answer {
            "serve" => assert_eq!(result.unwrap().len(), 1000),
            _ => expect_kind(result, ErrorKind::Unauthorized, "401"),
        }
        assert!(registry.seen().iter().any(has_secret));
        assert_eq!(thief.seen().len(), 1, "{answer}");
        for seen in thief.seen() {
            assert!(!has_secret(&seen), "{seen:?}");
            for header in ["authorization", "cookie", "referer", "proxy-authorization"] {
                assert_eq!(seen.header(header), None, "{header}");
            }
        }
    }
}

#[tokio::test]
async fn redirects_within_the_origin_keep_the_secret() {
    let (content, image) = one_layer(1000);
    let registry = Registry::start(content, |seen| {
        if seen.header("authorization") != Some(&basic()) {
            return Some(challenge("Basic realm=\"r\""));
        }
        seen.uri
            .strip_prefix("/v2/test/image/blobs/")
            .map(|digest| redirect(&format!("/v2/moved/blobs/{digest}")))
    })
    .await;
    let client = client();
    let repository = client.repository(&registry.reference("test/image"), Some(&auth())).unwrap();
    assert_eq!(collect(repository.fetch_blob(&image.layers[0], 0)).await.unwrap().len(), 1000);
}

#[tokio::test]
async fn redirects_to_nowhere_good_are_refused() {
    for (to, part) in [
        ("http://169.254.169.254/latest/meta-data/", "only this node or site"),
        ("http://[fe80::1]/", "only this node or site"),
        ("http://0.0.0.0:1/", "only this node or site"),
        ("file:///etc/passwd", "neither http nor https"),
        ("http://someone:pw@127.0.0.1:1/", "user name"),
        ("http://", "not a URL"),
    ] {
        let registry = Registry::start(Content::default(), move |_| Some(redirect(to))).await;
        let result = client().resolve(&registry.reference("a"), Some(&auth())).await;
        expect_kind(result, ErrorKind::Refused, part);
    }
    let registry = Registry::start(Content::default(), |seen| Some(redirect(&seen.uri))).await;
    expect_kind(
        client().resolve(&registry.reference("a"), None).await,
        ErrorKind::Refused,
        "too many redirects",
    );
    assert_eq!(registry.seen().len(), 11);
}

#[tokio::test]
async fn foreign_error_pages_are_not_read_out() {
    let page = Registry::start(Content::default(), |_| {
        let mut reply = json(r#"{"errors":[{"code":"X","message":"internal page"}]}"#.into());
        *reply.status_mut() = http::StatusCode::NOT_FOUND;
        Some(reply)
    })
    .await;
    let target = page.url("/x?signature=marker");
    let registry = Registry::start(Content::default(), move |_| Some(redirect(&target))).await;
    let error = client().resolve(&registry.reference("a"), None).await.unwrap_err();
    let text = chain(&error);
    assert!(!text.contains("internal page") && !text.contains("marker"), "{text}");
}

#[tokio::test]
async fn token_services_elsewhere_do_not_see_the_secret() {
    let asked = Arc::new(AtomicBool::new(false));
    let seen_asked = Arc::clone(&asked);
    let thief = Registry::start(Content::default(), move |_| {
        seen_asked.store(true, Ordering::SeqCst);
        Some(json(r#"{"token":"t"}"#.into()))
    })
    .await;
    let elsewhere = thief.url("/token");
    for realm in [
        elsewhere.as_str(),
        "http://169.254.169.254/token",
        "http://someone@127.0.0.1:1/token",
        "https://192.0.2.1/token",
        "https://evil.example/token",
        "file:///etc/passwd",
        "not a url",
    ] {
        let realm = realm.to_owned();
        let registry = Registry::start(Content::default(), move |_| {
            Some(challenge(&format!("Bearer realm=\"{realm}\"")))
        })
        .await;
        let result = client().resolve(&registry.reference("a"), Some(&auth())).await;
        expect_kind(result, ErrorKind::Refused, "credentials were not sent");
        assert!(!registry.seen().iter().any(has_secret));
    }
    assert!(!asked.load(Ordering::SeqCst), "the other token service was contacted");

    // Where the administrator trusts it, it is used.
    let (content, _) = one_layer(10);
    let realm = thief.url("/token");
    let registry = Registry::start(content, move |seen| {
        (seen.header("authorization") != Some("Bearer t"))
            .then(|| challenge(&format!("Bearer realm=\"{realm}\",service=\"s\"")))
    })
    .await;
    let trusting = Client::new(Options {
        token_realms: vec![format!("http://{}", thief.server.registry())],
        ..options()
    })
    .unwrap();
    trusting.resolve(&registry.reference("test/image"), Some(&auth())).await.unwrap();
    assert!(has_secret(&thief.seen()[0]));
    // Nobody's secret is at stake without one.
    client().resolve(&registry.reference("test/image"), None).await.unwrap();
    assert!(!has_secret(&thief.seen()[1]));
}

#[tokio::test]
async fn hostile_token_replies_are_refused() {
    for (reply, part) in [
        ("{}".to_owned(), "no usable token"),
        ("null".to_owned(), "no usable token"),
        (r#"{"token":"a\r\nX-Injected: b"}"#.to_owned(), "no usable token"),
        (format!("{{\"token\":\"{}\"}}", "x".repeat(2 << 20)), "token reply is larger than 1048576"),
    ] {
        let registry = Registry::start(Content::default(), move |seen| {
            Some(if seen.uri.starts_with("/token") {
                json(reply.clone())
            } else {
                challenge(&format!("Bearer realm=\"http://{}/token\"", seen.header("host").unwrap()))
            })
        })
        .await;
        let error = client().resolve(&registry.reference("a"), None).await.unwrap_err();
        assert!(chain(&error).contains(part), "{}", chain(&error));
    }
}

/// Everything that is logged, at every level.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_level_of_logging_shows_a_secret() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let (content, _) = one_layer(10);
    let registry = with_tokens(content.clone(), false, false).await;
    let client = client();
    client.resolve(&registry.reference("test/image"), Some(&auth())).await.unwrap();
    let registry = with_basic(content).await;
    client.resolve(&registry.reference("test/image"), Some(&auth())).await.unwrap();
    let wrong = fields(|f| f.identity_token = SECRET.into());
    client.resolve(&registry.reference("test/image"), Some(&wrong)).await.unwrap_err();
    let failing = Registry::start(Content::default(), |_| Some(status(503))).await;
    client.resolve(&failing.reference("a"), Some(&auth())).await.unwrap_err();
    drop(guard);
    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(text.contains("will try again"), "nothing was logged: {text}");
    assert!(!text.contains(SECRET) && !text.contains(&basic()[6..]) && !text.contains("Bearer t1"), "{text}");
}
