//! Object stores: S3, Google Cloud Storage, Azure Blob Storage.
//!
//! Invariant: errors are said in this program's words: those of the library may repeat URLs with signatures.

use super::chunks::Ranges;
use super::client::{Failed, Patience};
use super::file::LEAST_PROGRESS;
use super::reach::Unreached;
use crate::Stored;
use crate::location::is_plain_path;
use bitnet_formats::{ErrorCode, FormatError};
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path as Key;
use object_store::{
    Attribute, AttributeValue, Attributes, ClientOptions, GetOptions, GetRange, ObjectStore,
    ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Objects below one prefix.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    store: Arc<dyn ObjectStore>,
    /// `s3://bucket`
    root: String,
    lacks_credentials: bool,
}

/// An object, as a listing tells it.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    /// Below the prefix.
    pub(crate) name: String,
    pub(crate) len: u64,
    pub(crate) etag: Option<String>,
}

/// The most objects below a prefix that are listed.
const MOST: usize = 100_000;

/// How access is given.
const ACCESS: &str = "set the credentials of the provider: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_SERVICE_ACCOUNT, AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY";

/// What says where a store is.
const ENDPOINT: &str = "the name of the bucket and the endpoint of the store (AWS_ENDPOINT_URL, AZURE_STORAGE_ENDPOINT)";

/// The variables that give access to S3, each by itself. Without them the library asks the machine for its role.
const S3_CREDENTIALS: [&str; 6] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
];

/// The error for a store whose provider gives no credentials.
pub(crate) fn no_credentials(name: &str) -> FormatError {
    let message = "no variable of the environment has credentials, and this machine has no role that the store knows";
    FormatError::new(ErrorCode::AccessDenied, message)
        .in_file(Path::new(name))
        .hint(ACCESS)
}

/// What an error of the library means.
pub(crate) fn said(error: &object_store::Error, name: &str) -> FormatError {
    use object_store::Error;
    let access = ACCESS;
    let (code, message, hint) = match error {
        Error::NotFound { .. } => (
            ErrorCode::NotFound,
            "the store has no such object or bucket",
            "check bucket and prefix",
        ),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            (ErrorCode::AccessDenied, "the store refuses access", access)
        }
        Error::Precondition { .. } | Error::NotModified { .. } => (
            ErrorCode::InputChanged,
            "the input changed while it was read: the store has another version (ETag)",
            "wait until the object stays as it is, then run the command again",
        ),
        Error::AlreadyExists { .. } => (
            ErrorCode::Exists,
            "the object exists",
            "--force replaces it",
        ),
        Error::InvalidPath { .. } => (
            ErrorCode::Usage,
            "the store has no such names",
            "correct the prefix",
        ),
        Error::UnknownConfigurationKey { .. } => (
            ErrorCode::Usage,
            "a variable of the provider is not known",
            access,
        ),
        _ if matches!(status(error), Some(401 | 403)) => {
            (ErrorCode::AccessDenied, "the store refuses access", access)
        }
        _ => {
            let (message, hint) = match Unreached::of(error) {
                Some(why) => (
                    format!("the store cannot be reached: {}", why.what()),
                    why.hint(ENDPOINT),
                ),
                None => (
                    "the store cannot be reached, or fails".to_owned(),
                    access.to_owned(),
                ),
            };
            return FormatError::new(ErrorCode::Network, message)
                .in_file(Path::new(name))
                .hint(hint);
        }
    };
    FormatError::new(code, message)
        .in_file(Path::new(name))
        .hint(hint)
}

/// The status of an answer that the library has no kind for: some routes say it in words alone.
fn status(error: &object_store::Error) -> Option<u16> {
    // the listing of S3 puts the answer of the server below its own words
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        let text = error.to_string();
        for before in [
            "status code: ",
            "status ",
            "Server returned error response: ",
        ] {
            let behind = text.split_once(before).map(|(_, behind)| behind);
            let number = behind.and_then(|behind| behind.get(..3)?.parse().ok());
            if number.is_some() {
                return number;
            }
        }
        source = error.source();
    }
    None
}

/// Whether another attempt may succeed.
pub(crate) fn is_passing(error: &object_store::Error) -> bool {
    !matches!(status(error), Some(400..500))
        && matches!(
            error,
            object_store::Error::Generic { .. } | object_store::Error::JoinError { .. }
        )
}

/// Notes as the library takes them.
pub(crate) fn attributes(notes: &[(&str, &str)]) -> Attributes {
    let notes = notes.iter().map(|(name, value)| {
        let name = Attribute::Metadata((*name).to_owned().into());
        (name, AttributeValue::from((*value).to_owned()))
    });
    notes.collect()
}

impl Store {
    pub(crate) fn open(scheme: &str, bucket: &str, silence: Duration) -> Result<Self, FormatError> {
        super::runtime()?;
        let root = format!("{scheme}://{bucket}");
        let variable = |names: &[&str]| names.iter().find_map(|name| std::env::var(name).ok());
        let is_plain =
            |names: &[&str]| variable(names).is_some_and(|url| url.starts_with("http://"));
        let options = ClientOptions::new()
            .with_connect_timeout(Duration::from_secs(15))
            .with_timeout(silence.max(Duration::from_secs(300)));
        let retry = RetryConfig {
            max_retries: 5,
            retry_timeout: Duration::from_secs(120),
            ..RetryConfig::default()
        };
        let built: Result<Arc<dyn ObjectStore>, object_store::Error> = match scheme {
            "s3" => {
                // a store of one's own is named without TLS at times
                let plain = is_plain(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]);
                let mut builder = AmazonS3Builder::from_env()
                    .with_client_options(if plain {
                        options.with_allow_http(true)
                    } else {
                        options
                    })
                    .with_bucket_name(bucket)
                    // few objects are removed, and not every store has the request for many
                    .with_disable_bulk_delete(true)
                    .with_retry(retry);
                if let Some(endpoint) = variable(&["AWS_ENDPOINT_URL_S3"]) {
                    builder = builder.with_endpoint(endpoint);
                }
                builder.build().map(|s| Arc::new(s) as _)
            }
            "gs" => GoogleCloudStorageBuilder::from_env()
                .with_client_options(options)
                .with_bucket_name(bucket)
                .with_retry(retry)
                .build()
                .map(|s| Arc::new(s) as _),
            _ => {
                let plain = is_plain(&["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"]);
                MicrosoftAzureBuilder::from_env()
                    .with_client_options(if plain {
                        options.with_allow_http(true)
                    } else {
                        options
                    })
                    .with_container_name(bucket)
                    .with_retry(retry)
                    .build()
                    .map(|s| Arc::new(s) as _)
            }
        };
        let store = built.map_err(|e| said(&e, &root))?;
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let lacks_credentials = scheme == "s3" && !S3_CREDENTIALS.iter().any(is_set);
        Ok(Self {
            store,
            root,
            lacks_credentials,
        })
    }

    /// Whether the environment has no credentials: the library asks the machine for its role then.
    pub(crate) fn lacks_credentials(&self) -> bool {
        self.lacks_credentials
    }

    pub(crate) fn name_of(&self, key: &str) -> String {
        format!("{}/{key}", self.root)
    }

    pub(crate) fn inner(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// What is at a key, if an object is.
    pub(crate) async fn object(&self, key: &str) -> Result<Option<Object>, FormatError> {
        match self.store.head(&Key::from(key)).await {
            Ok(meta) => Ok(Some(Object {
                name: key.rsplit('/').next().unwrap_or(key).to_owned(),
                len: meta.size,
                etag: meta.e_tag,
            })),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(said(&e, &self.name_of(key))),
        }
    }

    /// What is said of the object at a key, if an object is.
    pub(crate) async fn look(&self, key: &str) -> Result<Option<Stored>, FormatError> {
        let options = GetOptions {
            head: true,
            ..GetOptions::default()
        };
        let got = match self.store.get_opts(&Key::from(key), options).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            got => got.map_err(|e| said(&e, &self.name_of(key)))?,
        };
        let notes = got
            .attributes
            .iter()
            .filter_map(|(name, value)| match name {
                Attribute::Metadata(name) => Some((name.to_string(), value.as_ref().to_owned())),
                _ => None,
            });
        Ok(Some(Stored {
            bytes: got.meta.size,
            notes: notes.collect(),
        }))
    }

    /// The content of a small object, if an object is there.
    pub(crate) async fn read(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>, FormatError> {
        let name = self.name_of(key);
        let mut patience = Patience::new(name.as_str());
        loop {
            let Some(object) = self.object(key).await? else {
                return Ok(None);
            };
            if object.len > limit {
                let message = format!("expected at most {limit} bytes, found {}", object.len);
                return Err(
                    FormatError::new(ErrorCode::LimitExceeded, message).in_file(Path::new(&name))
                );
            }
            if object.len == 0 {
                return Ok(Some(Vec::new()));
            }
            match Arc::new(self.file(key, &object)).fetch(0..object.len).await {
                // replaced since it was looked at
                Err(e) if e.code == ErrorCode::InputChanged => {
                    patience.wait(Failed::new(e.message)).await?;
                }
                read => return read.map(Some),
            }
        }
    }

    /// Whether an object is there and begins with these bytes.
    pub(crate) async fn begins_with(&self, key: &str, bytes: &[u8]) -> Result<bool, FormatError> {
        let len = bytes.len() as u64;
        let Some(object) = self.object(key).await?.filter(|found| found.len >= len) else {
            return Ok(false);
        };
        if bytes.is_empty() {
            return Ok(true);
        }
        let found = Arc::new(self.file(key, &object)).fetch(0..len).await?;
        Ok(found == bytes)
    }

    /// Writes a small object; one that is there stays, unless it may be replaced.
    pub(crate) async fn write(
        &self,
        key: &str,
        content: Vec<u8>,
        notes: &[(&str, &str)],
        replace: bool,
    ) -> Result<(), FormatError> {
        let content_bytes = bytes::Bytes::from(content);
        let content = PutPayload::from(content_bytes.clone());
        let put = |mode| {
            let options = PutOptions {
                mode,
                attributes: attributes(notes),
                ..PutOptions::default()
            };
            let (key, content) = (Key::from(key), content.clone());
            async move { self.store.put_opts(&key, content, options).await }
        };
        let mode = if replace {
            PutMode::Overwrite
        } else {
            PutMode::Create
        };
        let done = match put(mode).await {
            // a store that knows no conditions
            Err(e)
                if !replace
                    && (matches!(e, object_store::Error::NotImplemented { .. })
                        || status(&e) == Some(501)) =>
            {
                put(PutMode::Overwrite).await
            }
            done => done,
        };
        let Err(e) = done else {
            return Ok(());
        };
        // the answer was lost, not the object
        match self.holds(key, &content_bytes, notes).await {
            Ok(true) => Ok(()),
            _ => Err(said(&e, &self.name_of(key))),
        }
    }

    /// Whether the object at a key has this content and no other notes than these.
    async fn holds(
        &self,
        key: &str,
        content: &[u8],
        notes: &[(&str, &str)],
    ) -> Result<bool, FormatError> {
        let Some(found) = self.look(key).await? else {
            return Ok(false);
        };
        let has_note = |(name, value): &(&str, &str)| found.note(name).is_none_or(|v| v == *value);
        if found.bytes != content.len() as u64 || !notes.iter().all(has_note) {
            return Ok(false);
        }
        let read = self.read(key, found.bytes).await?;
        Ok(read.as_deref() == Some(content))
    }

    /// Removes what is at a key, if an object is.
    pub(crate) async fn remove(&self, key: &str) -> Result<(), FormatError> {
        match self.store.delete(&Key::from(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(said(&e, &self.name_of(key))),
        }
    }

    /// The objects below a prefix.
    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<Object>, FormatError> {
        let place = self.name_of(prefix);
        let key = Key::from(prefix);
        let listed = self
            .store
            .list((!prefix.is_empty()).then_some(&key))
            .take(MOST);
        let found: Vec<object_store::ObjectMeta> =
            listed.try_collect().await.map_err(|e| said(&e, &place))?;
        let objects = found.into_iter().filter_map(|meta| {
            let name = meta
                .location
                .as_ref()
                .strip_prefix(key.as_ref())?
                .trim_start_matches('/')
                .to_owned();
            is_plain_path(&name).then_some(Object {
                name,
                len: meta.size,
                etag: meta.e_tag,
            })
        });
        Ok(objects.collect())
    }

    /// An object to be read by range.
    pub(crate) fn file(&self, key: &str, object: &Object) -> StoredFile {
        StoredFile {
            store: Arc::clone(&self.store),
            key: Key::from(key),
            name: self.name_of(key),
            len: object.len,
            etag: object.etag.clone(),
            changed: Mutex::default(),
        }
    }
}

/// An object that is read by range.
#[derive(Debug)]
pub(crate) struct StoredFile {
    store: Arc<dyn ObjectStore>,
    key: Key,
    name: String,
    len: u64,
    etag: Option<String>,
    changed: Mutex<Option<FormatError>>,
}

impl StoredFile {
    /// Appends what one answer brings, up to `wanted` bytes in all.
    async fn attempt(
        &self,
        range: Range<u64>,
        sink: &mut Vec<u8>,
        wanted: usize,
    ) -> Result<(), object_store::Error> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: self.etag.clone(),
            ..GetOptions::default()
        };
        let got = self.store.get_opts(&self.key, options).await?;
        let mut stream = got.into_stream();
        while let Some(part) = stream.next().await {
            let part = part?;
            let take = part.len().min(wanted.saturating_sub(sink.len()));
            sink.extend_from_slice(part.get(..take).unwrap_or_default());
            if sink.len() >= wanted {
                break;
            }
        }
        Ok(())
    }
}

impl Ranges for StoredFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), FormatError> {
        match &*self.changed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn fetch(
        self: Arc<Self>,
        range: Range<u64>,
    ) -> BoxFuture<'static, Result<Vec<u8>, FormatError>> {
        Box::pin(async move {
            let wanted = (range.end - range.start) as usize;
            let mut bytes = Vec::with_capacity(wanted);
            let mut patience = Patience::new(self.name.as_str());
            while bytes.len() < wanted {
                let had = bytes.len();
                let done = self
                    .attempt(range.start + had as u64..range.end, &mut bytes, wanted)
                    .await;
                if (bytes.len() - had) as u64 >= LEAST_PROGRESS {
                    patience.progressed();
                }
                match done {
                    Ok(()) if bytes.len() == wanted => break,
                    Ok(()) => patience.wait(Failed::new("an answer ends early")).await?,
                    Err(e) if is_passing(&e) => {
                        patience.wait(Failed::new("the store fails")).await?
                    }
                    Err(e) => {
                        let error = said(&e, &self.name);
                        if error.code == ErrorCode::InputChanged {
                            let mut changed =
                                self.changed.lock().unwrap_or_else(PoisonError::into_inner);
                            changed.get_or_insert_with(|| error.clone());
                        }
                        return Err(error);
                    }
                }
            }
            bytes.truncate(wanted);
            Ok(bytes)
        })
    }
}
