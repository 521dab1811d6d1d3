//! Uploads to a Hub: large files first, then one commit.
//!
//! Invariant: the commit is made when every large file is on the server and not before. What a server has already is not
//! sent again, so an upload that was interrupted goes on with the file at which it stopped. A large file that the revision has
//! under its name, with its SHA-256, is not asked for either.

use super::client::{Answer, Content, Failed, Patience, Request, bad_response, parse_url};
use super::file::status_error;
use super::hub::{Hub, quoted};
use crate::answers::is_hex;
use crate::location::without_secrets;
use crate::{Pushed, Upload, Watch};
use bitnet_formats::{ErrorCode, FormatError, hex, open_regular};
use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The first bytes of a file, by which the Hub decides how it is stored.
const SAMPLE: u64 = 512;
/// Bytes that are read at a time.
const STEP: usize = 4 << 20;
/// The largest file that a commit carries in itself.
const LARGEST_REGULAR: u64 = 64 << 20;
/// The largest body of one request: larger files are uploaded in parts, which the server asks for.
const LARGEST_BODY: u64 = 6 << 30;

/// A file to upload.
struct Staged {
    /// In the repository.
    name: String,
    source: Place,
    bytes: u64,
    sha256: String,
    sample: Vec<u8>,
}

enum Place {
    File(PathBuf),
    Memory(Vec<u8>),
}

impl Staged {
    fn of_file(name: &str, path: &Path) -> Result<Self, FormatError> {
        let failed = |e: std::io::Error| FormatError::io(path, &e);
        let (mut file, _) = open_regular(path)?;
        let (mut hasher, mut sample, mut bytes) = (Sha256::new(), Vec::new(), 0u64);
        let mut buffer = vec![0; STEP];
        loop {
            let count = match file.read(&mut buffer) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                count => count.map_err(failed)?,
            };
            let part = buffer.get(..count).unwrap_or_default();
            if part.is_empty() {
                break;
            }
            let missing = (SAMPLE as usize).saturating_sub(sample.len());
            sample.extend(part.iter().take(missing));
            hasher.update(part);
            bytes += count as u64;
        }
        Ok(Self {
            name: name.to_owned(),
            source: Place::File(path.to_owned()),
            bytes,
            sha256: hex(&hasher.finalize()),
            sample,
        })
    }

    fn of_memory(name: &str, content: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            bytes: content.len() as u64,
            sha256: hex(&Sha256::digest(&content)),
            sample: content.iter().take(SAMPLE as usize).copied().collect(),
            source: Place::Memory(content),
        }
    }

    /// Some of its bytes, for a request.
    fn part(&self, start: u64, len: u64) -> Result<Content, FormatError> {
        match &self.source {
            Place::Memory(_) => Ok(Content::Bytes(Bytes::from(self.read(start, len)?))),
            Place::File(path) => Ok(Content::File(path.clone(), start, len)),
        }
    }

    /// Some of its bytes.
    fn read(&self, start: u64, len: u64) -> Result<Vec<u8>, FormatError> {
        match &self.source {
            Place::Memory(bytes) => {
                let part = bytes.get(start as usize..(start + len) as usize);
                Ok(part.unwrap_or_default().to_vec())
            }
            Place::File(path) => {
                let failed = |e: std::io::Error| FormatError::io(path, &e);
                let (mut file, _) = open_regular(path)?;
                file.seek(SeekFrom::Start(start)).map_err(failed)?;
                let mut part = vec![0; usize::try_from(len).unwrap_or(0)];
                file.read_exact(&mut part).map_err(|e| {
                    let message = "the file changed while it was uploaded: it is shorter";
                    FormatError::new(ErrorCode::InputChanged, message)
                        .in_file(path)
                        .because(e)
                })?;
                Ok(part)
            }
        }
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let digit = DIGITS.get((word >> (18 - 6 * at) & 63) as usize);
            text.push(match digit {
                Some(digit) if at <= group.len() => char::from(*digit),
                _ => '=',
            });
        }
    }
    text
}

fn json_request(method: Method, url: Url, body: &Value) -> Request {
    let mut request = Request::new(method, url);
    request
        .headers
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    request.body = Some(Content::Bytes(Bytes::from(body.to_string())));
    request
}

/// Uploads files as one commit.
pub(crate) async fn push(
    hub: &Hub,
    upload: &Upload,
    watch: &dyn Watch,
) -> Result<Pushed, FormatError> {
    let place = hub.repository.to_string();
    if !hub.client.has_token() {
        return Err(FormatError::new(
            ErrorCode::AccessDenied,
            "uploading needs a token, and there is none",
        )
        .in_file(Path::new(&place))
        .hint("set HF_TOKEN to a token with the right to write, or run `hf auth login`"));
    }
    let total: u64 = upload
        .files
        .iter()
        .filter_map(|(_, path)| path.metadata().ok())
        .map(|m| m.len())
        .sum();
    watch.begin(&place, total);
    let done = run(hub, upload, watch).await;
    watch.end();
    done.map_err(|e| e.in_file(Path::new(&place)))
}

async fn run(hub: &Hub, upload: &Upload, watch: &dyn Watch) -> Result<Pushed, FormatError> {
    let mut staged = Vec::new();
    for (name, path) in &upload.files {
        let (name, path) = (name.clone(), path.clone());
        let hashed = tokio::task::spawn_blocking(move || Staged::of_file(&name, &path)).await;
        staged.push(hashed.map_err(|e| FormatError::new(ErrorCode::Io, e.to_string()))??);
    }
    for (name, content) in &upload.texts {
        staged.push(Staged::of_memory(name, content.clone().into_bytes()));
    }
    create(hub, upload.private).await?;
    let modes = modes(hub, &staged).await?;
    let is_large = |file: &&Staged| modes.get(&file.name).is_none_or(|mode| mode.is_large);
    // the revision has it under this name
    let is_committed = |file: &&Staged| {
        let known = modes.get(&file.name).and_then(|mode| mode.oid.as_ref());
        known.is_some_and(|oid| *oid == file.sha256)
    };
    let (committed, large): (Vec<&Staged>, Vec<&Staged>) =
        staged.iter().filter(is_large).partition(is_committed);
    for file in committed {
        watch.advance(file.bytes);
    }
    let small = staged.iter().filter(|file| !is_large(file));
    let mut sent = 0;
    if !large.is_empty() {
        sent = upload_large(hub, &large, watch).await?;
    }
    let mut lines = vec![json!({
        "key": "header",
        "value": {"summary": upload.message, "description": ""},
    })];
    for file in small {
        if file.bytes > LARGEST_REGULAR {
            let message = format!("the server wants {} bytes inside the commit", file.bytes);
            return Err(
                FormatError::new(ErrorCode::BadResponse, message).in_file(Path::new(&file.name))
            );
        }
        let content = base64(&file.read(0, file.bytes)?);
        lines.push(json!({
            "key": "file",
            "value": {"content": content, "path": file.name, "encoding": "base64"},
        }));
    }
    for file in large {
        lines.push(json!({
            "key": "lfsFile",
            "value": {"path": file.name, "algo": "sha256", "oid": file.sha256, "size": file.bytes},
        }));
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let (id, revision) = (&hub.repository.id, quoted(hub.repository.revision()));
    let url = hub.url(&format!("api/models/{id}/commit/{revision}"))?;
    let mut request = Request::new(Method::POST, url.clone());
    request.headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    request.body = Some(Content::Bytes(Bytes::from(text)));
    let name = hub.repository.to_string();
    let answer = hub.success(hub.client.send(&request, &name).await?)?;
    let made = hub.client.json(answer, &name).await?;
    let text = |key: &str| made.get(key).and_then(Value::as_str).map(str::to_owned);
    let Some(commit) = text("commitOid").filter(|commit| is_hex(commit, 40)) else {
        return Err(bad_response(&url, "no commit"));
    };
    Ok(Pushed {
        commit,
        url: without_secrets(&format!("{}/{id}", hub.endpoint)),
        bytes_sent: sent,
    })
}

/// Creates the repository, unless it is there.
async fn create(hub: &Hub, private: bool) -> Result<(), FormatError> {
    let (owner, name) = hub.repository.id.split_once('/').unwrap_or_default();
    let url = hub.url("api/repos/create")?;
    let body = json!({"name": name, "organization": owner, "private": private, "type": "model"});
    let request = json_request(Method::POST, url, &body);
    let answer = hub
        .client
        .send(&request, &hub.repository.to_string())
        .await?;
    match answer.status().as_u16() {
        409 => Ok(()),
        // a token for one repository may not create it, and need not
        401 | 403 if exists(hub).await? => Ok(()),
        _ => hub.success(answer).map(|_| ()),
    }
}

async fn exists(hub: &Hub) -> Result<bool, FormatError> {
    let url = hub.url(&format!("api/models/{}", hub.repository.id))?;
    let answer = hub
        .client
        .send(&Request::get(url), &hub.repository.to_string())
        .await?;
    Ok(answer.status().is_success())
}

/// How a file is stored.
struct Mode {
    is_large: bool,
    /// The hash of what the revision has under this name; of a large file its SHA-256.
    oid: Option<String>,
}

/// How each file is stored; creates the branch if it is not there.
async fn modes(hub: &Hub, staged: &[Staged]) -> Result<HashMap<String, Mode>, FormatError> {
    let (id, revision) = (&hub.repository.id, quoted(hub.repository.revision()));
    let name = hub.repository.to_string();
    let mut modes = HashMap::new();
    // the Hub takes 256 files at a time
    for files in staged.chunks(256) {
        let listed = files.iter().map(
            |file| json!({"path": file.name, "size": file.bytes, "sample": base64(&file.sample)}),
        );
        let url = hub.url(&format!("api/models/{id}/preupload/{revision}"))?;
        let request = json_request(
            Method::POST,
            url.clone(),
            &json!({"files": listed.collect::<Value>()}),
        );
        let mut answer = hub.client.send(&request, &name).await?;
        if answer.status().as_u16() == 404
            && answer.header("x-error-code") == Some("RevisionNotFound")
        {
            let branch = hub.url(&format!("api/models/{id}/branch/{revision}"))?;
            let made = hub
                .client
                .send(&json_request(Method::POST, branch, &json!({})), &name)
                .await?;
            if made.status().as_u16() != 409 {
                hub.success(made)?;
            }
            answer = hub.client.send(&request, &name).await?;
        }
        let answer = hub.success(answer)?;
        let said = hub.client.json(answer, &name).await?;
        let Some(said) = said.get("files").and_then(Value::as_array) else {
            return Err(bad_response(&url, "no list of files"));
        };
        for file in said {
            let text = |key: &str| file.get(key).and_then(Value::as_str);
            if let (Some(path), Some(mode)) = (text("path"), text("uploadMode")) {
                let mode = Mode {
                    is_large: mode == "lfs",
                    oid: text("oid").map(str::to_owned),
                };
                modes.insert(path.to_owned(), mode);
            }
        }
    }
    Ok(modes)
}

/// Uploads what the server lacks of large files; how many bytes those were.
async fn upload_large(hub: &Hub, files: &[&Staged], watch: &dyn Watch) -> Result<u64, FormatError> {
    let name = hub.repository.to_string();
    let url = hub.url(&format!("{}.git/info/lfs/objects/batch", hub.repository.id))?;
    let mut sent = 0;
    for files in files.chunks(100) {
        let objects = files
            .iter()
            .map(|file| json!({"oid": file.sha256, "size": file.bytes}));
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": objects.collect::<Value>(),
            "hash_algo": "sha256",
            "ref": {"name": hub.repository.revision()},
        });
        let mut request = json_request(Method::POST, url.clone(), &body);
        let kind = HeaderValue::from_static("application/vnd.git-lfs+json");
        request.headers.insert(ACCEPT, kind.clone());
        request.headers.insert(CONTENT_TYPE, kind);
        let answer = hub.success(hub.client.send(&request, &name).await?)?;
        let said = hub.client.json(answer, &name).await?;
        let Some(objects) = said.get("objects").and_then(Value::as_array) else {
            return Err(bad_response(&url, "no list of objects"));
        };
        for file in files {
            let found = objects
                .iter()
                .find(|o| o.get("oid").and_then(Value::as_str) == Some(&file.sha256));
            let Some(object) = found else {
                return Err(bad_response(&url, "a list that lacks an object"));
            };
            if object.get("error").is_some() {
                let message = "the server refuses the object";
                return Err(FormatError::new(ErrorCode::AccessDenied, message)
                    .in_file(Path::new(&file.name))
                    .hint("check the storage quota of the account and the rights of the token"));
            }
            match object
                .get("actions")
                .and_then(|actions| actions.get("upload"))
            {
                // the server has it
                None => watch.advance(file.bytes),
                Some(action) => {
                    upload_one(hub, file, action, watch).await?;
                    sent += file.bytes;
                    if let Some(verify) = object.get("actions").and_then(|a| a.get("verify")) {
                        let url = action_url(verify)?;
                        let body = json!({"oid": file.sha256, "size": file.bytes});
                        let mut request = json_request(Method::POST, url, &body);
                        request.headers.extend(headers_of(verify));
                        hub.success(hub.client.send(&request, &name).await?)?;
                    }
                }
            }
        }
    }
    Ok(sent)
}

fn action_url(action: &Value) -> Result<Url, FormatError> {
    parse_url(
        action
            .get("href")
            .and_then(Value::as_str)
            .unwrap_or_default(),
    )
}

/// Headers that an action asks for, parts aside.
fn headers_of(action: &Value) -> reqwest::header::HeaderMap {
    let listed = action.get("header").and_then(Value::as_object);
    let pairs = listed.into_iter().flatten().filter_map(|(name, value)| {
        let is_part = name == "chunk_size" || name.bytes().all(|b| b.is_ascii_digit());
        let name = HeaderName::from_bytes(name.as_bytes())
            .ok()
            .filter(|_| !is_part)?;
        Some((name, HeaderValue::from_str(value.as_str()?).ok()?))
    });
    pairs.collect()
}

async fn upload_one(
    hub: &Hub,
    file: &Staged,
    action: &Value,
    watch: &dyn Watch,
) -> Result<(), FormatError> {
    let url = action_url(action)?;
    let header = action.get("header").and_then(Value::as_object);
    let size = header
        .and_then(|h| h.get("chunk_size"))
        .and_then(|size| match size {
            Value::String(text) => text.parse::<u64>().ok(),
            other => other.as_u64(),
        });
    let Some(size) = size.filter(|size| *size > 0) else {
        if file.bytes > LARGEST_BODY {
            return Err(bad_response(
                &url,
                "one request for a file that needs several",
            ));
        }
        put(hub, file, url, headers_of(action), 0..file.bytes, watch).await?;
        return Ok(());
    };
    let mut parts: Vec<(u64, Url)> = Vec::new();
    for (name, value) in header.into_iter().flatten() {
        if let (Ok(number), Some(url)) = (name.parse::<u64>(), value.as_str()) {
            parts.push((number, parse_url(url)?));
        }
    }
    parts.sort();
    if parts.len() as u64 != file.bytes.div_ceil(size) {
        return Err(bad_response(
            &url,
            "another number of parts than the file has",
        ));
    }
    let mut done = Vec::new();
    for (at, (number, url)) in parts.into_iter().enumerate() {
        let start = at as u64 * size;
        let range = start..file.bytes.min(start + size);
        let answer = put(hub, file, url.clone(), Default::default(), range, watch).await?;
        let Some(etag) = answer.header("etag") else {
            return Err(bad_response(&url, "a part without ETag"));
        };
        done.push(json!({"partNumber": number, "etag": etag}));
    }
    let body = json!({"oid": file.sha256, "parts": done});
    let mut request = json_request(Method::POST, url, &body);
    request.headers.insert(
        ACCEPT,
        HeaderValue::from_static("application/vnd.git-lfs+json"),
    );
    hub.success(hub.client.send(&request, &file.name).await?)?;
    Ok(())
}

/// Sends some bytes of a file; each attempt sends all of them.
async fn put(
    hub: &Hub,
    file: &Staged,
    url: Url,
    headers: reqwest::header::HeaderMap,
    range: std::ops::Range<u64>,
    watch: &dyn Watch,
) -> Result<Answer, FormatError> {
    let mut patience = Patience::new(file.name.as_str());
    let len = range.end - range.start;
    let mut request = Request::new(Method::PUT, url);
    request.headers = headers;
    request.body = Some(file.part(range.start, len)?);
    loop {
        match hub.client.try_send(&request).await? {
            Ok(answer) if answer.status().is_success() => {
                watch.advance(len);
                return Ok(answer);
            }
            // stores answer so when a connection was too slow
            Ok(answer) if answer.status().as_u16() == 400 => {
                patience.wait(Failed::new("the store answers 400")).await?;
            }
            Ok(answer) => return Err(status_error(&answer, true).in_file(Path::new(&file.name))),
            Err(failed) => patience.wait(failed).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_everyone() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("\u{ff}?", "w78/"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn headers_of_an_action_are_those_of_requests() {
        let action =
            json!({"header": {"chunk_size": "5", "00001": "http://h", "x-a": "b", "n": 5}});
        let headers = headers_of(&action);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers["x-a"], "b");
    }
}
