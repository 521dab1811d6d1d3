//! Records that programs write and read again: prompts, certificates, plans, logits; and what servers of models say.

use crate::record::Record;
use crate::scratch;
use bitnet_checkpoint::{Certificate, PartialCertificate, Seal};
use bitnet_remote::{Location, Settings, answers};
use bitnet_text::parse_prompt_file;
use bitnet_verify::Golden;
use std::collections::HashMap;
use std::path::Path;

/// A file of prompts.
pub(crate) fn prompts(data: &[u8], record: &mut Record) {
    record.result(&parse_prompt_file(data));
}

/// A certificate, whole or of one part; written again it says the same.
pub(crate) fn certificate(data: &[u8], record: &mut Record) {
    match Certificate::from_slice(data) {
        Ok(certificate) => {
            let json = certificate.to_json().expect("what was read can be written");
            let again = Certificate::from_json(&json).expect("what was written can be read");
            // what a damaged certificate hashes to depends on how it was written
            if !matches!(certificate.seal, Seal::Broken { .. }) {
                assert_eq!(
                    certificate, again,
                    "another certificate after writing it again"
                );
            }
            record.note(&certificate);
        }
        Err(error) => record.error(&error),
    }
    let Ok(value) = bitnet_formats::parse_json_value(data) else {
        return;
    };
    match PartialCertificate::from_json(&value) {
        Ok(partial) => {
            let again = PartialCertificate::from_json(&partial.to_json());
            let again = again.expect("what was written can be read");
            assert_eq!(partial.to_json(), again.to_json());
        }
        Err(error) => record.error(&error),
    }
}

/// The plan of a conversion on many machines.
pub(crate) fn plan(data: &[u8], record: &mut Record) {
    if let Err(failure) = bitnet_convert::check_plan(Path::new("plan.json"), data) {
        record.error(&failure.message);
    }
}

/// A file of recorded logits, with the prompts of the fixtures.
pub(crate) fn logits(data: &[u8], record: &mut Record) {
    let dir = scratch::below("golden");
    scratch::write(
        &dir.join("prompts.json"),
        br#"{"a": {"ids": [1, 2]}, "b": [3], "short": [1, 2, 3]}"#,
    );
    scratch::write(&dir.join("logits_f32.safetensors"), data);
    scratch::write(&dir.join("moe_f32.safetensors"), data);
    match Golden::read(&dir) {
        Ok(golden) => record.note(&(golden.logits, golden.routing)),
        Err(error) => record.error(&error),
    }
}

/// What names a model elsewhere, the settings of the environment, and answers of servers.
pub(crate) fn hub(data: &[u8], record: &mut Record) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(rest);
    match kind % 4 {
        0 => {
            let found = Location::parse(Path::new(&*text));
            // a file of this disk is shown as a path
            if let Ok(Some(location)) = &found
                && !matches!(location, Location::File(_))
            {
                let shown = location.to_string();
                let again = Location::parse(Path::new(&shown));
                assert!(
                    matches!(&again, Ok(Some(again)) if again.to_string() == shown),
                    "{shown:?} of {text:?} is read as another location: {again:?}"
                );
            }
            record.result(&found);
        }
        1 => {
            let lines = text.lines().filter_map(|line| line.split_once('='));
            let variables: HashMap<String, String> = lines
                .filter(|(name, _)| {
                    *name != "HF_TOKEN_PATH" && *name != "HF_HOME" && !name.starts_with("XDG")
                })
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .chain([("HF_TOKEN_PATH".to_owned(), "/nowhere".to_owned())])
                .collect();
            let settings = Settings::of(&variables);
            record.note(&(
                &settings.endpoint,
                settings.cache().map(std::path::Path::to_owned).ok(),
                settings.offline,
                settings.silence,
            ));
        }
        2 => match answers::json(rest) {
            Ok(info) => record.result(&answers::revision(&info)),
            Err(error) => record.error(&error),
        },
        _ => {
            let etag = answers::plain_etag(&text);
            record.note(&(answers::is_blob_name(etag), answers::content_range(&text)));
        }
    }
}
