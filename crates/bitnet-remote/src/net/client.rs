//! One HTTP client: redirects, retries, and errors without secrets.
//!
//! Invariant: credentials go to the origin that they belong to, never along a redirect. No error repeats a query, a
//! header or what a server wrote.

use super::reach::{NETWORK, Unreached};
use crate::answers;
use crate::location::without_secrets;
use crate::settings::{Secret, Settings};
use bitnet_formats::{ErrorCode, FormatError, open_regular};
use futures_util::stream;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, LOCATION, RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Failures one behind the other that end a request.
pub(crate) const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The longest wait that a server may ask for.
const LONGEST_WISH: Duration = Duration::from_secs(300);
const REDIRECTS: usize = 10;
/// Bytes of a file that are read at a time to be sent.
const STEP: u64 = 1 << 20;

/// Sends requests.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    /// The origin that gets the token.
    home: Option<Url>,
    token: Option<Secret>,
}

/// What is asked of a server.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Content>,
    /// Whether redirects to other hosts are followed.
    pub(crate) follow: bool,
}

/// What a request brings along; every attempt brings it anew.
#[derive(Clone)]
pub(crate) enum Content {
    Bytes(bytes::Bytes),
    /// So many bytes of a file from a place on.
    File(PathBuf, u64, u64),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Content")
    }
}

impl Content {
    fn body(&self) -> Result<reqwest::Body, FormatError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone().into()),
            Self::File(path, start, len) => {
                let failed = |e: std::io::Error| FormatError::io(path, &e);
                let (mut file, _) = open_regular(path)?;
                file.seek(SeekFrom::Start(*start)).map_err(failed)?;
                let pieces = stream::try_unfold((file, *len), |(mut file, left)| async move {
                    if left == 0 {
                        return Ok::<_, std::io::Error>(None);
                    }
                    let mut piece = vec![0; left.min(STEP) as usize];
                    file.read_exact(&mut piece)?;
                    let left = left - piece.len() as u64;
                    Ok(Some((bytes::Bytes::from(piece), (file, left))))
                });
                Ok(reqwest::Body::wrap_stream(pieces))
            }
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(_, _, len) => *len,
        }
    }
}

impl Request {
    pub(crate) fn new(method: Method, url: Url) -> Self {
        Self {
            method,
            url,
            headers: HeaderMap::new(),
            body: None,
            follow: true,
        }
    }

    pub(crate) fn get(url: Url) -> Self {
        Self::new(Method::GET, url)
    }
}

/// An answer, and where it came from in the end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) url: Url,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// A header that is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Whether the answer is a page for people.
    pub(crate) fn is_page(&self) -> bool {
        let kind = self.header("content-type").unwrap_or_default();
        kind.trim_start()
            .to_ascii_lowercase()
            .starts_with("text/html")
    }
}

/// Why an attempt failed that another may not.
pub(crate) struct Failed {
    what: String,
    wait: Option<Duration>,
    hint: String,
}

impl Failed {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            wait: None,
            hint: NETWORK.to_owned(),
        }
    }

    pub(crate) fn of(error: reqwest::Error) -> Self {
        let hint = hint(&error);
        Self {
            hint,
            ..Self::new(say(error))
        }
    }
}

/// Host and port of the server that an error is about.
fn server(error: &reqwest::Error) -> Option<String> {
    let url = error.url()?;
    let port = url.port().map_or(String::new(), |port| format!(":{port}"));
    Some(format!("{}{port}", url.host_str()?))
}

/// What to check after an error of the HTTP library.
fn hint(error: &reqwest::Error) -> String {
    match (Unreached::of(error), server(error)) {
        (Some(why), Some(server)) => why.hint(&format!(
            "the name {server} (HF_ENDPOINT sets that of a Hub)"
        )),
        _ => NETWORK.to_owned(),
    }
}

/// An error of the HTTP library as one of ours.
pub(crate) fn network_error(error: reqwest::Error) -> FormatError {
    let hint = hint(&error);
    FormatError::new(ErrorCode::Network, say(error)).hint(hint)
}

/// What an error of the HTTP library says, without URLs.
fn say(error: reqwest::Error) -> String {
    let server = server(&error);
    let error = error.without_url();
    let mut text = match () {
        () if error.is_timeout() => "the server was silent for too long".to_owned(),
        () if error.is_connect() => match server {
            Some(server) => format!("cannot connect to {server}"),
            None => "cannot connect".to_owned(),
        },
        () => "the connection broke".to_owned(),
    };
    // the innermost cause says most
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let inner = cause.to_string();
    if !inner.contains("://") {
        text = format!("{text}: {inner}");
    }
    text
}

/// Counts attempts and waits between them.
pub(crate) struct Patience {
    failures: u32,
    name: String,
}

impl Patience {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self {
            failures: 0,
            name: name.into(),
        }
    }

    /// Something arrived: the next failure is the first.
    pub(crate) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// `network` after the last.
    pub(crate) async fn wait(&mut self, failed: Failed) -> Result<(), FormatError> {
        self.failures += 1;
        if self.failures >= ATTEMPTS {
            let message = format!("{} ({} attempts)", failed.what, self.failures);
            return Err(FormatError::new(ErrorCode::Network, message)
                .in_file(std::path::Path::new(&self.name))
                .hint(failed.hint));
        }
        if let Some(wish) = failed.wait.filter(|wish| *wish > LONGEST_WISH) {
            let message = format!(
                "{}; the server asks to wait {} s",
                failed.what,
                wish.as_secs()
            );
            return Err(FormatError::new(ErrorCode::Network, message)
                .in_file(std::path::Path::new(&self.name))
                .hint("run the command again later"));
        }
        let pause = FIRST_PAUSE * 2u32.saturating_pow(self.failures - 1);
        let pause = pause.min(LONGEST_PAUSE).mul_f64(0.75 + jitter() / 2.0);
        tokio::time::sleep(failed.wait.unwrap_or(pause)).await;
        Ok(())
    }
}

/// A number below 1 that differs between processes and times.
fn jitter() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos =
        now.map_or(0, |now| now.subsec_nanos()) ^ std::process::id().wrapping_mul(2_654_435_761);
    f64::from(nanos % 1000) / 1000.0
}

/// Statuses that may be others when asked again.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// How long the server asks to wait.
fn wish(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    // a date is answered by our own pauses
    let seconds: f64 = text.parse().ok()?;
    (seconds.is_finite() && seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(1e6)))
}

pub(crate) fn is_same_origin(a: &Url, b: &Url) -> bool {
    a.origin() == b.origin()
}

impl Client {
    /// A client that sends the token of the settings to their endpoint.
    pub(crate) fn new(settings: &Settings, is_hub: bool) -> Result<Self, FormatError> {
        super::runtime()?;
        let home = is_hub.then(|| parse_url(&settings.endpoint)).transpose()?;
        let http = reqwest::Client::builder()
            .user_agent(concat!("bitnet-toolchain/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(15))
            .read_timeout(settings.silence)
            // one connection for each range is what makes them parallel
            .http1_only()
            .build();
        let http = http.map_err(network_error)?;
        Ok(Self {
            http,
            home,
            token: is_hub.then(|| settings.token()).transpose()?.flatten(),
        })
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// One attempt: follows redirects.
    pub(crate) async fn try_send(
        &self,
        request: &Request,
    ) -> Result<Result<Answer, Failed>, FormatError> {
        let mut url = request.url.clone();
        for _ in 0..=REDIRECTS {
            let mut builder = self.http.request(request.method.clone(), url.clone());
            builder = builder.header(ACCEPT_ENCODING, "identity");
            let is_first = is_same_origin(&url, &request.url);
            for (name, value) in &request.headers {
                if is_first || name != AUTHORIZATION {
                    builder = builder.header(name, value);
                }
            }
            if let (Some(token), Some(home)) = (&self.token, &self.home)
                && is_same_origin(&url, home)
                && !(is_first && request.headers.contains_key(AUTHORIZATION))
            {
                builder = builder.bearer_auth(token.reveal());
            }
            if let Some(body) = &request.body {
                builder = builder
                    .header(CONTENT_LENGTH, body.len())
                    .body(body.body()?);
            }
            let response = match builder.send().await {
                Ok(response) => response,
                Err(e) => return Ok(Err(Failed::of(e))),
            };
            let status = response.status();
            if is_passing(status) {
                let wait = wish(response.headers());
                let what = format!("the server answers {}", status.as_u16());
                return Ok(Err(Failed {
                    wait,
                    ..Failed::new(what)
                }));
            }
            let next = match status.as_u16() {
                301 | 302 | 303 | 307 | 308 => response.headers().get(LOCATION),
                _ => None,
            };
            let next = next
                .and_then(|l| l.to_str().ok())
                .and_then(|l| url.join(l).ok());
            match next {
                Some(next) if request.follow || is_same_origin(&next, &url) => {
                    if url.scheme() == "https" && next.scheme() != "https" {
                        return Err(bad_response(
                            &url,
                            "a redirect from https to another scheme",
                        ));
                    }
                    url = next;
                }
                _ => return Ok(Ok(Answer { response, url })),
            }
        }
        Err(bad_response(
            &request.url,
            "a redirect behind every redirect",
        ))
    }

    /// Sends until there is an answer that another attempt would not change.
    pub(crate) async fn send(&self, request: &Request, name: &str) -> Result<Answer, FormatError> {
        let mut patience = Patience::new(name);
        loop {
            match self.try_send(request).await? {
                Ok(answer) => return Ok(answer),
                Err(failed) => patience.wait(failed).await?,
            }
        }
    }

    /// The JSON of an answer.
    ///
    /// # Errors
    /// `bad-response`.
    pub(crate) async fn json(
        &self,
        answer: Answer,
        name: &str,
    ) -> Result<serde_json::Value, FormatError> {
        const LONGEST: usize = 256 << 20;
        let (is_page, url) = (answer.is_page(), answer.url.clone());
        let mut response = answer.response;
        let mut text = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if text.len() + chunk.len() <= LONGEST => {
                    text.extend_from_slice(&chunk)
                }
                Ok(Some(_)) => return Err(bad_response(&url, "more JSON than this program reads")),
                Ok(None) => break,
                Err(e) => return Err(network_error(e).in_file(std::path::Path::new(name))),
            }
        }
        // the error may quote the answer, and goes no further
        answers::json(&text).map_err(|e| match e.code {
            ErrorCode::LimitExceeded => bad_response(&url, "more JSON than this program reads"),
            _ if is_page => page(&url),
            _ => bad_response(&url, "something that is not JSON"),
        })
    }
}

/// A URL of a user or a server.
pub(crate) fn parse_url(text: &str) -> Result<Url, FormatError> {
    let url = Url::parse(text).map_err(|e| {
        let message = format!("`{}` is no URL: {e}", without_secrets(text));
        FormatError::new(ErrorCode::Usage, message)
    })?;
    match (url.scheme(), url.host_str()) {
        ("http" | "https", Some(_)) => Ok(url),
        _ => {
            let message = format!(
                "expected an http or https URL, found `{}`",
                without_secrets(text)
            );
            Err(FormatError::new(ErrorCode::Usage, message)
                .hint("correct the URL (HF_ENDPOINT for a Hub)"))
        }
    }
}

/// An answer that the protocol does not have.
pub(crate) fn bad_response(url: &Url, found: &str) -> FormatError {
    let host = url.host_str().unwrap_or_default();
    let message = format!("expected an answer of the protocol from {host}, found {found}");
    FormatError::new(ErrorCode::BadResponse, message)
        .hint("check HF_ENDPOINT or the URL, and whether a proxy answers in place of the server")
}

/// A page for people in place of an answer.
pub(crate) fn page(url: &Url) -> FormatError {
    bad_response(url, "a web page, a login page for example")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_those_that_the_server_asks_for() {
        let wish_of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            wish(&headers)
        };
        assert_eq!(wish_of("3"), Some(Duration::from_secs(3)));
        assert_eq!(wish_of("0.5"), Some(Duration::from_millis(500)));
        for text in ["-1", "nan", "Wed, 21 Oct 2026 07:28:00 GMT"] {
            assert_eq!(wish_of(text), None, "{text}");
        }
    }

    #[test]
    fn urls_of_other_schemes_are_refused_without_their_secrets() {
        for text in [
            "ftp://u:secret@h/x?secret",
            "nothing secret?secret",
            "file:///secret",
        ] {
            let error = parse_url(text).unwrap_err();
            assert_eq!(error.code, ErrorCode::Usage);
            assert!(
                !error.to_string().contains("?secret") && !error.to_string().contains(":secret"),
                "{error}"
            );
        }
    }
}
