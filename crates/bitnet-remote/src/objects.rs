//! Small objects that are read and written as a whole: plans.
//!
//! Invariant: an object is replaced only if the caller says so.

use crate::Location;
use bitnet_formats::{ErrorCode, FormatError};
use std::path::Path;

fn parts(location: &Location) -> Result<(&'static str, &str, &str), FormatError> {
    match location {
        Location::Store {
            scheme,
            bucket,
            key,
        } if !key.is_empty() => Ok((scheme, bucket, key)),
        _ => Err(FormatError::new(
            ErrorCode::Usage,
            "expected a path or an object of a store (s3://, gs://, az://)",
        )
        .in_file(Path::new(&location.to_string()))
        .hint("name a file of this disk, or an object: s3://BUCKET/NAME")),
    }
}

/// The content of an object of a store.
///
/// # Errors
/// `usage` for other locations; `not-found`, `access-denied`, `network`; `limit-exceeded`.
pub fn read_object(location: &Location, limit: u64) -> Result<Vec<u8>, FormatError> {
    let (scheme, bucket, key) = parts(location)?;
    #[cfg(feature = "net")]
    {
        let silence = crate::Settings::from_env().silence;
        let store = crate::net::store::Store::open(scheme, bucket, silence)?;
        let found = crate::net::block_on(store.read(key, limit))?;
        found.ok_or_else(|| {
            FormatError::new(
                ErrorCode::NotFound,
                "the store has no such object or bucket",
            )
            .in_file(Path::new(&store.name_of(key)))
            .hint("check bucket and name")
        })
    }
    #[cfg(not(feature = "net"))]
    {
        let _ = limit;
        Err(crate::not_compiled(&format!("{scheme}://{bucket}/{key}")))
    }
}

/// Writes an object of a store; without content it is only checked that it may be written.
///
/// # Errors
/// As [`read_object`]; `exists` for an object that is there, unless it may be replaced.
pub fn write_object(
    location: &Location,
    content: Option<&[u8]>,
    replace: bool,
) -> Result<(), FormatError> {
    let (scheme, bucket, key) = parts(location)?;
    #[cfg(feature = "net")]
    {
        let silence = crate::Settings::from_env().silence;
        let store = crate::net::store::Store::open(scheme, bucket, silence)?;
        crate::net::block_on(async {
            if !replace {
                crate::net::upload::refuse_existing(&store, &[key.to_owned()]).await?;
            }
            match content {
                Some(content) => store.write(key, content.to_vec(), &[], replace).await,
                None => crate::net::upload::check(&store, key).await,
            }
        })
    }
    #[cfg(not(feature = "net"))]
    {
        let _ = (content, replace);
        Err(crate::not_compiled(&format!("{scheme}://{bucket}/{key}")))
    }
}
