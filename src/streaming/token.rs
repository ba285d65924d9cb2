//! Requests that wait for their client, each behind a token that works once.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::TokenError;
use crate::runtime::{AttachRequest, ExecRequest, PortForwardRequest};

/// Bytes of randomness in a token.
const TOKEN_BYTES: usize = 16;

/// What a client may ask for with its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

impl Request {
    /// First segment of the URL's path.
    pub fn segment(&self) -> &'static str {
        match self {
            Request::Exec(_) => "exec",
            Request::Attach(_) => "attach",
            Request::PortForward(_) => "portforward",
        }
    }
}

/// The waiting requests.
#[derive(Debug)]
pub(crate) struct Tokens {
    life: Duration,
    limit: usize,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: HashMap<String, (Instant, Request)>,
    /// Tokens by age, oldest first; may name ones that were used.
    by_age: VecDeque<(Instant, String)>,
}

impl Waiting {
    fn expire(&mut self, now: Instant) {
        while let Some((deadline, token)) = self.by_age.front() {
            if *deadline > now && self.requests.contains_key(token) {
                break;
            }
            if let Some((_, token)) = self.by_age.pop_front() {
                self.requests.remove(&token);
            }
        }
    }
}

impl Tokens {
    pub fn new(life: Duration, limit: usize) -> Tokens {
        Tokens { life, limit, waiting: Mutex::default() }
    }

    /// Keeps a request and returns its token.
    pub fn insert(&self, request: Request) -> Result<String, TokenError> {
        let mut random = [0; TOKEN_BYTES];
        let mut filled = 0;
        while filled < random.len() {
            match rustix::rand::getrandom(&mut random[filled..], rustix::rand::GetRandomFlags::empty()) {
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(TokenError::Random { errno }),
            }
        }
        let token = URL_SAFE_NO_PAD.encode(random);
        let now = Instant::now();
        let mut waiting = self.lock();
        waiting.expire(now);
        if waiting.requests.len() >= self.limit {
            return Err(TokenError::TooMany { limit: self.limit });
        }
        let deadline = now + self.life;
        waiting.requests.insert(token.clone(), (deadline, request));
        waiting.by_age.push_back((deadline, token.clone()));
        Ok(token)
    }

    /// The request behind a token, which stays usable: what a client may ask for decides how it is answered.
    pub fn look_up(&self, segment: &str, token: &str) -> Option<Request> {
        let waiting = self.lock();
        let (deadline, request) = waiting.requests.get(token)?;
        (*deadline > Instant::now() && request.segment() == segment).then(|| request.clone())
    }

    /// Uses a token up: `true` for exactly one caller.
    pub fn spend(&self, token: &str) -> bool {
        let mut waiting = self.lock();
        let now = Instant::now();
        let spent = waiting.requests.remove(token).is_some_and(|(deadline, _)| deadline > now);
        waiting.expire(now);
        spent
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::PortForward(PortForwardRequest { sandbox_id: "sandbox".into(), ports: vec![80] })
    }

    #[test]
    fn token_is_long_works_once_and_for_its_own_path() {
        let tokens = Tokens::new(Duration::from_secs(60), 10);
        let token = tokens.insert(request()).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(&token).unwrap().len() * 8, 128);
        assert_ne!(token, tokens.insert(request()).unwrap());
        assert_eq!(tokens.look_up("exec", &token), None);
        assert_eq!(tokens.look_up("portforward", &token), Some(request()));
        assert!(tokens.spend(&token));
        assert!(!tokens.spend(&token));
        assert_eq!(tokens.look_up("portforward", &token), None);
    }

    #[test]
    fn number_is_bounded_and_used_or_old_ones_make_room() {
        let tokens = Tokens::new(Duration::from_millis(30), 2);
        let first = tokens.insert(request()).unwrap();
        tokens.insert(request()).unwrap();
        assert_eq!(tokens.insert(request()), Err(TokenError::TooMany { limit: 2 }));
        assert!(tokens.spend(&first));
        let third = tokens.insert(request()).unwrap();
        assert_eq!(tokens.insert(request()), Err(TokenError::TooMany { limit: 2 }));
        std::thread::sleep(Duration::from_millis(40));
        assert!(!tokens.spend(&third));
        tokens.insert(request()).unwrap();
        tokens.insert(request()).unwrap();
        assert_eq!(tokens.lock().by_age.len(), 2, "old tokens are forgotten");
    }
}
