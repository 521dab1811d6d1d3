//! Outputs in object stores.
//!
//! Invariant: a path below the scratch directory stands for one object, and what is written there is in the store only
//! when it was uploaded.

use crate::{Location, Stored, Watch};
use bitnet_formats::{ErrorCode, FormatError, Mount, ScratchDirectory};
use std::path::{Path, PathBuf};

/// An output in an object store: a directory of this disk until it is uploaded.
#[derive(Debug)]
pub struct StoreOutput {
    path: PathBuf,
    #[cfg(feature = "net")]
    store: crate::net::store::Store,
    #[cfg(feature = "net")]
    parent: String,
    _mount: Mount,
    scratch: ScratchDirectory,
}

/// An object that gets another name if its content is what it should be.
#[derive(Debug, Clone)]
pub struct Carried {
    /// Stands for the object that exists.
    pub from: PathBuf,
    /// Stands for the new one.
    pub to: PathBuf,
    /// The length that it should have.
    pub bytes: u64,
    /// The SHA-256 that it should have, lower-case hexadecimal.
    pub sha256: String,
}

impl StoreOutput {
    /// Prepares an output at a location, which names a file or a directory.
    ///
    /// # Errors
    /// `usage` for locations that cannot be written to; `access-denied`, `not-found` and `network` if the store cannot be.
    pub fn prepare(location: &Location) -> Result<Self, FormatError> {
        let refuse = |message: &str, hint: &str| {
            Err(FormatError::new(ErrorCode::Usage, message)
                .in_file(Path::new(&location.to_string()))
                .hint(hint))
        };
        match location {
            Location::Hub(_) => refuse(
                "an output cannot be written to a Hub directly",
                "write it to this disk, then run: bitnet-convert push OUT hf://OWNER/NAME",
            ),
            Location::Http(_) => refuse(
                "an output cannot be written to a web server",
                "write it to this disk or to an object store (s3://, gs://, az://)",
            ),
            Location::File(_) => refuse(
                "expected an object store, found a path",
                "write the path without file://",
            ),
            Location::Store { key, .. } if key.is_empty() => refuse(
                "the output needs a name behind the bucket",
                "name it: s3://BUCKET/NAME.gguf",
            ),
            Location::Store {
                scheme,
                bucket,
                key,
            } => Self::of(scheme, bucket, key),
        }
    }

    /// Where the output is written first.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(feature = "net")]
impl StoreOutput {
    fn of(scheme: &str, bucket: &str, key: &str) -> Result<Self, FormatError> {
        use crate::net;
        let silence = crate::Settings::from_env().silence;
        let store = net::store::Store::open(scheme, bucket, silence)?;
        net::block_on(net::upload::check(&store, key))?;
        let (parent, name) = key.rsplit_once('/').unwrap_or(("", key));
        let scratch = ScratchDirectory::create()?;
        let root = scratch.path().to_owned();
        let origin = bitnet_formats::Origin {
            name: store.name_of(parent).trim_end_matches('/').to_owned(),
            is_temporary: true,
            ..bitnet_formats::Origin::default()
        };
        Ok(Self {
            path: root.join(name),
            store,
            parent: parent.to_owned(),
            _mount: Mount::new(root, origin, Default::default()),
            scratch,
        })
    }

    /// The object that a path stands for.
    fn key(&self, path: &Path) -> String {
        let below = path.strip_prefix(self.scratch.path()).unwrap_or(path);
        let below = bitnet_formats::slashed(below);
        match self.parent.is_empty() {
            true => below,
            false => format!("{}/{below}", self.parent),
        }
    }

    fn named(&self, files: &[PathBuf]) -> Vec<(String, PathBuf)> {
        files.iter().map(|f| (self.key(f), f.clone())).collect()
    }

    /// Uploads files below [`path`](Self::path), or beside it, and makes them visible when all bytes of all of them are
    /// in the store; the last one is visible last.
    ///
    /// # Errors
    /// `exists`, unless objects may be replaced; `access-denied`, `network`.
    pub fn publish(
        &self,
        files: &[PathBuf],
        replace: bool,
        watch: &dyn Watch,
    ) -> Result<(), FormatError> {
        self.publish_all(&[], files, replace, watch).map(|_| ())
    }

    /// The same for files behind objects that get other names: everything becomes visible when all bytes are in the store,
    /// the objects in reverse order before the files. Objects whose content is not what it should be are named by
    /// their place in the list, and nothing becomes visible then. What is at its final name already, with the content that
    /// it should have, is not written again, except if outputs may be replaced.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub fn publish_all(
        &self,
        carried: &[Carried],
        files: &[PathBuf],
        replace: bool,
        watch: &dyn Watch,
    ) -> Result<Vec<usize>, FormatError> {
        use crate::net::{carry, upload};
        let mut files = self.named(files);
        let mut moves: Vec<carry::Move> = carried
            .iter()
            .map(|part| carry::Move {
                from: self.key(&part.from),
                to: self.key(&part.to),
                bytes: part.bytes,
                sha256: part.sha256.clone(),
            })
            .collect();
        let mut places: Vec<usize> = (0..moves.len()).collect();
        crate::net::block_on(async {
            if !replace && moves.is_empty() {
                let keys: Vec<String> = files.iter().map(|(key, _)| key.clone()).collect();
                upload::refuse_existing(&self.store, &keys).await?;
            } else if !replace {
                let there = carry::already_there(&self.store, &moves, &files, watch).await?;
                let mut there = there.into_iter();
                let mut is_left = || there.next() == Some(false);
                let mut left = Vec::new();
                for (place, one) in moves.drain(..).enumerate() {
                    if is_left() {
                        left.push((place, one));
                    }
                }
                (places, moves) = left.into_iter().unzip();
                files.retain(|_| is_left());
            }
            let damaged = carry::publish(&self.store, &moves, &files, replace, watch).await?;
            let place = |at: &usize| places.get(*at).copied();
            Ok(damaged.iter().filter_map(place).collect())
        })
    }

    /// Uploads one file with notes about it, in place of what is there.
    ///
    /// # Errors
    /// `access-denied`, `network`.
    pub fn put(
        &self,
        file: &Path,
        notes: &[(&str, &str)],
        watch: &dyn Watch,
    ) -> Result<(), FormatError> {
        let files = self.named(&[file.to_owned()]);
        crate::net::block_on(crate::net::upload::upload(
            &self.store,
            &files,
            notes,
            watch,
        ))
    }

    /// Writes a small object with notes about it, in place of what is there.
    ///
    /// # Errors
    /// `access-denied`, `network`.
    pub fn write(
        &self,
        path: &Path,
        content: &[u8],
        notes: &[(&str, &str)],
    ) -> Result<(), FormatError> {
        let content = content.to_vec();
        crate::net::block_on(self.store.write(&self.key(path), content, notes, true))
    }

    /// What the store says of an object; `None` if there is none.
    ///
    /// # Errors
    /// `access-denied`, `network`.
    pub fn look(&self, path: &Path) -> Result<Option<Stored>, FormatError> {
        crate::net::block_on(self.store.look(&self.key(path)))
    }

    /// The content of an object; `None` if there is none.
    ///
    /// # Errors
    /// As [`look`](Self::look); `limit-exceeded`.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FormatError> {
        crate::net::block_on(self.store.read(&self.key(path), limit))
    }

    /// Whether an object is there and begins with these bytes.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn begins_with(&self, path: &Path, bytes: &[u8]) -> Result<bool, FormatError> {
        crate::net::block_on(self.store.begins_with(&self.key(path), bytes))
    }

    /// Length and SHA-256 of an object; `None` if there is none.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn digest(
        &self,
        path: &Path,
        watch: &dyn Watch,
    ) -> Result<Option<(u64, String)>, FormatError> {
        crate::net::block_on(crate::net::read_back::digest(
            &self.store,
            &self.key(path),
            watch,
        ))
    }

    /// The names of the objects below a path that stands for a directory.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn names_in(&self, directory: &Path) -> Result<Vec<String>, FormatError> {
        crate::net::block_on(async {
            let objects = self.store.list(&self.key(directory)).await?;
            Ok(objects.into_iter().map(|object| object.name).collect())
        })
    }

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn remove(&self, path: &Path) -> Result<(), FormatError> {
        crate::net::block_on(self.store.remove(&self.key(path)))
    }

    /// Refuses to begin when the output exists already.
    ///
    /// # Errors
    /// `exists`.
    pub fn refuse_existing(&self) -> Result<(), FormatError> {
        let key = self.key(&self.path);
        let keys = [
            format!("{key}/certificate.json"),
            format!("{key}.certificate.json"),
            key,
        ];
        crate::net::block_on(crate::net::upload::refuse_existing(&self.store, &keys))
    }
}

/// Without network code no output is ever prepared.
#[cfg(not(feature = "net"))]
#[allow(clippy::missing_errors_doc, missing_docs)]
impl StoreOutput {
    fn of(scheme: &str, bucket: &str, key: &str) -> Result<Self, FormatError> {
        Err(crate::not_compiled(&format!("{scheme}://{bucket}/{key}")))
    }

    fn absent<T>(&self) -> Result<T, FormatError> {
        Err(crate::not_compiled(&self.scratch.path().to_string_lossy()))
    }

    pub fn publish(&self, _: &[PathBuf], _: bool, _: &dyn Watch) -> Result<(), FormatError> {
        self.absent()
    }

    pub fn publish_all(
        &self,
        _: &[Carried],
        _: &[PathBuf],
        _: bool,
        _: &dyn Watch,
    ) -> Result<Vec<usize>, FormatError> {
        self.absent()
    }

    pub fn put(&self, _: &Path, _: &[(&str, &str)], _: &dyn Watch) -> Result<(), FormatError> {
        self.absent()
    }

    pub fn write(&self, _: &Path, _: &[u8], _: &[(&str, &str)]) -> Result<(), FormatError> {
        self.absent()
    }

    pub fn look(&self, _: &Path) -> Result<Option<Stored>, FormatError> {
        self.absent()
    }

    pub fn read(&self, _: &Path, _: u64) -> Result<Option<Vec<u8>>, FormatError> {
        self.absent()
    }

    pub fn begins_with(&self, _: &Path, _: &[u8]) -> Result<bool, FormatError> {
        self.absent()
    }

    pub fn digest(&self, _: &Path, _: &dyn Watch) -> Result<Option<(u64, String)>, FormatError> {
        self.absent()
    }

    pub fn names_in(&self, _: &Path) -> Result<Vec<String>, FormatError> {
        self.absent()
    }

    pub fn remove(&self, _: &Path) -> Result<(), FormatError> {
        self.absent()
    }

    pub fn refuse_existing(&self) -> Result<(), FormatError> {
        self.absent()
    }
}
