//! The header of a file to be written.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::entry::METADATA;
use super::{DATA_ALIGNMENT, FORMAT};
use crate::container::{Header, WritePlan};
use crate::encoding::{Encoding, PlainType};
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use std::collections::HashSet;

pub(super) fn write_header(plan: &WritePlan) -> Result<Header, FormatError> {
    let mut json = String::from("{");
    push_string(&mut json, METADATA);
    json.push_str(":{");
    let mut entries = Vec::with_capacity(plan.metadata.0.len().saturating_add(1));
    if plan.metadata.get(FORMAT.0).is_none() {
        entries.push(FORMAT);
    }
    let mut keys = HashSet::new();
    for (key, value) in &plan.metadata.0 {
        let cannot =
            |message: &str| FormatError::new(ErrorCode::TargetCannotHold, message).in_tensor(key);
        let text = value
            .as_str()
            .ok_or_else(|| cannot("safetensors metadata must be text"))?;
        if !keys.insert(key) {
            return Err(cannot("the metadata has this key twice"));
        }
        entries.push((key, text));
    }
    for (i, (key, value)) in entries.into_iter().enumerate() {
        json.push_str(if i == 0 { "" } else { "," });
        push_string(&mut json, key);
        json.push(':');
        push_string(&mut json, value);
    }
    json.push('}');

    let mut starts = Vec::with_capacity(plan.tensors.len());
    let mut start = 0u64;
    let mut names = HashSet::new();
    for tensor in &plan.tensors {
        let fail = |code, message: String| FormatError::new(code, message).in_tensor(&tensor.name);
        if tensor.name == METADATA || !names.insert(tensor.name.as_str()) {
            let message = "expected each name once, and none of them `__metadata__`";
            return Err(fail(ErrorCode::TargetCannotHold, message.to_owned()));
        }
        // packed trits are bytes here; what they mean is said by the metadata or config.json
        let plain = match tensor.encoding {
            Encoding::Plain(plain) => plain,
            Encoding::Ternary(_) => PlainType::U8,
            Encoding::Block(_) | Encoding::Foreign(_) | Encoding::Unknown(_) => {
                let message = format!("safetensors has no type {}", tensor.encoding.name());
                return Err(fail(ErrorCode::TargetCannotHold, message));
            }
        };
        let needed = (tensor.shape.iter())
            .try_fold(plain.size() as u64, |n, &size| n.checked_mul(size as u64));
        if needed != Some(tensor.len) {
            let message = format!(
                "{} {:?} does not take the planned {} bytes",
                plain.safetensors_name(),
                tensor.shape,
                tensor.len
            );
            return Err(fail(ErrorCode::WrongShape, message));
        }
        let end = start.checked_add(tensor.len).ok_or_else(|| {
            fail(
                ErrorCode::TargetCannotHold,
                "the file passes 2^64 bytes".to_owned(),
            )
        })?;
        json.push(',');
        push_string(&mut json, &tensor.name);
        json.push_str(&format!(
            ":{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{start},{end}]}}",
            plain.safetensors_name(),
            tensor.shape
        ));
        starts.push(start);
        start = end;
    }
    json.push('}');

    let too_long = || {
        let message = format!(
            "the header passes the {} bytes that readers allow",
            Limits::default().header_bytes
        );
        FormatError::new(ErrorCode::TargetCannotHold, message)
    };
    let data_start = (json.len() as u64)
        .checked_add(8)
        .and_then(|len| len.checked_next_multiple_of(DATA_ALIGNMENT))
        .ok_or_else(too_long)?;
    let header_len = data_start.saturating_sub(8);
    if header_len > Limits::default().header_bytes {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(data_start as usize);
    bytes.extend_from_slice(&header_len.to_le_bytes());
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(data_start as usize, b' ');
    let total = data_start.checked_add(start).ok_or_else(too_long)?;
    // below `total`, so this cannot wrap
    let offsets = starts
        .into_iter()
        .map(|s| s.saturating_add(data_start))
        .collect();
    Ok(Header {
        bytes,
        offsets,
        total,
        frames: None,
    })
}

/// Appends a JSON string literal.
fn push_string(json: &mut String, text: &str) {
    json.push_str(&serde_json::Value::from(text).to_string());
}
