//! A file of a server, read by range.
//!
//! Invariant: a range that was read is whole, and all ranges of a file are of one version: its length, and the validator
//! that the server sends, are the same in every answer. A connection that breaks goes on at the byte where it broke.

use super::client::{Answer, Client, Failed, Patience, Request, bad_response, page};
use crate::answers::{content_range, plain_etag};
use bitnet_formats::{ErrorCode, FormatError};
use reqwest::Url;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of one answer that count as progress.
pub(super) const LEAST_PROGRESS: u64 = 16 << 10;

/// A file of a server.
#[derive(Debug)]
pub(crate) struct RemoteFile {
    client: Client,
    /// What errors call it.
    name: String,
    url: Url,
    len: u64,
    /// What the server announced of the whole content.
    sha256: Option<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Where the last redirect led: a signed URL, for as long as the server takes it.
    target: Option<Url>,
    /// The validator of the first answer.
    version: Option<String>,
    changed: Option<FormatError>,
}

/// Why a read ended.
pub(crate) enum Ended {
    Failed(FormatError),
    /// The server sends whole files only.
    NoRanges,
}

impl From<FormatError> for Ended {
    fn from(error: FormatError) -> Self {
        Self::Failed(error)
    }
}

impl RemoteFile {
    pub(crate) fn new(
        client: Client,
        name: String,
        url: Url,
        len: u64,
        version: Option<String>,
    ) -> Self {
        let state = State {
            version,
            ..State::default()
        };
        Self {
            client,
            name,
            url,
            len,
            sha256: None,
            state: Mutex::new(state),
        }
    }

    /// The same file, whose content is to have this SHA-256.
    pub(crate) fn with_sha256(self, sha256: Option<&str>) -> Self {
        Self {
            sha256: sha256.map(str::to_owned),
            ..self
        }
    }

    pub(crate) fn sha256(&self) -> Option<&str> {
        self.sha256.as_deref()
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, code: ErrorCode, message: impl Into<String>) -> FormatError {
        FormatError::new(code, message).in_file(Path::new(&self.name))
    }

    /// Whether a changed version was seen.
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        match &self.state().changed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn changed(&self, what: &str) -> FormatError {
        let message = format!("the input changed while it was read: {what}");
        let error = self
            .error(ErrorCode::InputChanged, message)
            .hint("wait until the file stays as it is, then run the command again");
        self.state().changed.get_or_insert_with(|| error.clone());
        error
    }

    /// Appends the bytes of a range to `sink`; what is in `sink` already is its beginning. `watch` hears of all bytes.
    pub(crate) async fn read_into(
        &self,
        range: Range<u64>,
        sink: &mut Vec<u8>,
        watch: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Ended> {
        let mut patience = Patience::new(self.name.as_str());
        let wanted = range.end.saturating_sub(range.start);
        while (sink.len() as u64) < wanted {
            let at = range.start + sink.len() as u64;
            match self.attempt(at..range.end, sink, watch).await? {
                Ok(()) => {}
                Err((failed, got_some)) => {
                    if got_some {
                        patience.progressed();
                    }
                    patience.wait(failed).await?;
                }
            }
        }
        Ok(())
    }

    async fn attempt(
        &self,
        range: Range<u64>,
        sink: &mut Vec<u8>,
        watch: &(dyn Fn(u64) + Sync),
    ) -> Result<Result<(), (Failed, bool)>, Ended> {
        let target = self.state().target.clone();
        let mut request = Request::get(target.clone().unwrap_or_else(|| self.url.clone()));
        let is_whole = range == (0..self.len);
        if !is_whole {
            let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
            if let Ok(value) = HeaderValue::from_str(&text) {
                request.headers.insert(RANGE, value);
            }
        }
        let mut answer = match self.client.try_send(&request).await? {
            Ok(answer) => answer,
            Err(failed) => {
                // the host of a signed URL may be another next time
                self.state().target = None;
                return Ok(Err((failed, false)));
            }
        };
        let status = answer.status().as_u16();
        match status {
            // a signed URL that expired
            400 | 401 | 403 | 404 | 410 if target.is_some() => {
                self.state().target = None;
                return Ok(Err((
                    Failed::new(format!("the server answers {status}")),
                    false,
                )));
            }
            200 if is_whole => {
                let said = answer.response.content_length();
                if answer.is_page() && !is_page_name(&self.name) {
                    return Err(page(&answer.url).in_file(Path::new(&self.name)).into());
                }
                if let Some(said) = said.filter(|said| *said != self.len) {
                    let what = format!("expected {} bytes, the server now has {said}", self.len);
                    return Err(self.changed(&what).into());
                }
            }
            200 => {
                if answer.is_page() && !is_page_name(&self.name) {
                    return Err(page(&answer.url).in_file(Path::new(&self.name)).into());
                }
                return Err(Ended::NoRanges);
            }
            206 => self.check_range(&answer, range.start)?,
            412 => return Err(self.changed("the server has another version").into()),
            416 => {
                let what = format!(
                    "the server has no byte {}, of {} bytes",
                    range.start, self.len
                );
                return Err(self.changed(&what).into());
            }
            _ => return Err(self.status_error(&answer).into()),
        }
        self.check_version(&answer)?;
        if answer.url != self.url {
            self.state().target = Some(answer.url.clone());
        }
        let mut left = range.end - range.start;
        let mut got = 0;
        // a server that sends a few bytes each time is no progress
        let is_some = |got: u64| got >= LEAST_PROGRESS;
        while left > 0 {
            match answer.response.chunk().await {
                Ok(Some(chunk)) => {
                    let take = (chunk.len() as u64).min(left);
                    sink.extend_from_slice(chunk.get(..take as usize).unwrap_or_default());
                    left -= take;
                    got += take;
                    watch(take);
                }
                Ok(None) => {
                    let what = format!("the answer ends {left} bytes early");
                    return Ok(Err((Failed::new(what), is_some(got))));
                }
                Err(e) => return Ok(Err((Failed::of(e), is_some(got)))),
            }
        }
        Ok(Ok(()))
    }

    fn check_range(&self, answer: &Answer, start: u64) -> Result<(), FormatError> {
        let header = answer.response.headers().get(CONTENT_RANGE);
        let found = header.and_then(|v| v.to_str().ok()).and_then(content_range);
        match found {
            Some((at, total)) if at == start && total.is_none_or(|total| total == self.len) => {
                Ok(())
            }
            Some((at, Some(total))) if at == start => {
                let what = format!("expected {} bytes, the server now has {total}", self.len);
                Err(self.changed(&what))
            }
            _ => Err(
                bad_response(&answer.url, "another range than was asked for")
                    .in_file(Path::new(&self.name)),
            ),
        }
    }

    fn check_version(&self, answer: &Answer) -> Result<(), FormatError> {
        // stores that redirect have validators of their own, so the first answer decides
        let etag = answer.header("etag").map(plain_etag);
        let version = etag.or_else(|| answer.header("last-modified"));
        let Some(version) = version.map(str::to_owned) else {
            return Ok(());
        };
        let mut state = self.state();
        let known = state.version.get_or_insert_with(|| version.clone());
        if *known == version {
            return Ok(());
        }
        drop(state);
        Err(self.changed("the server has another version (ETag)"))
    }

    fn status_error(&self, answer: &Answer) -> FormatError {
        status_error(answer, self.client.has_token()).in_file(Path::new(&self.name))
    }
}

/// Whether a file may well be a page.
fn is_page_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".html") || name.ends_with(".htm") || name.ends_with(".md")
}

/// What a status other than success means.
pub(crate) fn status_error(answer: &Answer, has_token: bool) -> FormatError {
    let status = answer.status().as_u16();
    let word = answer.header("x-error-code").unwrap_or_default();
    let said = match status {
        401 | 403 if word == "GatedRepo" => {
            let message =
                format!("the repository is gated and the server refuses access ({status})");
            let hint = match has_token {
                true => {
                    "accept the conditions on the page of the repository, with the account that the token belongs to"
                }
                false => {
                    "accept the conditions on the page of the repository, then set HF_TOKEN or run `hf auth login`"
                }
            };
            return FormatError::new(ErrorCode::AccessDenied, message).hint(hint);
        }
        401 => {
            let hint = match has_token {
                true => {
                    "check the name; if it is right, the token is not valid or expired: set another HF_TOKEN"
                }
                false => {
                    "check the name; if the repository is private, set HF_TOKEN or run `hf auth login`"
                }
            };
            return FormatError::new(
                ErrorCode::AccessDenied,
                "the server refuses access without valid credentials (401)",
            )
            .hint(hint);
        }
        403 => {
            let hint = "use credentials that have access: HF_TOKEN for a Hub, the variables of the provider for an object store";
            return FormatError::new(ErrorCode::AccessDenied, "the server refuses access (403)")
                .hint(hint);
        }
        404 | 410 => match word {
            "RepoNotFound" => "the server has no such repository",
            "RevisionNotFound" => "the repository has no such revision",
            "EntryNotFound" => "the repository has no such file",
            _ => "the server has no such file",
        },
        _ => {
            let message = format!("the server answers {status}");
            return FormatError::new(ErrorCode::BadResponse, message)
                .hint("check the URL, or HF_ENDPOINT for a Hub");
        }
    };
    FormatError::new(ErrorCode::NotFound, format!("{said} ({status})"))
        .hint("check owner, name, revision and path; a private repository needs HF_TOKEN")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_servers_write_them() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for bad in [
            "bytes */10",
            "items 1-2/3",
            "bytes 1-2",
            "bytes x-2/3",
            "bytes 1-2/y",
        ] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
        assert_eq!(plain_etag("W/\"abc\""), "abc");
        assert_eq!(plain_etag("\"abc\""), "abc");
    }
}
