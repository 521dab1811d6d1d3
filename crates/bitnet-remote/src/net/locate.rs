//! From a location to a path that the readers of this project open.
//!
//! Invariant: what is behind the path is one version of the model: one commit, or objects whose validators are checked at
//! every read. Everything that is needed beside the weights is there as a file.

use super::cache::Cache;
use super::chunks::{Looked, Ranges, Streamed};
use super::client::{Client, Request, network_error, page, parse_url};
use super::download;
use super::file::{RemoteFile, status_error};
use super::hub::{Hub, quoted_path};
use super::select::{Needed, Place, choose, is_index, is_weights};
use super::store::{Object, Store};
use super::{block_on, runtime};
use crate::answers::{self, Revision, plain_etag};
use crate::location::{Location, Repository, is_plain_path, without_secrets};
use crate::settings::Settings;
use crate::{Located, Reads, Watch};
use bitnet_formats::{
    ErrorCode, FormatError, Mount, Origin, ScratchDirectory, Source, read_directory,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use percent_encoding::percent_decode_str;
use reqwest::{Method, Url};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest file beside weights.
const LONGEST_SIDE: u64 = 256 << 20;

/// Where files are, whatever the protocol.
enum Remote {
    Hub(Hub, String),
    Http(Client, Url),
    Store(Store, String, HashMap<String, Object>),
}

impl Remote {
    fn key(prefix: &str, name: &str) -> String {
        match prefix.is_empty() {
            true => name.to_owned(),
            false => format!("{prefix}/{name}"),
        }
    }

    /// A file to be read by range.
    async fn open(&self, name: &str) -> Result<Arc<dyn Ranges>, FormatError> {
        match self {
            Self::Hub(hub, commit) => {
                let facts = hub.facts(commit, name).await?;
                Ok(Arc::new(hub.file(commit, name, &facts)?))
            }
            Self::Http(client, base) => match http_file(client, base, name).await? {
                Some(file) => Ok(Arc::new(file)),
                None => {
                    let url = http_url(base, name)?;
                    let error =
                        FormatError::new(ErrorCode::NotFound, "the server has no such file (404)");
                    Err(error
                        .in_file(Path::new(&without_secrets(url.as_str())))
                        .hint("check the URL"))
                }
            },
            Self::Store(store, prefix, objects) => {
                let key = Self::key(prefix, name);
                match objects.get(name) {
                    Some(object) => Ok(Arc::new(store.file(&key, object))),
                    None => {
                        let error =
                            FormatError::new(ErrorCode::NotFound, "the store has no such object");
                        Err(error.in_file(Path::new(&store.name_of(&key))))
                    }
                }
            }
        }
    }

    /// A file beside weights.
    async fn whole(&self, name: &str) -> Result<Vec<u8>, FormatError> {
        let file = self.open(name).await?;
        if file.len() > LONGEST_SIDE {
            let message = format!(
                "expected at most {LONGEST_SIDE} bytes, found {}",
                file.len()
            );
            let error = FormatError::new(ErrorCode::LimitExceeded, message);
            return Err(error.in_file(Path::new(file.name())));
        }
        match file.len() {
            0 => Ok(Vec::new()),
            len => file.fetch(0..len).await,
        }
    }
}

/// Makes a path of a location.
pub(crate) fn locate(
    location: &Location,
    reads: Reads,
    settings: &Settings,
    watch: &dyn Watch,
) -> Result<Located, FormatError> {
    match location {
        Location::File(path) => Ok(Located::plain(path.clone())),
        Location::Hub(repository) => {
            if settings.offline {
                return offline(repository, settings);
            }
            if matches!(reads, Reads::Whole) {
                settings.cache()?;
            }
            let hub = Hub::new(settings, repository)?;
            let revision = match block_on(hub.revision()) {
                Ok(revision) => revision,
                Err(error) => return cached(repository, settings, error),
            };
            let place =
                Place::find(repository.path.as_deref(), &revision.names).ok_or_else(|| {
                    hub.no_such_path(
                        repository.path.as_deref().unwrap_or_default(),
                        &revision.names,
                    )
                })?;
            match reads {
                Reads::Whole => whole(&hub, &revision, &place, settings, watch),
                Reads::Ranges | Reads::Headers => {
                    let origin = hub_origin(repository, &revision.commit, &place);
                    let below = place.below(&revision.names);
                    let remote = Remote::Hub(hub, revision.commit.clone());
                    stand_in(remote, &place, &below, origin, reads)
                }
            }
        }
        Location::Http(text) => http(text, reads, settings),
        Location::Store {
            scheme,
            bucket,
            key,
        } => store(scheme, bucket, key, reads, settings),
    }
}

/// A small file of a commit, from the cache or the Hub.
pub(crate) fn small(
    repository: &Repository,
    commit: &str,
    name: &str,
    settings: &Settings,
) -> Result<Vec<u8>, FormatError> {
    const LONGEST: u64 = 4 << 20;
    let cache = Cache::new(settings.cache()?, &repository.id);
    if let Some(path) = cache.file(commit, name) {
        return bitnet_formats::read_file(&path, LONGEST);
    }
    if settings.offline {
        return offline(repository, settings).map(|_| Vec::new());
    }
    let hub = Hub::new(settings, repository)?;
    block_on(Remote::Hub(hub, commit.to_owned()).whole(name))
}

fn hub_origin(repository: &Repository, commit: &str, place: &Place) -> Origin {
    let directory = place.directory.trim_end_matches('/');
    let slash = if directory.is_empty() { "" } else { "/" };
    Origin {
        name: format!("hf://{}{slash}{directory}", repository.id),
        repository: Some(repository.id.clone()),
        commit: Some(commit.to_owned()),
        headers_only: false,
        is_temporary: false,
    }
}

/// The path that opens a model of a snapshot, with what is known of its origin.
fn in_snapshot(cache: &Cache, repository: &Repository, commit: &str, place: &Place) -> Located {
    let snapshot = cache.snapshot(commit);
    let root = match place.directory.is_empty() {
        true => snapshot,
        false => snapshot.join(place.directory.trim_end_matches('/')),
    };
    let path = match &place.file {
        Some(file) => root.join(file),
        None => root.clone(),
    };
    let origin = hub_origin(repository, commit, place);
    let mount = Mount::new(root, origin, HashMap::new());
    Located {
        path,
        note: None,
        _mount: Some(mount),
        _scratch: None,
    }
}

/// Downloads what is needed.
fn whole(
    hub: &Hub,
    revision: &Revision,
    place: &Place,
    settings: &Settings,
    watch: &dyn Watch,
) -> Result<Located, FormatError> {
    let commit = revision.commit.as_str();
    let cache = Cache::new(settings.cache()?, &hub.repository.id);
    let below = place.below(&revision.names);
    let full = |name: &str| format!("{}{name}", place.directory);
    let scratch = ScratchDirectory::create()?;
    let indices: Vec<String> = below
        .iter()
        .filter(|n| is_index(n))
        .map(|n| full(n))
        .collect();
    block_on(download::fetch(
        hub,
        &cache,
        commit,
        &indices,
        &crate::NoWatch,
    ))?;
    for name in below.iter().filter(|name| is_index(name)) {
        if let Some(path) = cache.file(commit, &full(name)) {
            let copy = scratch.path().join(name);
            fs::copy(path, &copy).map_err(|e| FormatError::io(&copy, &e))?;
        }
    }
    let needed = choose(scratch.path(), place, &below, &hub.repository.to_string())?;
    let names = needed.side.iter().chain(&needed.weights);
    let names: Vec<String> = names.map(|name| full(name)).collect();
    block_on(download::fetch(hub, &cache, commit, &names, watch))?;
    cache.note_commit(hub.repository.revision(), commit)?;
    Ok(in_snapshot(&cache, &hub.repository, commit, place))
}

/// What the cache has of a repository, if it is enough to open a model.
fn find_cached(repository: &Repository, settings: &Settings) -> Option<Located> {
    let cache = Cache::new(settings.cache().ok()?, &repository.id);
    let revision = repository.revision();
    let commit = match answers::is_hex(revision, 40) {
        true => revision.to_owned(),
        false => cache.commit_of(revision)?,
    };
    let names = cache.names(&commit);
    let place = Place::find(repository.path.as_deref(), &names)?;
    let located = in_snapshot(&cache, repository, &commit, &place);
    let files = bitnet_formats::weight_files(&located.path, &bitnet_formats::Limits::default());
    files
        .ok()?
        .iter()
        .all(|file| file.is_file())
        .then_some(located)
}

fn offline(repository: &Repository, settings: &Settings) -> Result<Located, FormatError> {
    let cache = settings.cache()?;
    find_cached(repository, settings).ok_or_else(|| {
        let message = format!(
            "HF_HUB_OFFLINE is set, and the cache {} does not hold this model whole",
            cache.display()
        );
        FormatError::new(ErrorCode::Offline, message)
            .in_file(Path::new(&repository.to_string()))
            .hint("unset HF_HUB_OFFLINE to download the model, or set HF_HUB_CACHE to the cache that holds it")
    })
}

/// Without a network, what was downloaded before.
fn cached(
    repository: &Repository,
    settings: &Settings,
    error: FormatError,
) -> Result<Located, FormatError> {
    let found = match error.code {
        ErrorCode::Network => find_cached(repository, settings),
        _ => None,
    };
    match found {
        Some(mut located) => {
            let message = "the Hub cannot be reached; the snapshot in the cache is used";
            located.note = Some(format!("{repository}: {message}"));
            Ok(located)
        }
        None => Err(error),
    }
}

/// A directory that stands for a remote one: side files in it, weights as sources.
fn stand_in(
    remote: Remote,
    place: &Place,
    below: &[&str],
    origin: Origin,
    reads: Reads,
) -> Result<Located, FormatError> {
    let scratch = ScratchDirectory::create()?;
    let root = scratch.path().to_owned();
    let full = |name: &str| format!("{}{name}", place.directory);
    let indices = below
        .iter()
        .filter(|name| is_index(name))
        .map(|n| (*n).to_owned());
    write_side_files(&remote, &root, &indices.collect::<Vec<_>>(), &full)?;
    let needed = choose(&root, place, below, &origin.name)?;
    let Needed { weights, side } = &needed;
    write_side_files(&remote, &root, side, &full)?;
    // placeholders of weights that are not needed would be a second model
    let failed = |e: std::io::Error| FormatError::io(&root, &e);
    for entry in read_directory(&root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_weights(&name) && !weights.contains(&name) {
            let _ = fs::remove_file(entry.path());
        }
    }
    let remote = &remote;
    let opened = weights.iter().filter(|name| !is_index(name)).map(|name| {
        let full = full(name);
        async move { Ok::<_, FormatError>((name, remote.open(&full).await?)) }
    });
    let opened: Vec<_> = block_on(stream::iter(opened).buffered(8).try_collect())?;
    let mut files: HashMap<PathBuf, Arc<dyn Source>> = HashMap::new();
    for (name, ranges) in opened {
        let path = root.join(name);
        // a placeholder of the right length, without blocks
        let placed = fs::File::create(&path).and_then(|file| file.set_len(ranges.len()));
        placed.map_err(|e| FormatError::io(&path, &e))?;
        let source: Arc<dyn Source> = match reads {
            Reads::Headers => Arc::new(Looked::new(ranges, path.clone())),
            _ => Arc::new(Streamed::new(ranges, path.clone())),
        };
        files.insert(path, source);
    }
    let path = match &place.file {
        Some(file) => root.join(file),
        None => root.clone(),
    };
    let origin = Origin {
        headers_only: reads == Reads::Headers,
        is_temporary: true,
        ..origin
    };
    Ok(Located {
        path,
        note: None,
        _mount: Some(Mount::new(root, origin, files)),
        _scratch: Some(scratch),
    })
}

fn write_side_files(
    remote: &Remote,
    root: &Path,
    names: &[String],
    full: &dyn Fn(&str) -> String,
) -> Result<(), FormatError> {
    // each is written as it comes: only the files on their way are in memory
    let asked = names.iter().map(|name| {
        let (full, path) = (full(name), root.join(name));
        async move {
            let bytes = remote.whole(&full).await?;
            let parent = path.parent().unwrap_or(root);
            let written = fs::create_dir_all(parent).and_then(|()| fs::write(&path, bytes));
            written.map_err(|e| FormatError::io(&path, &e))
        }
    });
    block_on(stream::iter(asked).buffered(8).try_collect::<Vec<()>>())?;
    Ok(())
}

// ---- object stores ----

fn store(
    scheme: &str,
    bucket: &str,
    key: &str,
    reads: Reads,
    settings: &Settings,
) -> Result<Located, FormatError> {
    let store = Store::open(scheme, bucket, settings.silence)?;
    let object = match key.is_empty() {
        true => None,
        false => block_on(store.object(key))?,
    };
    let (prefix, file) = match &object {
        Some(object) => {
            let prefix = key.rsplit_once('/').map_or("", |(prefix, _)| prefix);
            (prefix.to_owned(), Some(object.name.clone()))
        }
        None => (key.to_owned(), None),
    };
    let objects = block_on(store.list(&prefix))?;
    if objects.is_empty() {
        let message = "the store has no object there";
        return Err(FormatError::new(ErrorCode::NotFound, message)
            .in_file(Path::new(&store.name_of(key)))
            .hint("check bucket and prefix"));
    }
    let names: Vec<String> = objects.iter().map(|o| o.name.clone()).collect();
    let origin = Origin {
        name: store.name_of(&prefix).trim_end_matches('/').to_owned(),
        ..Origin::default()
    };
    let place = Place {
        directory: String::new(),
        file,
    };
    let below: Vec<&str> = names.iter().map(String::as_str).collect();
    let objects = objects.into_iter().map(|o| (o.name.clone(), o)).collect();
    let reads = if reads == Reads::Whole {
        Reads::Ranges
    } else {
        reads
    };
    stand_in(
        Remote::Store(store, prefix, objects),
        &place,
        &below,
        origin,
        reads,
    )
}

// ---- web servers ----

/// Files that a checkpoint may have, for servers that list nothing.
const USUAL: [&str; 28] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "hadamard.json",
    "hadamard_packing.json",
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "certificate.json",
    "LICENSE",
    "README.md",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.gguf",
    "params.json",
    "preprocessor_config.json",
    "vocab.txt",
];

/// The URL of a file beside or below a base.
fn http_url(base: &Url, name: &str) -> Result<Url, FormatError> {
    let mut url = base.clone();
    // a query belongs to the file that it was given with
    if base.path().ends_with('/') {
        url.set_query(None);
        url = url
            .join(&quoted_path(name))
            .map_err(|e| FormatError::new(ErrorCode::Usage, e.to_string()))?;
    }
    Ok(url)
}

/// Size and validator of a file; `None` if the server has none.
async fn http_file(
    client: &Client,
    base: &Url,
    name: &str,
) -> Result<Option<RemoteFile>, FormatError> {
    let url = http_url(base, name)?;
    let shown = without_secrets(url.as_str());
    let place = |e: FormatError| e.in_file(Path::new(&shown));
    let head = client
        .send(&Request::new(Method::HEAD, url.clone()), &shown)
        .await?;
    let status = head.status().as_u16();
    if matches!(status, 404 | 410) {
        return Ok(None);
    }
    let length = |answer: &super::client::Answer| {
        answer
            .header("content-length")
            .and_then(|l| l.trim().parse().ok())
    };
    let (answer, len): (_, Option<u64>) = match status {
        200 => {
            let len = length(&head);
            (head, len)
        }
        // signed URLs are for one method
        401 | 403 | 405 | 501 => {
            let mut request = Request::get(url.clone());
            request.headers.insert(
                "range",
                reqwest::header::HeaderValue::from_static("bytes=0-0"),
            );
            let answer = client.send(&request, &shown).await?;
            let total = answer
                .header("content-range")
                .and_then(|r| r.rsplit('/').next()?.trim().parse().ok());
            match answer.status().as_u16() {
                206 => (answer, total),
                200 => {
                    let len = length(&answer);
                    (answer, len)
                }
                404 | 410 => return Ok(None),
                _ => return Err(place(status_error(&answer, false))),
            }
        }
        _ => return Err(place(status_error(&head, false))),
    };
    if answer.is_page() && !name.ends_with(".md") {
        return Err(place(page(&answer.url)));
    }
    let Some(len) = len else {
        let message = "expected the length of the file, found a server that does not tell it";
        return Err(place(
            FormatError::new(ErrorCode::BadResponse, message)
                .hint("download the file first, for example with curl"),
        ));
    };
    let version = answer
        .header("etag")
        .map(plain_etag)
        .or_else(|| answer.header("last-modified"));
    let version = version.map(str::to_owned);
    Ok(Some(RemoteFile::new(
        client.clone(),
        shown,
        url,
        len,
        version,
    )))
}

/// The names that a listing of a web server links to.
fn linked_names(html: &str) -> Vec<String> {
    let mut names = BTreeSet::new();
    for piece in html.split("href=").skip(1) {
        let quote = piece.chars().next().filter(|c| ['"', '\''].contains(c));
        let link = match quote {
            Some(quote) => piece.get(1..).and_then(|p| p.split(quote).next()),
            None => piece.split([' ', '>']).next(),
        };
        let link = link.unwrap_or_default();
        let link = link.strip_prefix("./").unwrap_or(link);
        let name = percent_decode_str(link).decode_utf8().unwrap_or_default();
        if is_plain_path(&name) && !name.contains('/') && !link.contains(['?', '#']) {
            names.insert(name.into_owned());
        }
    }
    names.into_iter().collect()
}

fn http(text: &str, reads: Reads, settings: &Settings) -> Result<Located, FormatError> {
    runtime()?;
    let client = Client::new(settings, false)?;
    let mut base = parse_url(text)?;
    let last = base
        .path()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let last = percent_decode_str(&last)
        .decode_utf8()
        .unwrap_or_default()
        .into_owned();
    let is_file = is_weights(&last) || is_index(&last);
    let reads = if reads == Reads::Whole {
        Reads::Ranges
    } else {
        reads
    };
    let mut names: Vec<String> = Vec::new();
    let mut file = None;
    // a signed URL opens one file
    let is_signed = is_file && base.query().is_some();
    if is_file {
        names.push(last.clone());
        file = Some(last.clone());
    }
    if !is_signed {
        let directory = match is_file {
            true => {
                let path = base.path().to_owned();
                path.get(..path.len() - path.rsplit('/').next().map_or(0, str::len))
                    .unwrap_or("/")
                    .to_owned()
            }
            false => format!("{}/", base.path().trim_end_matches('/')),
        };
        base.set_path(&directory);
        base.set_query(None);
        let listed = block_on(listing(&client, &base))?;
        let is_needed = !(is_file && last.ends_with(".gguf"));
        let found = match listed.is_empty() {
            false => listed,
            true if is_needed => block_on(probed(&client, &base, &last))?,
            true => block_on(probed_parts(&client, &base, &last))?,
        };
        names.extend(found);
        names.sort();
        names.dedup();
    }
    let shown = without_secrets(base.as_str());
    let name = match is_signed {
        true => shown
            .rsplit_once('/')
            .map_or(shown.as_str(), |(d, _)| d)
            .to_owned(),
        false => shown.trim_end_matches('/').to_owned(),
    };
    if names.is_empty() {
        let message = "the server lists no files there, and has no file of a usual name (model.safetensors, config.json)";
        return Err(FormatError::new(ErrorCode::NotFound, message)
            .in_file(Path::new(&name))
            .hint("name the file of the weights, for example https://HOST/DIR/model.gguf"));
    }
    let origin = Origin {
        name,
        ..Origin::default()
    };
    let place = Place {
        directory: String::new(),
        file,
    };
    let below: Vec<&str> = names.iter().map(String::as_str).collect();
    stand_in(Remote::Http(client, base), &place, &below, origin, reads)
}

/// What the server lists of a directory, if it lists anything.
async fn listing(client: &Client, base: &Url) -> Result<Vec<String>, FormatError> {
    const LONGEST: usize = 4 << 20;
    let shown = without_secrets(base.as_str());
    let mut answer = client.send(&Request::get(base.clone()), &shown).await?;
    if !answer.status().is_success() || !answer.is_page() || answer.url.path() != base.path() {
        return Ok(Vec::new());
    }
    let mut text = Vec::new();
    loop {
        // a listing that breaks off would hide files
        match answer.response.chunk().await {
            Ok(Some(chunk)) => text.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(e) => return Err(network_error(e).in_file(Path::new(&shown))),
        }
        if text.len() > LONGEST {
            return Ok(Vec::new());
        }
    }
    let names = linked_names(&String::from_utf8_lossy(&text));
    // a page that links to no weights is no listing of a model
    let is_model = names.iter().any(|name| is_weights(name) || is_index(name));
    Ok(if is_model { names } else { Vec::new() })
}

/// Which of some names the server has.
async fn present(
    client: &Client,
    base: &Url,
    names: Vec<String>,
) -> Result<Vec<String>, FormatError> {
    let asked = names.into_iter().map(|name| async move {
        let there = http_file(client, base, &name).await;
        match there {
            Ok(file) => Ok(file.map(|_| name)),
            // servers that answer every path with a page, or absent files with 403
            Err(e) if matches!(e.code, ErrorCode::BadResponse | ErrorCode::AccessDenied) => {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    });
    let found: Vec<Option<String>> = stream::iter(asked).buffered(8).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Which of the usual names the server has, with the shards of an index.
async fn probed(client: &Client, base: &Url, last: &str) -> Result<Vec<String>, FormatError> {
    let mut names: Vec<String> = USUAL.iter().map(|n| (*n).to_owned()).collect();
    if is_index(last) {
        names.push(last.to_owned());
    }
    let mut found = present(client, base, names).await?;
    let indices: Vec<String> = found
        .iter()
        .filter(|name| is_index(name))
        .cloned()
        .collect();
    for index in indices {
        let Some(file) = http_file(client, base, &index).await? else {
            continue;
        };
        let len = file.len();
        if len > LONGEST_SIDE {
            let message = format!("expected at most {LONGEST_SIDE} bytes, found {len}");
            return Err(
                FormatError::new(ErrorCode::LimitExceeded, message).in_file(Path::new(file.name()))
            );
        }
        let text = Arc::new(file).fetch(0..len).await?;
        let index = answers::json(&text).unwrap_or_default();
        let shards = index.get("weight_map").and_then(|map| map.as_object());
        let shards: BTreeSet<&str> = shards
            .into_iter()
            .flatten()
            .filter_map(|(_, v)| v.as_str())
            .collect();
        let shards = shards
            .into_iter()
            .filter(|s| is_plain_path(s) && is_weights(s));
        found.extend(present(client, base, shards.map(str::to_owned).collect()).await?);
    }
    Ok(found)
}

/// The parts of a split GGUF file.
async fn probed_parts(client: &Client, base: &Url, last: &str) -> Result<Vec<String>, FormatError> {
    let parts = bitnet_formats::weight_files(Path::new(last), &bitnet_formats::Limits::default());
    let parts = parts.unwrap_or_default();
    let names = parts
        .iter()
        .take(4096)
        .filter_map(|p| p.to_str())
        .filter(|name| *name != last);
    present(client, base, names.map(str::to_owned).collect()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_of_web_servers_are_read() {
        let html = r#"<a href="../">up</a><a href='model%20a.gguf'>x</a><a href=config.json>y</a>
            <a href="/abs">z</a><a href="?C=N">s</a><a href="./b.safetensors">b</a><a href="sub/">d</a>"#;
        assert_eq!(
            linked_names(html),
            ["b.safetensors", "config.json", "model a.gguf"]
        );
    }

    #[test]
    fn urls_of_files_keep_only_their_own_query() {
        let url = |base: &str, name: &str| {
            http_url(&Url::parse(base).unwrap(), name)
                .unwrap()
                .to_string()
        };
        assert_eq!(url("http://h/d/", "a b.json"), "http://h/d/a%20b.json");
        assert_eq!(url("http://h/d/?x=1", "a"), "http://h/d/a");
        assert_eq!(
            url("http://h/d/a.gguf?sig=1", "a.gguf"),
            "http://h/d/a.gguf?sig=1"
        );
    }
}
