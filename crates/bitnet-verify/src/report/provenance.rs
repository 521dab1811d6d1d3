//! Where a report comes from: when, by which command and program, on which machine, of which files.
//!
//! Invariant: nothing names a directory of this machine, its user or its name; texts of the report lose them here.

use crate::checks::report::Report;
use crate::checks::side::Input;
use crate::hash::sha256;
use crate::local::{Public, file_name};
use crate::verdict::{Difference, Verdict};
use bitnet_checkpoint::{Certificate, Checkpoint};
use bitnet_cli::Progress;
use bitnet_formats::{FormatError, named, origin_of};
use bitnet_kernels::cpu_model;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileFacts {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    /// Absent for files that would be fetched for the purpose.
    pub(crate) sha256: Option<String>,
}

/// One of the models, or what is known of one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelFacts {
    /// `artifact`, `source`.
    pub(crate) role: &'static str,
    pub(crate) name: String,
    /// Container and storage of the linears.
    pub(crate) format: String,
    pub(crate) bytes: u64,
    /// Of the linears with their scales, and of all weights.
    pub(crate) bits_per_weight: Option<[f64; 2]>,
    pub(crate) parameters: u64,
    pub(crate) repository: Option<String>,
    pub(crate) commit: Option<String>,
    pub(crate) files: Vec<FileFacts>,
}

impl ModelFacts {
    /// Reads every file once, to hash it.
    pub(crate) fn of(
        role: &'static str,
        input: &Input,
        progress: &Progress,
    ) -> Result<Self, FormatError> {
        let checkpoint = &input.checkpoint;
        let origin = origin_of(&checkpoint.path).unwrap_or_default();
        let mut files = Vec::new();
        for part in &checkpoint.file.parts {
            let hash = match origin.headers_only {
                true => None,
                false => Some(sha256(&**part, 0..part.len(), progress)?),
            };
            files.push(FileFacts {
                name: file_name(&named(part.path())),
                bytes: part.len(),
                sha256: hash,
            });
        }
        let tensors = checkpoint.file.tensors().iter();
        let stored: u64 = tensors.map(|tensor| tensor.len).sum();
        let weights = Weights::of(checkpoint)?;
        let per = |bytes: u64, of: u64| 8.0 * bytes as f64 / of.max(1) as f64;
        Ok(Self {
            role,
            name: file_name(&named(&checkpoint.path)),
            format: format!(
                "{}: {}",
                checkpoint.file.container,
                weights.storage.join(", ")
            ),
            bytes: files.iter().map(|file| file.bytes).sum(),
            bits_per_weight: Some([
                per(weights.ternary_bytes, weights.ternary),
                per(stored, weights.all),
            ]),
            parameters: weights.all,
            repository: origin.repository,
            commit: origin.commit,
            files,
        })
    }

    /// The source that a certificate names.
    pub(crate) fn certified(certificate: &Certificate) -> Self {
        let origin = certificate.origin.as_ref();
        let files = certificate.source.iter().map(|file| FileFacts {
            name: file.name.clone(),
            bytes: file.bytes,
            sha256: Some(file.sha256.clone()),
        });
        let files: Vec<FileFacts> = files.collect();
        Self {
            role: "certified source",
            name: origin.map_or(String::new(), |o| file_name(Path::new(&o.location))),
            format: String::new(),
            bytes: files.iter().map(|file| file.bytes).sum(),
            bits_per_weight: None,
            parameters: 0,
            repository: origin.and_then(|o| o.repository.clone()),
            commit: origin.and_then(|o| o.commit.clone()),
            files,
        }
    }

    /// With names that may be public: those of a certificate come from strangers.
    fn cleaned(mut self, public: &Public) -> Self {
        let clean = |text: &mut String| *text = public.text(text);
        clean(&mut self.name);
        clean(&mut self.format);
        let origin = [&mut self.repository, &mut self.commit];
        origin.into_iter().flatten().for_each(clean);
        for file in &mut self.files {
            clean(&mut file.name);
        }
        self
    }

    fn to_json(&self) -> Value {
        let file = |file: &FileFacts| json!({"name": file.name, "bytes": file.bytes, "sha256": file.sha256});
        json!({
            "role": self.role,
            "name": self.name,
            "format": self.format,
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight.map(|bits| bits[0]),
            "bits_per_weight_of_all": self.bits_per_weight.map(|bits| bits[1]),
            "parameters": self.parameters,
            "repository": self.repository,
            "commit": self.commit,
            "files": self.files.iter().map(file).collect::<Value>(),
        })
    }
}

/// How many weights there are, and how they are stored.
#[derive(Default)]
struct Weights {
    all: u64,
    ternary: u64,
    ternary_bytes: u64,
    storage: Vec<String>,
}

impl Weights {
    fn of(checkpoint: &Checkpoint) -> Result<Self, FormatError> {
        let mut weights = Self::default();
        for slot in checkpoint.slots() {
            let elements = checkpoint.config.shape(slot).iter().product::<usize>() as u64;
            weights.all += elements;
            if checkpoint.is_ternary(slot) {
                let source = checkpoint.linear(slot)?;
                weights.ternary += elements;
                weights.ternary_bytes += source.info.len;
                weights.ternary_bytes += source.scale_tensor().map_or(0, |info| info.len);
                let storage = source.describe();
                if !weights.storage.contains(&storage) {
                    weights.storage.push(storage);
                }
            }
        }
        Ok(weights)
    }
}

/// Where a report comes from.
#[derive(Debug, Default)]
pub(crate) struct Provenance {
    /// `2026-11-30 17:55 UTC`
    pub(crate) date: String,
    pub(crate) command: String,
    /// Version, commit and target of the program.
    pub(crate) program: String,
    /// CPU and system.
    pub(crate) machine: String,
    /// Kernels that computed logits.
    pub(crate) kernels: Vec<String>,
    pub(crate) seconds: f64,
    pub(crate) models: Vec<ModelFacts>,
    /// Other inputs: what they are, and their names.
    pub(crate) others: Vec<(&'static str, String)>,
    pub(super) public: Public,
}

/// What a report is made of, as the command line names it.
pub(crate) struct Named<'a> {
    /// The words of the command line, without the name of the program.
    pub(crate) words: &'a [OsString],
    /// Every input: what it is, and its path.
    pub(crate) inputs: Vec<(&'static str, &'a Path)>,
    /// Paths that stand for inputs on this machine.
    pub(crate) located: Vec<&'a Path>,
    pub(crate) kernels: Vec<String>,
}

impl Provenance {
    pub(crate) fn new(named: &Named<'_>, models: Vec<ModelFacts>, took: Duration) -> Self {
        let paths = named.inputs.iter().map(|(_, path)| *path);
        let public = Public::knowing(paths.chain(named.located.iter().copied()));
        let version = bitnet_cli::long_version("");
        let version: Vec<&str> = version
            .lines()
            .filter(|line| !line.starts_with("kernel"))
            .collect();
        let cpu = cpu_model().unwrap_or_else(|| "unknown CPU".to_owned());
        let roles: Vec<&str> = models.iter().map(|model| model.role).collect();
        let others = named
            .inputs
            .iter()
            .filter(|(role, _)| !roles.contains(role));
        Self {
            date: date(now()),
            command: command(named.words, &public),
            program: format!("bitnet-verify {}", version.join(", ")),
            machine: format!(
                "{cpu} ({} {})",
                std::env::consts::OS,
                std::env::consts::ARCH
            ),
            kernels: named.kernels.clone(),
            seconds: took.as_secs_f64(),
            others: others
                .map(|(role, path)| (*role, file_name(path)))
                .collect(),
            models: models.into_iter().map(|m| m.cleaned(&public)).collect(),
            public,
        }
    }

    /// What the report is about: the artifact.
    pub(crate) fn subject(&self) -> &str {
        let models = self.models.iter().map(|m| (m.role, m.name.as_str()));
        let others = self
            .others
            .iter()
            .map(|(role, name)| (*role, name.as_str()));
        let mut all = models.chain(others);
        let first = all.find(|(role, _)| *role == "artifact");
        first.map_or("", |(_, name)| name)
    }

    /// The report with names in place of paths.
    pub(crate) fn publish(&self, report: &Report) -> Report {
        let mut report = report.clone();
        let clean = |text: &mut String| *text = self.public.text(text);
        for Verdict {
            detail,
            differences,
            rows,
            ..
        } in &mut report.checks
        {
            clean(detail);
            for Difference { place, what, .. } in differences {
                clean(place);
                clean(what);
            }
            for (name, value) in rows {
                clean(name);
                clean(value);
            }
        }
        for fault in &mut report.faults {
            clean(&mut fault.what);
            clean(&mut fault.tensor);
        }
        report
    }

    pub(crate) fn to_json(&self) -> Value {
        let others = self.others.iter();
        let others = others.map(|(role, name)| json!({"role": role, "name": name}));
        json!({
            "date": self.date,
            "command": self.command,
            "program": self.program,
            "machine": self.machine,
            "kernels": self.kernels,
            "seconds": self.seconds,
            "models": self.models.iter().map(ModelFacts::to_json).collect::<Value>(),
            "others": others.collect::<Value>(),
        })
    }
}

/// The command with names in place of paths.
fn command(words: &[OsString], public: &Public) -> String {
    let mut line = String::from("bitnet-verify");
    for word in words {
        let word = word.to_string_lossy();
        let (flag, value) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (format!("{flag}="), value),
            _ => (String::new(), &*word),
        };
        let value = match value.contains("://") || !value.contains(['/', '\\']) {
            true => public.text(value),
            false => file_name(Path::new(value)),
        };
        line.push_str(&format!(" {flag}{}", bitnet_cli::shell_word(value)));
    }
    line
}

/// Seconds since 1970; `SOURCE_DATE_EPOCH` sets them, for pages that are to be made again.
fn now() -> u64 {
    let set = std::env::var("SOURCE_DATE_EPOCH").ok();
    let set = set.and_then(|text| text.parse().ok());
    set.unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        since.map_or(0, |since| since.as_secs())
    })
}

/// A time in UTC, to the minute.
fn date(seconds: u64) -> String {
    let (mut days, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while year < 9999 {
        let length = if is_leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (day, hour, minute) = (days + 1, second / 3600, second / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_709_164_800, "2024-02-29 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }

    #[test]
    fn names_from_strangers_are_public_in_models_and_in_rows() {
        let token = "hf_abcdefghijklmnopqrstuvWXYZ1234";
        let model = ModelFacts {
            role: "certified source",
            name: "/home/ann/ck".to_owned(),
            format: "gguf: I2_S".to_owned(),
            bytes: 1,
            bits_per_weight: None,
            parameters: 0,
            repository: Some(format!("o/{token}")),
            commit: Some("/root/x/y".to_owned()),
            files: vec![FileFacts {
                name: "/home/ann/models/m.gguf".to_owned(),
                bytes: 1,
                sha256: None,
            }],
        };
        let named = Named {
            words: &[],
            inputs: Vec::new(),
            located: Vec::new(),
            kernels: Vec::new(),
        };
        let provenance = Provenance::new(&named, vec![model], Duration::ZERO);
        let model = &provenance.models[0];
        assert_eq!(
            (model.name.as_str(), model.format.as_str()),
            ("ck", "gguf: I2_S")
        );
        assert_eq!(model.files[0].name, "m.gguf");
        assert_eq!(model.repository.as_deref(), Some("o/[removed]"));
        assert_eq!(model.commit.as_deref(), Some("y"));
        let row = ("/home/ann/a.json".to_owned(), format!("{token} of 3"));
        let check = Verdict::same("digest", "all").with_rows(vec![row]);
        let report = Report {
            checks: vec![check],
            ..Report::default()
        };
        let rows = provenance.publish(&report).checks.remove(0).rows;
        assert_eq!(rows, [("a.json".to_owned(), "[removed] of 3".to_owned())]);
    }

    #[test]
    fn a_command_names_files_and_no_directories() {
        let words = [
            "/home/ann/m.gguf",
            "--against",
            "../b c/ck",
            "--html=out/r.html",
            "--max-kl",
            "1e-3",
            "hf://o/n@main",
        ];
        let words = words.map(OsString::from);
        assert_eq!(
            command(&words, &Public::default()),
            "bitnet-verify m.gguf --against ck --html=r.html --max-kl 1e-3 hf://o/n@main"
        );
    }
}
