//! Who may ask: keys and origins.
//!
//! Invariant: how long a refusal takes does not depend on how much of a key is right. A page of another origin gets
//! nothing unless its origin was allowed.

use super::connection::Peer;
use crate::api::ApiError;
use crate::engine::Client;
use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HOST, HeaderName, ORIGIN};
use sha2::{Digest, Sha256};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What is allowed.
#[derive(Debug, Default)]
pub(super) struct Guard {
    keys: Vec<[u8; 32]>,
    origins: Vec<String>,
}

impl Guard {
    pub(super) fn new(keys: &[String], origins: &[String]) -> Self {
        Self {
            keys: keys.iter().map(|key| digest(key.as_bytes())).collect(),
            origins: origins.to_vec(),
        }
    }

    /// Whose request it is.
    ///
    /// # Errors
    /// 401 without a right key where there are keys.
    pub(super) fn client(
        &self,
        headers: &HeaderMap,
        peer: Option<Peer>,
    ) -> Result<Client, ApiError> {
        let mut hasher = DefaultHasher::new();
        if self.keys.is_empty() {
            peer.map(|peer| peer.0).hash(&mut hasher);
            return Ok(hasher.finish());
        }
        let bearer = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
        let bearer = bearer.and_then(|value| {
            let (scheme, key) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(key)
        });
        let given = bearer.or_else(|| {
            let key = headers.get(HeaderName::from_static("x-api-key"))?;
            Some(key.as_bytes())
        });
        let Some(given) = given else {
            let message = "an API key is needed: send it as `Authorization: Bearer KEY`";
            return Err(ApiError::new(401, message).code("missing_api_key"));
        };
        let given = digest(given);
        // digests are compared, and all of them to their ends
        let mut found = None;
        for (number, key) in self.keys.iter().enumerate() {
            let differs = key.iter().zip(&given).fold(0, |all, (a, b)| all | (a ^ b));
            if differs == 0 {
                found = Some(number);
            }
        }
        match found {
            Some(number) => {
                number.hash(&mut hasher);
                Ok(hasher.finish())
            }
            None => Err(ApiError::new(401, "the API key is wrong").code("invalid_api_key")),
        }
    }

    /// The origin to allow in the answer, if the request has one.
    ///
    /// # Errors
    /// 403 for a page of another origin.
    pub(super) fn origin(&self, headers: &HeaderMap) -> Result<Option<String>, ApiError> {
        let Some(origin) = headers.get(ORIGIN) else {
            return Ok(None);
        };
        let refused = || {
            let message =
                "pages of this origin may not use this server; allow it with --allow-origin";
            ApiError::new(403, message).code("origin_not_allowed")
        };
        let origin = origin.to_str().map_err(|_| refused())?;
        if self
            .origins
            .iter()
            .any(|allowed| allowed == "*" || allowed == origin)
        {
            return Ok(Some(origin.to_owned()));
        }
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let own = host.is_some_and(|host| {
            [format!("http://{host}"), format!("https://{host}")].contains(&origin.to_owned())
        });
        match own {
            true => Ok(None),
            false => Err(refused()),
        }
    }
}

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        let pair = |(name, value): &(HeaderName, &str)| (name.clone(), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn keys_are_compared_whole() {
        let keys = ["one".to_owned(), "two".to_owned()];
        let guard = Guard::new(&keys, &[]);
        let status = |value: &str| {
            let result = guard.client(&headers(&[(AUTHORIZATION, value)]), None);
            result.map_err(|e| e.status)
        };
        assert!(status("Bearer one").is_ok());
        assert_ne!(status("bearer one"), status("Bearer two"));
        for wrong in [
            "Bearer on",
            "Bearer onee",
            "Bearer ",
            "one",
            "Basic one",
            "",
        ] {
            assert_eq!(status(wrong), Err(401), "{wrong}");
        }
        assert_eq!(
            guard.client(&HeaderMap::new(), None).unwrap_err().status,
            401
        );
        assert!(Guard::default().client(&HeaderMap::new(), None).is_ok());
    }

    #[test]
    fn only_pages_of_the_server_and_of_allowed_origins_may_ask() {
        let guard = Guard::new(&[], &["https://a.example".to_owned()]);
        let origin = |origin: &str| {
            let headers = headers(&[(ORIGIN, origin), (HOST, "localhost:8080")]);
            guard.origin(&headers).map_err(|e| e.status)
        };
        assert_eq!(
            origin("https://a.example"),
            Ok(Some("https://a.example".to_owned()))
        );
        assert_eq!(origin("http://localhost:8080"), Ok(None));
        for other in ["https://b.example", "null", "http://localhost:8081"] {
            assert_eq!(origin(other), Err(403), "{other}");
        }
        assert_eq!(guard.origin(&HeaderMap::new()).unwrap(), None);
    }
}
