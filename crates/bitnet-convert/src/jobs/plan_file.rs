//! The file of a plan, `PLAN.json`.
//!
//! Invariant: it says what to convert and how, and nothing that is different on another machine. Every job plans again from
//! the headers of the source; `plan_sha256` proves that all jobs mean the same.

use crate::args::{Embeddings, SourceArgs};
use crate::plan::Request;
use crate::targets::{self, Target};
use bitnet_cli::{Failure, Location};
use bitnet_formats::{Artifact, ErrorCode, FormatError, Limits, ScaleRounding, read_file};
use clap::ValueEnum;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// The version of the file's layout.
const VERSION: u64 = 1;

/// Where a plan is written.
#[derive(Debug)]
pub struct PlanPlace<'a> {
    path: &'a Path,
    remote: Option<Location>,
    force: bool,
}

impl<'a> PlanPlace<'a> {
    /// Refuses a place that cannot be written to.
    ///
    /// # Errors
    /// `exists`, unless an older plan may be replaced; `usage` for addresses other than those of object stores.
    pub fn new(path: &'a Path, force: bool) -> Result<Self, Failure> {
        let remote = Location::parse(path)?;
        match &remote {
            Some(location) => bitnet_remote::write_object(location, None, force)?,
            None => Artifact::check(path, force)?,
        }
        Ok(Self {
            path,
            remote,
            force,
        })
    }

    /// Writes the plan.
    ///
    /// # Errors
    /// As [`new`](Self::new); whatever the disk or the store refuses.
    pub fn write(&self, content: &[u8]) -> Result<(), Failure> {
        if let Some(location) = &self.remote {
            return Ok(bitnet_remote::write_object(
                location,
                Some(content),
                self.force,
            )?);
        }
        let mut artifact = Artifact::create(self.path, self.force)?;
        artifact.write(content)?;
        artifact.finish()?;
        Ok(())
    }

    /// What the plan is called; without what may be secret.
    pub fn name(&self) -> String {
        match &self.remote {
            Some(location) => location.to_string(),
            None => self.path.display().to_string(),
        }
    }
}

/// What a plan says.
#[derive(Debug, Clone)]
pub struct PlanFile {
    pub plan_sha256: String,
    pub source: PathBuf,
    pub output: PathBuf,
    pub target: &'static Target,
    pub embeddings: Embeddings,
    pub allow_scale_rounding: bool,
    pub split_max_size: Option<u64>,
    pub layout: Option<String>,
    pub ternary_trained: bool,
}

/// A path that means the same in every directory; an address stays as it is, and one with a secret is refused.
pub fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    if let Some(location) = Location::parse(path)? {
        // secrets are left out where an address is shown
        if matches!(location, Location::Http(_))
            && !path.as_os_str().eq_ignore_ascii_case(location.to_string())
        {
            let message = format!(
                "{location}: the address has a password or a signature, which a plan would show"
            );
            return Err(Failure::usage(message).hint(
                "use an address without secrets, or download the source and plan with its path",
            ));
        }
        return Ok(path.to_owned());
    }
    std::path::absolute(path).map_err(|e| FormatError::io(path, &e).into())
}

impl PlanFile {
    /// The JSON of the file, without what is there for readers only.
    pub fn to_json(&self) -> Value {
        let embeddings = self.embeddings.to_possible_value();
        json!({
            "plan": VERSION,
            "tool": concat!("bitnet-convert ", env!("CARGO_PKG_VERSION")),
            "plan_sha256": self.plan_sha256,
            "source": self.source.display().to_string(),
            "output": self.output.display().to_string(),
            "target": self.target.name,
            "embeddings": embeddings.as_ref().map(|value| value.get_name()),
            "allow_scale_rounding": self.allow_scale_rounding,
            "split_max_size": self.split_max_size,
            "layout": self.layout,
            "ternary_trained": self.ternary_trained,
        })
    }

    /// Reads a plan of this disk or of an object store.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let limit = Limits::default().certificate_bytes;
        let text = match Location::parse(path)? {
            Some(location) => bitnet_remote::read_object(&location, limit)?,
            None => read_file(path, limit)?,
        };
        Self::parse(path, &text)
    }

    /// Reads the text of a plan; errors name `path`.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, Failure> {
        let value: Value = serde_json::from_slice(text).map_err(|e| {
            FormatError::new(ErrorCode::Malformed, e.to_string())
                .in_file(path)
                .hint("use a plan that `bitnet-convert plan` wrote")
                .because(e)
        })?;
        Self::of_json(&value).map_err(|key| {
            let found: String = value
                .get(key)
                .map_or("nothing".to_owned(), Value::to_string)
                .chars()
                .take(60)
                .collect();
            let message = format!("{}: the key `{key}` of the plan is {found}", path.display());
            Failure::new(ErrorCode::Malformed, message)
                .hint("use a plan that `bitnet-convert plan` of this version wrote")
        })
    }

    /// Or the first key that is absent or of another form.
    fn of_json(value: &Value) -> Result<Self, &'static str> {
        let empty = Map::new();
        let object = value.as_object().unwrap_or(&empty);
        let at = |key: &'static str| object.get(key).ok_or(key);
        let text = |key: &'static str| at(key)?.as_str().ok_or(key);
        let flag = |key: &'static str| at(key)?.as_bool().ok_or(key);
        if at("plan")?.as_u64() != Some(VERSION) {
            return Err("plan");
        }
        Ok(Self {
            plan_sha256: text("plan_sha256")?.to_owned(),
            source: text("source")?.into(),
            output: text("output")?.into(),
            target: targets::by_name(text("target")?).ok_or("target")?,
            embeddings: Embeddings::from_str(text("embeddings")?, false)
                .map_err(|_| "embeddings")?,
            allow_scale_rounding: flag("allow_scale_rounding")?,
            split_max_size: match at("split_max_size")? {
                Value::Null => None,
                size => Some(size.as_u64().ok_or("split_max_size")?),
            },
            layout: match at("layout")? {
                Value::Null => None,
                name => Some(name.as_str().ok_or("layout")?.to_owned()),
            },
            ternary_trained: flag("ternary_trained")?,
        })
    }

    /// How the source is read.
    pub fn how(&self) -> SourceArgs {
        SourceArgs {
            layout: self.layout.clone(),
            against: None,
            stream: true,
            ternary_trained: self.ternary_trained,
        }
    }

    /// What is asked for; `output` is the path of this disk that the output has, or stands for it.
    pub fn request<'a>(&self, output: &'a Path) -> Request<'a> {
        Request {
            output,
            target: self.target,
            embeddings: self.embeddings,
            rounding: match self.allow_scale_rounding {
                true => ScaleRounding::Allow,
                false => ScaleRounding::Refuse,
            },
            split_max_size: self.split_max_size,
            // refused when a plan is made
            unfold: false,
        }
    }
}
