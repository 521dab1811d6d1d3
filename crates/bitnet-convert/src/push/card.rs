//! The model card of an output.
//!
//! Invariant: every line follows from the certificate, the sizes of files, and the front matter of the cards before.

use crate::targets::{self, Kind};
use bitnet_checkpoint::{Certificate, Verdict};
use bitnet_cli::{human_bytes, shell_word};
use bitnet_formats::FormatError;
use bitnet_remote::Repository;
use std::fmt::Write;
use std::path::PathBuf;

/// Keys that a card takes over from the card of the source.
const CARRIED: [&str; 6] = [
    "license",
    "license_name",
    "license_link",
    "language",
    "pipeline_tag",
    "base_model",
];

/// Keys of a card's front matter that are carried over, as the lines of YAML that say them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontMatter(Vec<(String, String)>);

impl FrontMatter {
    /// What a card says in its front matter; what is no front matter says nothing.
    pub fn of_card(text: &str) -> Self {
        let mut found = Self::default();
        let text = text.trim_start_matches('\u{feff}');
        let mut lines = text.lines();
        if lines.next().map(str::trim_end) != Some("---") {
            return found;
        }
        let mut key = None;
        for line in lines.take_while(|line| line.trim_end() != "---") {
            let line = line.trim_end();
            let is_inner =
                line.starts_with([' ', '-', '\t']) || line.is_empty() || line.starts_with('#');
            if !is_inner {
                key = line.split_once(':').map(|(key, _)| key.to_owned());
                if let Some(key) = key.as_ref().filter(|key| CARRIED.contains(&key.as_str())) {
                    found.0.push((key.clone(), line.to_owned()));
                }
            } else if let (Some(key), Some((last, lines))) = (&key, found.0.last_mut())
                && key == last
                && !line.is_empty()
            {
                lines.push('\n');
                lines.push_str(line);
            }
        }
        found
    }

    /// Whether a key is there.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|(known, _)| known == key)
    }

    /// Sets a key to a text.
    pub fn set(&mut self, key: &str, value: &str) {
        self.0.retain(|(known, _)| known != key);
        self.0
            .push((key.to_owned(), format!("{key}: {}", yaml(value))));
    }

    /// The repository that the model was made from.
    pub fn set_base_model(&mut self, repository: &str) {
        self.set("base_model", repository);
    }

    /// Takes over what is missing.
    pub fn add_missing(&mut self, other: &Self) {
        for (key, lines) in &other.0 {
            if !self.has(key) {
                self.0.push((key.clone(), lines.clone()));
            }
        }
    }
}

/// A text as YAML.
fn yaml(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let has_letter = text.chars().any(|c| c.is_ascii_alphabetic());
    match !text.is_empty() && text.chars().all(is_plain) && has_letter && !text.starts_with('-') {
        true => text.to_owned(),
        // JSON strings are YAML
        false => serde_json::Value::from(text).to_string(),
    }
}

/// What a card is made from.
pub struct Card<'a> {
    pub repository: &'a Repository,
    pub certificate: &'a Certificate,
    /// Names in the repository, and files.
    pub files: &'a [(String, PathBuf)],
    pub front: &'a FrontMatter,
}

impl Card<'_> {
    /// The card.
    pub fn to_text(&self) -> Result<String, FormatError> {
        let mut text = String::from("---\n");
        let Self {
            certificate, front, ..
        } = self;
        let target = targets::by_name(&certificate.target);
        let in_files = target.is_some_and(|target| target.kind == Kind::Gguf);
        let mut push = |line: std::fmt::Arguments<'_>| {
            // a String takes every line
            let _ = writeln!(text, "{line}");
        };
        for (_, lines) in &front.0 {
            push(format_args!("{lines}"));
        }
        if front.has("base_model") {
            push(format_args!("base_model_relation: quantized"));
        }
        if !front.has("pipeline_tag") && certificate.config.pooling.is_none() {
            push(format_args!("pipeline_tag: text-generation"));
        }
        let library = match (in_files, certificate.target.starts_with("mlx")) {
            (true, _) => "gguf",
            (false, true) => "mlx",
            (false, false) => "transformers",
        };
        push(format_args!("library_name: {library}"));
        push(format_args!("tags:"));
        for tag in [
            "bitnet",
            "ternary",
            "1.58-bit",
            library,
            certificate.target.as_str(),
        ] {
            push(format_args!("- {tag}"));
        }
        push(format_args!("---\n"));
        let name = self.repository.id.rsplit('/').next().unwrap_or_default();
        push(format_args!("# {name}\n"));
        let origin = certificate.origin.as_ref();
        let source =
            match origin.map(|o| (o.repository.as_deref(), o.commit.as_deref(), &o.location)) {
                Some((Some(id), Some(commit), _)) => {
                    format!("[{id}](https://huggingface.co/{id}) at commit `{commit}`")
                }
                Some((_, _, location)) => format!("`{location}`"),
                None => "a checkpoint".to_owned(),
            };
        push(format_args!(
            "Ternary weights of {source}, converted by {} to `{}`.\n",
            certificate.tool, certificate.target
        ));
        push(format_args!("| file | bytes | SHA-256 |\n|---|---|---|"));
        for record in certificate
            .output
            .iter()
            .filter(|record| record.name != super::CARD)
        {
            push(format_args!(
                "| {} | {} ({}) | `{}` |",
                cell(&record.name),
                record.bytes,
                human_bytes(record.bytes),
                record.sha256
            ));
        }
        push(format_args!(""));
        let rounded = certificate.ternary.iter().map(|t| t.verdict);
        let rounded = rounded.chain(certificate.dense.iter().map(|d| d.verdict));
        let rounded = rounded.filter(|verdict| *verdict != Verdict::Exact).count();
        let verdict = match (certificate.lossless, rounded) {
            (true, _) => {
                "lossless: every trit, every scale and every dense value equals the source"
                    .to_owned()
            }
            (false, n) => format!(
                "not lossless: values of {n} tensors were rounded; the certificate lists them"
            ),
        };
        push(format_args!("| | |\n|---|---|"));
        push(format_args!("| format | `{}` |", certificate.target));
        push(format_args!("| family | {} |", cell(&certificate.family)));
        push(format_args!(
            "| ternary tensors | {} |",
            certificate.ternary.len()
        ));
        push(format_args!(
            "| dense tensors | {} |",
            certificate.dense.len()
        ));
        push(format_args!("| verdict | {verdict} |"));
        push(format_args!(
            "| `ternary_sha256` | `{}` |\n",
            certificate.ternary_sha256
        ));
        let named = self.files.iter().map(|(name, _)| name.as_str());
        let record = named.rev().find(|name| name.ends_with("certificate.json"));
        push(format_args!(
            "`{}` records the conversion. Check the files against it:\n",
            record.unwrap_or("certificate.json")
        ));
        let first = certificate
            .output
            .first()
            .map_or("", |record| record.name.as_str());
        let path = if in_files {
            format!("/{first}")
        } else {
            String::new()
        };
        push(format_args!(
            "```sh\nbitnet-verify {} --certificate {}\n```",
            shell_word(format!("{}{path}", self.repository)),
            shell_word(record.unwrap_or("certificate.json"))
        ));
        Ok(text)
    }
}

/// A text in a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_is_carried_over_as_it_stands() {
        let card = "---\nlicense: other\nlicense_name: x-license\ntags:\n- a\nlanguage:\n- en\n- de\nmetrics: 3\n---\n# T\nlicense: no\n";
        let front = FrontMatter::of_card(card);
        let keys: Vec<&str> = front.0.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["license", "license_name", "language"]);
        assert_eq!(front.0[2].1, "language:\n- en\n- de");
        assert_eq!(
            FrontMatter::of_card("# T\nlicense: mit\n"),
            FrontMatter::default()
        );
        let mut mine = FrontMatter::default();
        mine.set("license", "mit");
        mine.add_missing(&front);
        assert_eq!(mine.0[0].1, "license: mit");
        assert_eq!(mine.0.len(), 3);
    }

    #[test]
    fn texts_are_quoted_where_yaml_needs_it() {
        assert_eq!(yaml("apache-2.0"), "apache-2.0");
        assert_eq!(yaml("o/n.x"), "o/n.x");
        assert_eq!(yaml("a: b\n\"c\""), "\"a: b\\n\\\"c\\\"\"");
        assert_eq!(yaml("1.5"), "\"1.5\"");
    }
}
