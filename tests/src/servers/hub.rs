//! A small Hub: the routes that reading and uploading models needs.
//!
//! Invariant: a commit never changes, and what is uploaded is in no commit before the commit is made. Content of large
//! files comes from a second server, with signed URLs, as from the Hub's content network; that server refuses requests
//! that bring the Hub's token along.

use super::http::{Fault, Logged, Reply, Request, Server};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a signature in a URL looks like: it may be in no output.
pub const SIGNATURE: &str = "X-Amz-Signature=5ec2e7516";

type Files = BTreeMap<String, Arc<Vec<u8>>>;

/// One repository.
#[derive(Debug, Default, Clone)]
pub struct Repository {
    /// Commits and their files.
    pub commits: HashMap<String, Files>,
    /// Branches and tags.
    pub refs: HashMap<String, String>,
    /// Whether it was created as a private one, or only a token opens it.
    pub private: bool,
    /// Whether conditions have to be accepted.
    pub gated: bool,
    /// Messages of its commits, in order.
    pub messages: Vec<String>,
}

#[derive(Default)]
struct State {
    repositories: HashMap<String, Repository>,
    /// Content of large file storage by SHA-256.
    objects: HashMap<String, Arc<Vec<u8>>>,
    parts: HashMap<(String, u32), Vec<u8>>,
    /// The token that opens private repositories and allows uploads.
    token: String,
    /// Objects above this are uploaded in parts of this size.
    part_size: usize,
}

/// A Hub on the loopback interface.
pub struct Hub {
    server: Server,
    content: Server,
    state: Arc<Mutex<State>>,
}

fn sha256(bytes: &[u8]) -> String {
    bitnet_formats::hex(&Sha256::digest(bytes))
}

/// Files of large file storage, by their names.
fn is_large(name: &str, bytes: &[u8]) -> bool {
    let ends = [".safetensors", ".gguf", ".bin"];
    ends.iter().any(|end| name.ends_with(end)) || bytes.len() > 10 << 20
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn error(status: u16, code: &str) -> Reply {
    Reply::json(status, &json!({"error": code})).with("X-Error-Code", code)
}

impl Hub {
    /// A Hub without repositories, whose token is `hf_test`.
    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State {
            token: "hf_test".to_owned(),
            part_size: 1 << 30,
            ..State::default()
        }));
        let of_content = Arc::clone(&state);
        let content = Server::start(move |request| stored(&of_content, request));
        let (of_hub, content_url) = (Arc::clone(&state), content.url());
        let own: Arc<Mutex<String>> = Arc::default();
        let own_url = Arc::clone(&own);
        let server = Server::start(move |request| {
            let own = own_url
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            routes(&of_hub, request, &content_url, &own)
        });
        *own.lock().unwrap_or_else(PoisonError::into_inner) = server.url();
        Self {
            server,
            content,
            state,
        }
    }

    /// For `HF_ENDPOINT`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Adds a commit with these files alone to `main`; its id.
    pub fn commit<N: Into<String>>(
        &self,
        id: &str,
        files: impl IntoIterator<Item = (N, Vec<u8>)>,
    ) -> String {
        let files: Files = files
            .into_iter()
            .map(|(name, bytes)| (name.into(), Arc::new(bytes)))
            .collect();
        let mut state = lock(&self.state);
        commit(&mut state, id, "main", files, "by a test")
    }

    /// Adds the files of a directory as a commit.
    ///
    /// # Panics
    /// If they cannot be read.
    pub fn commit_directory(&self, id: &str, directory: &std::path::Path) -> String {
        let mut files = Vec::new();
        let mut open = vec![directory.to_owned()];
        while let Some(next) = open.pop() {
            for entry in std::fs::read_dir(&next).expect("a directory") {
                let path = entry.expect("an entry").path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let name = path
                        .strip_prefix(directory)
                        .expect("below")
                        .display()
                        .to_string();
                    files.push((name, std::fs::read(&path).expect("a file")));
                }
            }
        }
        self.commit(id, files)
    }

    /// Changes a repository.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut Repository)) {
        change(
            lock(&self.state)
                .repositories
                .entry(id.to_owned())
                .or_default(),
        );
    }

    /// A repository as it is now.
    pub fn repository(&self, id: &str) -> Option<Repository> {
        lock(&self.state).repositories.get(id).cloned()
    }

    /// The files of a branch.
    pub fn files(&self, id: &str, revision: &str) -> Files {
        let state = lock(&self.state);
        let found = state.repositories.get(id);
        let found = found.and_then(|r| r.commits.get(r.refs.get(revision)?));
        found.cloned().unwrap_or_default()
    }

    /// Objects above this size are uploaded in parts of it.
    pub fn upload_in_parts_of(&self, bytes: usize) {
        lock(&self.state).part_size = bytes;
    }

    /// Lets something go wrong, at the Hub or its content network.
    pub fn fail(&self, fault: Fault) {
        match fault.target.starts_with("/content") || fault.target.starts_with("/upload") {
            true => self.content.fail(fault),
            false => self.server.fail(fault),
        }
    }

    /// Every answer of both servers.
    pub fn log(&self) -> Vec<Logged> {
        let mut log = self.server.log();
        log.extend(self.content.log());
        log
    }

    /// Bytes of content that both servers sent.
    pub fn bytes(&self) -> u64 {
        self.server.bytes() + self.content.bytes()
    }

    /// Forgets answers and faults.
    pub fn reset(&self) {
        self.server.reset();
        self.content.reset();
    }
}

fn commit(state: &mut State, id: &str, branch: &str, files: Files, message: &str) -> String {
    for (name, bytes) in &files {
        if is_large(name, bytes) {
            state.objects.insert(sha256(bytes), Arc::clone(bytes));
        }
    }
    let repository = state.repositories.entry(id.to_owned()).or_default();
    let text: String = files
        .iter()
        .map(|(name, bytes)| format!("{name} {}\n", sha256(bytes)))
        .collect();
    let text = format!(
        "{text}{}{:?}",
        repository.commits.len(),
        repository.refs.get(branch)
    );
    let sha = sha256(text.as_bytes())[..40].to_owned();
    repository.commits.insert(sha.clone(), files);
    repository.refs.insert(branch.to_owned(), sha.clone());
    repository.messages.push(message.to_owned());
    sha
}

/// The content network: signed reads, and uploads.
fn stored(state: &Mutex<State>, request: &Request) -> Reply {
    let mut state = lock(state);
    if request.header("authorization").is_some() {
        return Reply::new(400, "two kinds of credentials");
    }
    if !request.target.contains(SIGNATURE) {
        return Reply::new(403, "no signature");
    }
    let path = request.path();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (request.method.as_str(), parts.as_slice()) {
        ("GET" | "HEAD", ["content", oid]) => match state.objects.get(*oid) {
            Some(bytes) => Reply {
                status: 200,
                body: Arc::clone(bytes),
                ranges: true,
                ..Reply::default()
            }
            .with("ETag", format!("\"content-{}\"", &oid[..8])),
            None => Reply::new(404, ""),
        },
        ("PUT", ["upload", oid]) => match sha256(&request.body) == **oid {
            true => {
                state
                    .objects
                    .insert((*oid).to_owned(), Arc::new(request.body.clone()));
                Reply::new(200, "")
            }
            false => Reply::new(400, "another hash"),
        },
        ("PUT", ["upload", oid, part]) => {
            let number = part.parse().unwrap_or(0);
            state
                .parts
                .insert(((*oid).to_owned(), number), request.body.clone());
            Reply::new(200, "").with("ETag", format!("\"part-{number}\""))
        }
        _ => Reply::new(404, ""),
    }
}

/// The commit of a revision.
fn resolved(repository: &Repository, revision: &str) -> Option<String> {
    match repository.commits.contains_key(revision) {
        true => Some(revision.to_owned()),
        false => repository.refs.get(revision).cloned(),
    }
}

fn etag(name: &str, bytes: &[u8]) -> String {
    let hash = sha256(bytes);
    match is_large(name, bytes) {
        true => hash,
        false => hash[..40].to_owned(),
    }
}

fn routes(state: &Mutex<State>, request: &Request, content: &str, own: &str) -> Reply {
    let mut state = lock(state);
    let path = request.path();
    let raw = request
        .target
        .split('?')
        .next()
        .unwrap_or_default()
        .trim_matches('/');
    let parts: Vec<&str> = raw.split('/').collect();
    let bearer = format!("Bearer {}", state.token);
    let authorization = request.header("authorization");
    let is_known = authorization == Some(bearer.as_str());
    if authorization.is_some() && !is_known {
        return error(401, "InvalidToken");
    }
    let unquoted = |text: &str| text.replace("%2F", "/").replace("%2f", "/");
    match (request.method.as_str(), parts.as_slice()) {
        ("GET", ["api", "whoami-v2"]) if is_known => Reply::json(
            200,
            &json!({"name": "o", "type": "user", "auth": {"accessToken": {"role": "write"}}}),
        ),
        ("POST", ["api", "validate-yaml"]) => {
            Reply::json(200, &json!({"errors": [], "warnings": []}))
        }
        ("POST", ["api", "repos", "create"]) => {
            if !is_known {
                return error(401, "RepoNotFound");
            }
            create(&mut state, request, own)
        }
        (method, ["api", "models", owner, name, rest @ ..]) => {
            let id = format!("{owner}/{name}");
            if let Some(refused) = refused(&state, &id, is_known) {
                return refused;
            }
            match (method, rest) {
                ("GET", []) => info(&state, &id, "main"),
                ("GET", ["revision", revision]) => info(&state, &id, &unquoted(revision)),
                ("GET", ["tree", revision, ..]) => tree(&state, &id, &unquoted(revision)),
                ("POST", ["branch", branch]) => make_branch(&mut state, &id, &unquoted(branch)),
                ("POST", ["preupload", revision]) => {
                    preupload(&state, &id, &unquoted(revision), request, is_known)
                }
                ("POST", ["commit", revision]) => {
                    committed(&mut state, &id, &unquoted(revision), request, is_known, own)
                }
                _ => Reply::new(404, ""),
            }
        }
        ("POST", [owner, name, "info", "lfs", "objects", "batch"]) => {
            let id = format!("{owner}/{}", name.trim_end_matches(".git"));
            match refused(&state, &id, is_known) {
                Some(refused) => refused,
                None => batch(&state, request, content, own),
            }
        }
        ("POST", ["lfs", "complete", oid]) => complete(&mut state, request, oid),
        ("POST", ["lfs", "verify"]) => {
            let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            match state
                .objects
                .contains_key(body["oid"].as_str().unwrap_or_default())
            {
                true => Reply::json(200, &json!({})),
                false => Reply::new(404, ""),
            }
        }
        ("GET" | "HEAD", [owner, name, "resolve", revision, ..]) => {
            let id = format!("{owner}/{name}");
            if let Some(refused) = refused(&state, &id, is_known) {
                return refused;
            }
            let file = path
                .trim_start_matches('/')
                .splitn(5, '/')
                .nth(4)
                .unwrap_or_default()
                .to_owned();
            resolve(&state, &id, &unquoted(revision), &file, content)
        }
        _ => error(404, "RepoNotFound"),
    }
}

/// Why a repository may not be looked at.
fn refused(state: &State, id: &str, is_known: bool) -> Option<Reply> {
    let Some(repository) = state.repositories.get(id) else {
        // the Hub does not tell strangers what exists
        return Some(error(if is_known { 404 } else { 401 }, "RepoNotFound"));
    };
    if repository.private && !is_known {
        return Some(error(401, "RepoNotFound"));
    }
    if repository.gated {
        return Some(error(if is_known { 403 } else { 401 }, "GatedRepo"));
    }
    None
}

fn lfs_of(name: &str, bytes: &[u8]) -> Value {
    match is_large(name, bytes) {
        true => {
            json!({"sha256": sha256(bytes), "oid": sha256(bytes), "size": bytes.len(), "pointerSize": 134})
        }
        false => Value::Null,
    }
}

fn info(state: &State, id: &str, revision: &str) -> Reply {
    let repository = &state.repositories[id];
    let Some(sha) = resolved(repository, revision) else {
        return error(404, "RevisionNotFound");
    };
    let siblings = repository.commits[&sha].iter().map(|(name, bytes)| {
        json!({"rfilename": name, "size": bytes.len(), "blobId": etag(name, bytes), "lfs": lfs_of(name, bytes)})
    });
    Reply::json(
        200,
        &json!({
            "_id": "0", "id": id, "modelId": id, "author": id.split('/').next(), "sha": sha,
            "private": repository.private, "gated": false, "disabled": false, "tags": [], "downloads": 0, "likes": 0,
            "siblings": siblings.collect::<Value>(),
        }),
    )
    .with("X-Repo-Commit", sha)
}

fn tree(state: &State, id: &str, revision: &str) -> Reply {
    let repository = &state.repositories[id];
    let Some(sha) = resolved(repository, revision) else {
        return error(404, "RevisionNotFound");
    };
    let entries = repository.commits[&sha].iter().map(|(name, bytes)| {
        let mut entry =
            json!({"type": "file", "path": name, "size": bytes.len(), "oid": etag(name, bytes)});
        if is_large(name, bytes) {
            entry["lfs"] = lfs_of(name, bytes);
        }
        entry
    });
    Reply::json(200, &entries.collect::<Value>())
}

fn resolve(state: &State, id: &str, revision: &str, file: &str, content: &str) -> Reply {
    let repository = &state.repositories[id];
    let Some(sha) = resolved(repository, revision) else {
        return error(404, "RevisionNotFound");
    };
    let Some(bytes) = repository.commits[&sha].get(file) else {
        return error(404, "EntryNotFound").with("X-Repo-Commit", sha);
    };
    let etag = etag(file, bytes);
    if is_large(file, bytes) {
        let url = format!("{content}/content/{etag}?{SIGNATURE}&Expires=9999");
        return Reply::new(302, "")
            .with("Location", url)
            .with("X-Repo-Commit", sha)
            .with("X-Linked-Size", bytes.len().to_string())
            .with("X-Linked-Etag", format!("\"{etag}\""))
            .with("ETag", format!("\"{}\"", &etag[..40]));
    }
    Reply {
        status: 200,
        body: Arc::clone(bytes),
        ranges: true,
        ..Reply::default()
    }
    .with("ETag", format!("\"{etag}\""))
    .with("Content-Type", "text/plain; charset=utf-8")
    .with("X-Repo-Commit", sha)
}

fn create(state: &mut State, request: &Request, own: &str) -> Reply {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let name = body["name"].as_str().unwrap_or_default();
    let owner = body["organization"].as_str().unwrap_or("o");
    let id = match name.contains('/') {
        true => name.to_owned(),
        false => format!("{owner}/{name}"),
    };
    let answer = json!({"url": format!("{own}/{id}"), "name": id, "id": "0"});
    if state.repositories.contains_key(&id) {
        return Reply::json(409, &answer).with("X-Error-Code", "RepoExists");
    }
    let first = Files::from([(
        ".gitattributes".to_owned(),
        Arc::new(b"*.gguf filter=lfs\n".to_vec()),
    )]);
    commit(state, &id, "main", first, "initial commit");
    if let Some(repository) = state.repositories.get_mut(&id) {
        repository.private = body["private"].as_bool().unwrap_or(false);
    }
    Reply::json(200, &answer)
}

fn make_branch(state: &mut State, id: &str, branch: &str) -> Reply {
    let Some(repository) = state.repositories.get_mut(id) else {
        return error(404, "RepoNotFound");
    };
    if repository.refs.contains_key(branch) {
        return Reply::json(409, &json!({"error": "Reference already exists"}));
    }
    let Some(main) = repository.refs.get("main").cloned() else {
        return error(404, "RevisionNotFound");
    };
    repository.refs.insert(branch.to_owned(), main);
    Reply::json(200, &json!({}))
}

fn preupload(state: &State, id: &str, revision: &str, request: &Request, is_known: bool) -> Reply {
    if !is_known {
        return error(401, "RepoNotFound");
    }
    if resolved(&state.repositories[id], revision).is_none() {
        return error(404, "RevisionNotFound");
    }
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let files = body["files"].as_array().cloned().unwrap_or_default();
    let there = &state.repositories[id];
    let there = resolved(there, revision).map(|sha| &there.commits[&sha]);
    let modes = files.iter().map(|file| {
        let path = file["path"].as_str().unwrap_or_default();
        let found = there.and_then(|files| files.get(path));
        let large = is_large(path, &[]) || file["size"].as_u64().unwrap_or(0) > 10 << 20;
        let mode = if large { "lfs" } else { "regular" };
        let oid = found.map(|bytes| etag(path, bytes));
        json!({"path": path, "uploadMode": mode, "shouldIgnore": false, "oid": oid})
    });
    Reply::json(200, &json!({"files": modes.collect::<Value>()}))
}

fn batch(state: &State, request: &Request, content: &str, own: &str) -> Reply {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let objects = body["objects"].as_array().cloned().unwrap_or_default();
    let mut transfer = "basic";
    let answers: Vec<Value> = objects
        .iter()
        .map(|object| {
            let oid = object["oid"].as_str().unwrap_or_default();
            let size = object["size"].as_u64().unwrap_or(0) as usize;
            if state.objects.contains_key(oid) {
                return json!({"oid": oid, "size": size});
            }
            let verify = json!({"href": format!("{own}/lfs/verify"), "header": {}});
            let upload = match size > state.part_size {
                false => json!({"href": format!("{content}/upload/{oid}?{SIGNATURE}")}),
                true => {
                    transfer = "multipart";
                    let mut header = json!({"chunk_size": state.part_size.to_string()});
                    for part in 1..=size.div_ceil(state.part_size) {
                        let url = format!("{content}/upload/{oid}/{part}?{SIGNATURE}");
                        header[format!("{part:05}")] = url.into();
                    }
                    json!({"href": format!("{own}/lfs/complete/{oid}"), "header": header})
                }
            };
            json!({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        })
        .collect();
    Reply::json(200, &json!({"transfer": transfer, "objects": answers}))
        .with("Content-Type", "application/vnd.git-lfs+json")
}

fn complete(state: &mut State, request: &Request, oid: &str) -> Reply {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let mut whole = Vec::new();
    for part in body["parts"].as_array().cloned().unwrap_or_default() {
        let number = part["partNumber"].as_u64().unwrap_or(0) as u32;
        match state.parts.get(&(oid.to_owned(), number)) {
            Some(bytes) if part["etag"].as_str().is_some_and(|e| e.contains("part-")) => {
                whole.extend_from_slice(bytes)
            }
            _ => return Reply::new(400, "a part is missing"),
        }
    }
    if sha256(&whole) != oid {
        return Reply::new(400, "another hash");
    }
    state.objects.insert(oid.to_owned(), Arc::new(whole));
    Reply::json(200, &json!({}))
}

fn committed(
    state: &mut State,
    id: &str,
    branch: &str,
    request: &Request,
    is_known: bool,
    own: &str,
) -> Reply {
    if !is_known {
        return error(401, "RepoNotFound");
    }
    let Some(parent) = resolved(&state.repositories[id], branch) else {
        return error(404, "RevisionNotFound");
    };
    let mut files = state.repositories[id].commits[&parent].clone();
    let mut message = String::new();
    for line in request
        .body
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
    {
        let Ok(line) = serde_json::from_slice::<Value>(line) else {
            return Reply::new(400, "no JSON");
        };
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_owned();
        match line["key"].as_str() {
            Some("header") => message = value["summary"].as_str().unwrap_or_default().to_owned(),
            Some("file") => match base64(value["content"].as_str().unwrap_or_default()) {
                Some(bytes) if value["encoding"] == "base64" => {
                    files.insert(path, Arc::new(bytes));
                }
                _ => return Reply::new(400, "no base64"),
            },
            Some("lfsFile") => match state.objects.get(value["oid"].as_str().unwrap_or_default()) {
                Some(bytes) if Some(bytes.len() as u64) == value["size"].as_u64() => {
                    files.insert(path, Arc::clone(bytes));
                }
                _ => return Reply::new(400, "an object that was not uploaded"),
            },
            Some("deletedFile") => {
                files.remove(&path);
            }
            _ => return Reply::new(400, "an operation that is not known"),
        }
    }
    let sha = commit(state, id, branch, files, &message);
    Reply::json(
        200,
        &json!({
            "success": true, "commitOid": sha, "commitUrl": format!("{own}/{id}/commit/{sha}"), "hookOutput": "",
        }),
    )
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => Some(b - b'A'),
        b'a'..=b'z' => Some(b - b'a' + 26),
        b'0'..=b'9' => Some(b - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits: Option<Vec<u8>> = text.trim_end_matches('=').bytes().map(digit).collect();
    let mut bytes = Vec::new();
    for group in digits?.chunks(4) {
        let word =
            group.iter().fold(0u32, |word, d| word << 6 | u32::from(*d)) << (6 * (4 - group.len()));
        bytes.extend_from_slice(&word.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}
