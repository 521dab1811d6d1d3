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
    /// The metadata of objects that have some.
    notes: BTreeMap<String, Notes>,
    uploads: HashMap<String, Upload>,
    /// The buckets that exist; every bucket if the list is empty.
    buckets: Vec<String>,
    /// Uploads begun so far.
    begun: u32,
}

/// `x-amz-meta-…` headers.
type Notes = Vec<(String, String)>;

#[derive(Default)]
struct Upload {
    parts: BTreeMap<u32, Vec<u8>>,
    notes: Notes,
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

    /// A store with one bucket.
    pub fn with_bucket(name: &str) -> Self {
        let store = Self::start();
        lock(&store.state).buckets.push(name.to_owned());
        store
    }

    /// Puts an object at `bucket/key`, without metadata.
    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        let mut state = lock(&self.state);
        state.notes.remove(key);
        state.objects.insert(key.to_owned(), Arc::new(bytes));
    }

    /// Changes the content of an object behind the back of the store: metadata and length stay.
    ///
    /// # Panics
    /// If there is no such object.
    pub fn flip(&self, key: &str) {
        let mut state = lock(&self.state);
        let bytes = state.objects.get_mut(key).expect("an object");
        let bytes = Arc::make_mut(bytes);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }

    /// Removes an object.
    pub fn remove(&self, key: &str) {
        let mut state = lock(&self.state);
        state.notes.remove(key);
        state.objects.remove(key);
    }

    /// Forgets the metadata of all objects, as stores do that keep none.
    pub fn forget_notes(&self) {
        lock(&self.state).notes.clear();
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

/// The metadata that a request brings along.
fn notes(request: &Request) -> Notes {
    let notes = request.headers.iter();
    let notes = notes.filter(|(name, _)| name.starts_with("x-amz-meta-"));
    notes.cloned().collect()
}

fn routes(state: &Mutex<State>, request: &Request) -> Reply {
    let mut state = lock(state);
    if request.header("authorization").is_none() {
        return failure(403, "AccessDenied");
    }
    let key = request.path().trim_start_matches('/').to_owned();
    let bucket = key.split('/').next().unwrap_or_default();
    if !state.buckets.is_empty() && !state.buckets.iter().any(|name| name == bucket) {
        return failure(404, "NoSuchBucket");
    }
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
                    headers: state.notes.get(&key).cloned().unwrap_or_default(),
                }
                .with("ETag", etag)
                .with("Last-Modified", "Mon, 30 Nov 2026 10:00:00 GMT")
            }
        },
        "POST" if has("uploads") => {
            state.begun += 1;
            let id = format!("upload-{}", state.begun);
            let upload = Upload {
                notes: notes(request),
                ..Upload::default()
            };
            state.uploads.insert(id.clone(), upload);
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
                Some(upload) => {
                    upload.parts.insert(number, request.body.clone());
                    Reply::new(200, "").with("ETag", etag(&request.body))
                }
                None => failure(404, "NoSuchUpload"),
            }
        }
        "POST" => match state.uploads.remove(&upload) {
            Some(Upload { parts, notes }) => {
                let whole: Vec<u8> = parts.into_values().flatten().collect();
                let etag = etag(&whole);
                state.notes.insert(key.clone(), notes);
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
            state.notes.insert(key.clone(), notes(request));
            state.objects.insert(key, Arc::new(request.body.clone()));
            Reply::new(200, "").with("ETag", etag)
        }
        "DELETE" => {
            match upload.is_empty() {
                true => {
                    state.notes.remove(&key);
                    state.objects.remove(&key).map(|_| ())
                }
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
