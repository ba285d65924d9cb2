//! `WWW-Authenticate`: what a registry wants to see before it answers.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Most challenges looked at in one response.
const CHALLENGES_MAX: usize = 16;

/// One way to authenticate that a registry offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// RFC 7617.
    Basic,
    /// The distribution project's token protocol.
    Bearer { realm: String, service: String, scope: Vec<String> },
}

impl Challenge {
    /// The best offer among all headers: tokens before passwords.
    pub(crate) fn best(headers: &HeaderMap) -> Option<Self> {
        let offers: Vec<Self> = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(parse)
            .take(CHALLENGES_MAX)
            .collect();
        offers.iter().find(|offer| matches!(offer, Self::Bearer { .. })).or_else(|| offers.first()).cloned()
    }
}

/// Parses one header value: `scheme param=value, param="quoted", scheme …` (RFC 9110 §11.6.1).
fn parse(value: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = value.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c == ',' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let word = &rest[..end];
        let after = rest[end..].trim_start();
        if let Some(value) = after.strip_prefix('=').filter(|_| !word.is_empty()) {
            let (value, remainder) = parameter_value(value.trim_start());
            if let Some((_, parameters)) = found.last_mut() {
                parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = remainder;
        } else {
            if !word.is_empty() {
                found.push((word.to_ascii_lowercase(), Vec::new()));
            }
            rest = after;
        }
        // A stray `=` is dropped with the separators, so that every turn gets shorter.
        rest = rest.trim_start_matches(|c: char| matches!(c, ',' | '=') || c.is_ascii_whitespace());
    }
    found.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, &parameters)).collect()
}

fn challenge(scheme: &str, parameters: &[(String, String)]) -> Option<Challenge> {
    // A parameter that comes twice has no one meaning.
    let one = |name: &str| {
        let mut values = parameters.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
        values.next().filter(|_| values.next().is_none())
    };
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => Some(Challenge::Bearer {
            realm: one("realm")?.clone(),
            service: one("service").cloned().unwrap_or_default(),
            scope: one("scope")
                .map(|scope| scope.split_ascii_whitespace().map(str::to_owned).collect())
                .unwrap_or_default(),
        }),
        _ => None,
    }
}

fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::best(&headers)
    }

    fn bearer(realm: &str, service: &str, scope: &[&str]) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.into(),
            service: service.into(),
            scope: scope.iter().map(|&scope| scope.to_owned()).collect(),
        })
    }

    #[test]
    fn real_registries_are_understood() {
        assert_eq!(
            best(&[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/busybox:pull""#
            ]),
            bearer(
                "https://auth.docker.io/token",
                "registry.docker.io",
                &["repository:library/busybox:pull"]
            )
        );
        assert_eq!(best(&[r#"Basic realm="Registry, the \"best\"""#]), Some(Challenge::Basic));
        assert_eq!(best(&["basic"]), Some(Challenge::Basic));
        assert_eq!(best(&[r#"Basic realm="x", Bearer realm="y""#]), bearer("y", "", &[]));
        assert_eq!(best(&["Basic realm=x", "BEARER Realm = y , service=z"]), bearer("y", "z", &[]));
        assert_eq!(best(&[r#"Negotiate, Bearer realm="y",scope="a b""#]), bearer("y", "", &["a", "b"]));
    }

    #[test]
    fn hostile_values_give_nothing_or_stop() {
        assert_eq!(best(&[]), None);
        for value in
            ["", ",,,", "=", "==", "Digest realm=x", "Bearer", "Bearer service=x", "\"", "Bearer realm"]
        {
            assert_eq!(best(&[value]), None, "{value}");
        }
        assert_eq!(best(&[r#"Bearer realm="a",realm="b""#]), None);
        assert_eq!(best(&[r#"Bearer realm="unterminated"#]), bearer("unterminated", "", &[]));
        assert_eq!(best(&[&"Basic ".repeat(5_000)]), Some(Challenge::Basic));
    }

    proptest::proptest! {
        #[test]
        fn any_header_ends(value in "[ -~]{0,80}") {
            let _ = parse(&value);
        }
    }
}
