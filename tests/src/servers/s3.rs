//! An object store that speaks as much S3 as reading, listing and uploading in parts need.
//!
//! Invariant: an upload in parts is no object before it is completed.

use super::http::{Fault, Logged, Reply, Request, Server};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct State {
    /// By `bucket/key`.
    objects: BTreeMap<String, Arc<Vec<u8>>>,
    uploads: HashMap<String, BTreeMap<u32, Vec<u8>>>,
    /// Uploads begun so far.
    begun: u32,
}

/// An object store on the loopback interface.
pub struct S3 {
    server: Server,
    state: Arc<Mutex<State>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", &bitnet_formats::hex(&Sha256::digest(bytes))[..32])
}

impl S3 {
    /// A store without objects, that takes any credentials.
    pub fn start() -> Self {
        let state: Arc<Mutex<State>> = Arc::default();
        let answering = Arc::clone(&state);
        let server = Server::start(move |request| routes(&answering, request));
        Self { server, state }
    }

    /// For `AWS_ENDPOINT_URL`.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Puts an object at `bucket/key`.
    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        lock(&self.state)
            .objects
            .insert(key.to_owned(), Arc::new(bytes));
    }

    /// All objects.
    pub fn objects(&self) -> BTreeMap<String, Arc<Vec<u8>>> {
        lock(&self.state).objects.clone()
    }

    /// Uploads in parts that were neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        lock(&self.state).uploads.len()
    }

    /// Uploads in parts that were begun.
    pub fn begun_uploads(&self) -> u32 {
        lock(&self.state).begun
    }

    /// Lets something go wrong.
    pub fn fail(&self, fault: Fault) {
        self.server.fail(fault);
    }

    /// Every answer.
    pub fn log(&self) -> Vec<Logged> {
        self.server.log()
    }

    /// Bytes of content that were sent.
    pub fn bytes(&self) -> u64 {
        self.server.bytes()
    }

    /// Forgets answers and faults.
    pub fn reset(&self) {
        self.server.reset();
    }
}

fn failure(status: u16, code: &str) -> Reply {
    Reply::new(
        status,
        format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>"),
    )
    .with("Content-Type", "application/xml")
}

fn routes(state: &Mutex<State>, request: &Request) -> Reply {
    let mut state = lock(state);
    if request.header("authorization").is_none() {
        return failure(403, "AccessDenied");
    }
    let key = request.path().trim_start_matches('/').to_owned();
    let has = |name: &str| request.parameter(name).is_some();
    let upload = request.parameter("uploadId").unwrap_or_default();
    match request.method.as_str() {
        "GET" if has("list-type") => list(&state, key.trim_end_matches('/'), request),
        "GET" | "HEAD" => match state.objects.get(&key) {
            None => failure(404, "NoSuchKey"),
            Some(bytes) => {
                let etag = etag(bytes);
                if request
                    .header("if-match")
                    .is_some_and(|wanted| wanted != etag)
                {
                    return failure(412, "PreconditionFailed");
                }
                Reply {
                    status: 200,
                    body: Arc::clone(bytes),
                    ranges: true,
                    ..Reply::default()
                }
                .with("ETag", etag)
                .with("Last-Modified", "Mon, 30 Nov 2026 10:00:00 GMT")
            }
        },
        "POST" if has("uploads") => {
            state.begun += 1;
            let id = format!("upload-{}", state.begun);
            state.uploads.insert(id.clone(), BTreeMap::new());
            Reply::new(
                200,
                format!(
                    "<InitiateMultipartUploadResult><UploadId>{id}</UploadId></InitiateMultipartUploadResult>"
                ),
            )
        }
        "PUT" if has("partNumber") => {
            let number = request
                .parameter("partNumber")
                .and_then(|n| n.parse().ok())
                .unwrap_or(0);
            match state.uploads.get_mut(&upload) {
                Some(parts) => {
                    parts.insert(number, request.body.clone());
                    Reply::new(200, "").with("ETag", etag(&request.body))
                }
                None => failure(404, "NoSuchUpload"),
            }
        }
        "POST" => match state.uploads.remove(&upload) {
            Some(parts) => {
                let whole: Vec<u8> = parts.into_values().flatten().collect();
                let etag = etag(&whole);
                state.objects.insert(key.clone(), Arc::new(whole));
                Reply::new(
                    200,
                    format!(
                        "<CompleteMultipartUploadResult><Location>x</Location><Bucket>b</Bucket><Key>{key}</Key><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
                    ),
                )
            }
            None => failure(404, "NoSuchUpload"),
        },
        "PUT" => {
            if request.header("if-none-match").is_some() && state.objects.contains_key(&key) {
                return failure(412, "PreconditionFailed");
            }
            let etag = etag(&request.body);
            state.objects.insert(key, Arc::new(request.body.clone()));
            Reply::new(200, "").with("ETag", etag)
        }
        "DELETE" => {
            match upload.is_empty() {
                true => state.objects.remove(&key).map(|_| ()),
                false => state.uploads.remove(&upload).map(|_| ()),
            };
            Reply::new(204, "")
        }
        _ => failure(405, "MethodNotAllowed"),
    }
}

fn list(state: &State, bucket: &str, request: &Request) -> Reply {
    let prefix = request.parameter("prefix").unwrap_or_default();
    let below = state.objects.iter().filter_map(|(name, bytes)| {
        let key = name.strip_prefix(bucket)?.strip_prefix('/')?;
        key.starts_with(&prefix).then_some((key, bytes))
    });
    let contents: String = below
        .map(|(key, bytes)| {
            format!(
                "<Contents><Key>{key}</Key><LastModified>2026-11-30T10:00:00.000Z</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
                etag(bytes).replace('"', "&quot;"),
                bytes.len()
            )
        })
        .collect();
    Reply::new(
        200,
        format!(
            "<?xml version=\"1.0\"?><ListBucketResult><Name>{bucket}</Name><Prefix>{prefix}</Prefix><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        ),
    )
    .with("Content-Type", "application/xml")
}
