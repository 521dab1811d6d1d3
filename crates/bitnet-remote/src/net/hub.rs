//! The routes of a Hub that reading needs: what is in a revision, and what a file is.
//!
//! Invariant: a revision is resolved to a commit once, and everything else is asked of that commit. Names from the
//! server are plain paths or are refused.

use super::client::{Answer, Client, Request, bad_response, page, parse_url};
use super::file::{RemoteFile, status_error};
use crate::answers::{self, Revision, is_blob_name, is_hex, plain_etag};
use crate::location::Repository;
use crate::settings::Settings;
use bitnet_formats::{ErrorCode, FormatError};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::{Method, Url};
use std::path::Path;

/// What Python's `quote` leaves alone, but for `/`.
const PART: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'=')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'|')
    .add(b'&')
    .add(b'+')
    .add(b',')
    .add(b'$')
    .add(b'!')
    .add(b'\'')
    .add(b'(')
    .add(b')')
    .add(b'*');

/// A part of a URL's path.
pub(crate) fn quoted(part: &str) -> String {
    utf8_percent_encode(part, PART).to_string()
}

/// A path whose parts are quoted.
pub(crate) fn quoted_path(path: &str) -> String {
    let parts: Vec<String> = path.split('/').map(quoted).collect();
    parts.join("/")
}

/// A Hub, for one repository.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    pub(crate) client: Client,
    pub(crate) endpoint: String,
    pub(crate) repository: Repository,
}

/// What a file of a commit is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileFacts {
    /// What its blob is called in the cache.
    pub(crate) etag: String,
    pub(crate) len: u64,
}

impl FileFacts {
    /// The SHA-256 of the content: files of large file storage are called by it.
    pub(crate) fn sha256(&self) -> Option<&str> {
        is_hex(&self.etag, 64).then_some(self.etag.as_str())
    }
}

impl Hub {
    pub(crate) fn new(settings: &Settings, repository: &Repository) -> Result<Self, FormatError> {
        Ok(Self {
            client: Client::new(settings, true)?,
            endpoint: settings.endpoint.clone(),
            repository: repository.clone(),
        })
    }

    /// What errors call a file.
    pub(crate) fn name_of(&self, path: &str) -> String {
        format!("hf://{}/{path}", self.repository.id)
    }

    fn place(&self, error: FormatError) -> FormatError {
        error.in_file(Path::new(&self.repository.to_string()))
    }

    pub(crate) fn url(&self, path: &str) -> Result<Url, FormatError> {
        parse_url(&format!("{}/{path}", self.endpoint))
    }

    /// An error for an answer that is no success, else the answer.
    pub(crate) fn success(&self, answer: Answer) -> Result<Answer, FormatError> {
        match answer.status().is_success() {
            true => Ok(answer),
            false => Err(self.place(status_error(&answer, self.client.has_token()))),
        }
    }

    /// Resolves the revision.
    pub(crate) async fn revision(&self) -> Result<Revision, FormatError> {
        let revision = quoted(self.repository.revision());
        let url = self.url(&format!(
            "api/models/{}/revision/{revision}",
            self.repository.id
        ))?;
        let name = self.repository.to_string();
        let answer = self.client.send(&Request::get(url.clone()), &name).await?;
        let answer = self.success(answer)?;
        let info = self
            .client
            .json(answer, &name)
            .await
            .map_err(|e| self.place(e))?;
        answers::revision(&info).map_err(|found| self.place(bad_response(&url, found)))
    }

    /// Where a file of a commit is downloaded from.
    pub(crate) fn file_url(&self, commit: &str, path: &str) -> Result<Url, FormatError> {
        let (id, commit) = (&self.repository.id, quoted(commit));
        self.url(&format!("{id}/resolve/{commit}/{}", quoted_path(path)))
    }

    /// Size and name of the content of a file.
    pub(crate) async fn facts(&self, commit: &str, path: &str) -> Result<FileFacts, FormatError> {
        let name = self.name_of(path);
        let here = |e: FormatError| e.in_file(Path::new(&name));
        let mut request = Request::new(Method::HEAD, self.file_url(commit, path)?);
        // what a redirect leads to knows nothing of the repository
        request.follow = false;
        let answer = self.client.send(&request, &name).await?;
        let status = answer.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(here(status_error(&answer, self.client.has_token())));
        }
        if let Some(other) = answer.header("x-repo-commit").filter(|c| *c != commit) {
            let found = format!("commit {other} in place of {commit}");
            return Err(here(bad_response(&answer.url, &found)));
        }
        let etag = answer
            .header("x-linked-etag")
            .or_else(|| answer.header("etag"));
        let etag = etag.map(plain_etag).filter(|etag| is_blob_name(etag));
        let len = answer
            .header("x-linked-size")
            .or_else(|| answer.header("content-length"));
        let len = len.and_then(|len| len.trim().parse().ok());
        match (etag, len) {
            (Some(etag), Some(len)) => Ok(FileFacts {
                etag: etag.to_owned(),
                len,
            }),
            _ if answer.is_page() => Err(here(page(&answer.url))),
            _ => Err(here(bad_response(
                &answer.url,
                "a file without ETag or size",
            ))),
        }
    }

    pub(crate) fn file(
        &self,
        commit: &str,
        path: &str,
        facts: &FileFacts,
    ) -> Result<RemoteFile, FormatError> {
        let url = self.file_url(commit, path)?;
        Ok(RemoteFile::new(
            self.client.clone(),
            self.name_of(path),
            url,
            facts.len,
            None,
        )
        .with_sha256(facts.sha256()))
    }

    /// What is said of a path that a revision does not have.
    pub(crate) fn no_such_path(&self, path: &str, names: &[String]) -> FormatError {
        const NAMED: usize = 12;
        let listed: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
        let more = if names.len() > NAMED { ", ..." } else { "" };
        let message = format!("the revision has no file or directory `{path}`");
        FormatError::new(ErrorCode::NotFound, message)
            .in_file(Path::new(&self.repository.to_string()))
            .hint(format!(
                "name one of its files: {}{more}",
                listed.join(", ")
            ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_quoted_as_the_hub_expects() {
        assert_eq!(quoted_path("a b/c#d.gguf"), "a%20b/c%23d.gguf");
        assert_eq!(quoted("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(quoted("a-b_c.d~e"), "a-b_c.d~e");
    }
}
