//! Which programs can load a file, and which load it and compute something else (`formats/readers.md`).
//!
//! Invariant: what is known of other programs is data in `formats/readers.json`; here is only how facts of
//! a file meet the rules of that table.

use crate::plan::{Action, Plan, describe};
use crate::targets::Kind;
use bitnet_cli::Table;
use bitnet_formats::{Container, ErrorCode, FormatError, Gguf, MetaValue, PlainType};
use bitnet_model::{
    ActivationQuantization, Checkpoint, LayoutReason, ROTATION_KEYS, ScaleDirection, Slot,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The table.
const TABLE: &str = include_str!("../../../formats/readers.json");

/// Names of facts that rules may ask for.
const FACTS: [&str; 13] = [
    "container",
    "architecture",
    "linears",
    "columns",
    "rows",
    "head",
    "hidden_act",
    "activations",
    "scale_direction",
    "projection_norms",
    "pre_tokenizer",
    "rotated",
    "layout",
];

/// What a program does with a file, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing is known of this combination.
    Unknown,
    /// It computes what the file says.
    Loads,
    /// It depends on how the program was built or is called.
    Depends,
    /// It loads the file and computes something else.
    Differs,
    /// It does not load the file.
    Refuses,
}

impl Verdict {
    const ALL: [Self; 5] = [
        Self::Unknown,
        Self::Loads,
        Self::Depends,
        Self::Differs,
        Self::Refuses,
    ];

    /// As the table spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Loads => "loads",
            Self::Depends => "depends",
            Self::Differs => "differs",
            Self::Refuses => "refuses",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == name)
    }
}

/// What the rules may ask about a file: by name of the fact its values.
#[derive(Debug, Default)]
pub struct FileFacts(BTreeMap<&'static str, BTreeSet<String>>);

impl FileFacts {
    /// Of a file as it is.
    ///
    /// # Errors
    /// A linear without a source.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, FormatError> {
        let mut facts = Self::default();
        let file = &checkpoint.file;
        facts.add("container", file.container);
        facts.add("architecture", architecture(checkpoint));
        facts.network(checkpoint);
        for slot in checkpoint.slots().into_iter().filter(|s| s.is_ternary()) {
            facts.add("linears", describe(checkpoint.linear(slot)?));
        }
        if let Some(direction) = checkpoint.scale_direction() {
            facts.direction(direction);
        }
        let text = |key: &str| file.metadata.get(key).and_then(MetaValue::as_str);
        if text("tokenizer.ggml.model") == Some("gpt2") {
            let pre = text("tokenizer.ggml.pre").unwrap_or("missing");
            facts.add("pre_tokenizer", pre);
        }
        let rotated = file
            .metadata
            .0
            .iter()
            .any(|(k, _)| k.starts_with(ROTATION_KEYS));
        facts.add("rotated", if rotated { "yes" } else { "no" });
        let assumed = |e: &bitnet_model::LayoutEvidence| e.reason == LayoutReason::Assumed;
        if checkpoint.layout.as_ref().is_some_and(assumed) {
            facts.add("layout", "undecided");
        }
        Ok(facts)
    }

    /// Of the output of a plan.
    pub fn of_plan(checkpoint: &Checkpoint, plan: &Plan) -> Self {
        let mut facts = Self::default();
        facts.add("container", plan.target.container());
        facts.add(
            "architecture",
            match plan.target.kind {
                Kind::Gguf => checkpoint.family.gguf_architectures[0].to_owned(),
                Kind::HuggingFace => hf_architecture(checkpoint),
            },
        );
        facts.network(checkpoint);
        for item in plan
            .items
            .iter()
            .filter(|i| i.slot.is_some_and(Slot::is_ternary))
        {
            match &item.action {
                Action::Pack(packing) | Action::CopyPacked(packing) => {
                    facts.add("linears", packing.name())
                }
                Action::Dequantise(plain) => {
                    facts.add("linears", format!("{} ternary", plain_name(*plain)));
                }
                Action::CopyMaster => facts.add("linears", format!("{} master", item.to)),
                Action::Copy | Action::Recode(_) => facts.add("linears", item.to.clone()),
                Action::Ready(_) | Action::Scale(_) => {}
            }
        }
        if plan.target.kind == Kind::HuggingFace {
            facts.direction(
                checkpoint
                    .scale_direction()
                    .unwrap_or(ScaleDirection::Multiply),
            );
        }
        facts
    }

    /// What container and packing do not change.
    fn network(&mut self, checkpoint: &Checkpoint) {
        let config = &checkpoint.config;
        let shapes: Vec<_> = checkpoint
            .slots()
            .into_iter()
            .filter(|slot| slot.is_ternary())
            .map(|slot| config.shape(slot))
            .collect();
        self.add_multiples("rows", shapes.iter().filter_map(|s| s.first().copied()));
        self.add_multiples("columns", shapes.iter().filter_map(|s| s.last().copied()));
        let tied = config.tie_word_embeddings;
        self.add("head", if tied { "tied" } else { "own" });
        self.add("hidden_act", config.hidden_act.as_str());
        let activations = match config.activation_quantization {
            ActivationQuantization::Int8PerToken => "int8 per token",
            ActivationQuantization::None => "not quantised",
        };
        self.add("activations", activations);
        let norms = config.norms.projections;
        self.add("projection_norms", if norms { "yes" } else { "no" });
    }

    fn direction(&mut self, direction: ScaleDirection) {
        let name = match direction {
            ScaleDirection::Multiply => "multiply",
            ScaleDirection::Divide => "divide",
        };
        self.add("scale_direction", name);
    }

    /// Adds a value of a fact.
    fn add(&mut self, fact: &'static str, value: impl Into<String>) {
        self.0.entry(fact).or_default().insert(value.into());
    }

    /// Adds `multiple of N` for the N that the rules know and that divide every size.
    fn add_multiples(&mut self, fact: &'static str, sizes: impl Iterator<Item = usize>) {
        let sizes: BTreeSet<usize> = sizes.collect();
        for n in [256, 128, 64, 4] {
            if sizes.iter().all(|size| size.is_multiple_of(n)) {
                self.add(fact, format!("multiple of {n}"));
            }
        }
    }

    fn has_one_of(&self, fact: &str, values: &[String]) -> bool {
        self.0
            .get(fact)
            .is_some_and(|own| values.iter().any(|v| own.contains(v)))
    }
}

/// The type as tensors of that type are named.
fn plain_name(plain: PlainType) -> String {
    plain.safetensors_name().to_ascii_lowercase()
}

/// `general.architecture`, or the first of `architectures`.
pub fn architecture(checkpoint: &Checkpoint) -> String {
    if checkpoint.file.container != Gguf.name() {
        return hf_architecture(checkpoint);
    }
    let named = checkpoint.file.metadata.get("general.architecture");
    named
        .and_then(MetaValue::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn hf_architecture(checkpoint: &Checkpoint) -> String {
    let named = checkpoint.config_json.as_ref();
    let named = named.and_then(|c| c.get("architectures")?.get(0)?.as_str());
    named.unwrap_or(checkpoint.family.hf_identity.1).to_owned()
}

/// A fact and the values asked for.
type Condition = (String, Vec<String>);

/// One rule of the table.
#[derive(Debug)]
struct Rule {
    verdict: Verdict,
    when: Vec<Condition>,
    unless: Vec<Condition>,
    why: String,
    from: String,
}

impl Rule {
    fn applies(&self, facts: &FileFacts) -> bool {
        let holds = |(fact, values): &Condition| facts.has_one_of(fact, values);
        self.when.iter().all(holds) && !self.unless.iter().any(holds)
    }
}

/// What is known of one program and one file.
#[derive(Debug)]
pub struct Finding {
    /// The program.
    pub program: String,
    /// What it is.
    pub what: String,
    /// The worst of the reasons.
    pub verdict: Verdict,
    /// Verdict, why, and the page that says so; worst first.
    pub reasons: Vec<(Verdict, String, String)>,
}

/// Every program of the table on a file with these facts.
///
/// # Errors
/// `malformed` when the table that was built in is none: a test keeps that from happening.
pub fn judge(facts: &FileFacts) -> Result<Vec<Finding>, FormatError> {
    let programs = parse(TABLE)
        .ok_or_else(|| FormatError::new(ErrorCode::Malformed, "formats/readers.json is damaged"))?;
    let judged = programs.into_iter().map(|(program, what, rules)| {
        let mut reasons: Vec<_> = rules
            .into_iter()
            .filter(|rule| rule.applies(facts))
            .map(|rule| (rule.verdict, rule.why, rule.from))
            .collect();
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.0));
        // what a program would compute does not matter when it refuses
        let worst = reasons.first().map_or(Verdict::Unknown, |r| r.0);
        if worst > Verdict::Loads {
            reasons.retain(|r| r.0 != Verdict::Loads);
        }
        if worst == Verdict::Refuses {
            reasons.retain(|r| r.0 == Verdict::Refuses);
        }
        Finding {
            program,
            what,
            verdict: worst,
            reasons,
        }
    });
    Ok(judged.collect())
}

/// For `--json`.
pub fn to_json(findings: &[Finding]) -> Value {
    findings
        .iter()
        .map(|f| {
            json!({
                "program": f.program,
                "what": f.what,
                "verdict": f.verdict.as_str(),
                "reasons": f.reasons.iter().map(|(verdict, why, from)| json!({
                    "verdict": verdict.as_str(), "why": why, "from": from,
                })).collect::<Value>(),
            })
        })
        .collect()
}

/// For people.
pub fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(&["program", "verdict", "why", "from"]);
    for finding in findings {
        if finding.reasons.is_empty() {
            let verdict = finding.verdict.as_str().to_owned();
            let why = "no rule of formats/readers.json speaks of it".to_owned();
            table.row([finding.program.clone(), verdict, why, String::new()]);
        }
        for (n, (verdict, why, from)) in finding.reasons.iter().enumerate() {
            let program = match n {
                0 => finding.program.clone(),
                _ => String::new(),
            };
            table.row([
                program,
                verdict.as_str().to_owned(),
                why.clone(),
                from.clone(),
            ]);
        }
    }
    table
}

/// Name, description and rules of every program; `None` for a table that does not follow its page.
fn parse(text: &str) -> Option<Vec<(String, String, Vec<Rule>)>> {
    let table: Value = serde_json::from_str(text).ok()?;
    let mut programs = Vec::new();
    for program in table.get("programs")?.as_array()? {
        let text = |object: &Value, key: &str| Some(object.get(key)?.as_str()?.to_owned());
        let mut rules = Vec::new();
        for rule in program.get("rules")?.as_array()? {
            rules.push(Rule {
                verdict: Verdict::from_name(rule.get("verdict")?.as_str()?)?,
                when: conditions(rule.get("when"))?,
                unless: conditions(rule.get("unless"))?,
                why: text(rule, "why")?,
                from: text(rule, "from")?,
            });
        }
        programs.push((text(program, "name")?, text(program, "what")?, rules));
    }
    Some(programs)
}

fn conditions(object: Option<&Value>) -> Option<Vec<Condition>> {
    let Some(object) = object else {
        return Some(Vec::new());
    };
    let mut conditions = Vec::new();
    for (fact, values) in object.as_object()? {
        let values = values.as_array()?.iter();
        let values: Option<Vec<_>> = values.map(|v| Some(v.as_str()?.to_owned())).collect();
        if !FACTS.contains(&fact.as_str()) {
            return None;
        }
        conditions.push((fact.clone(), values?));
    }
    Some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(of: &[(&'static str, &str)]) -> FileFacts {
        let mut facts = FileFacts::default();
        for (fact, value) in of {
            facts.add(fact, *value);
        }
        facts
    }

    fn verdict(findings: &[Finding], program: &str) -> Verdict {
        findings
            .iter()
            .find(|f| f.program == program)
            .map(|f| f.verdict)
            .unwrap()
    }

    #[test]
    fn every_rule_names_a_page_that_exists() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
        for (program, _, rules) in parse(TABLE).expect("the table follows its page") {
            assert!(!rules.is_empty(), "{program}");
            for rule in rules {
                assert!(
                    std::path::Path::new(root).join(&rule.from).is_file(),
                    "{program}: {}",
                    rule.from
                );
            }
        }
    }

    #[test]
    fn the_published_file_of_2b4t() {
        let file = facts(&[
            ("container", "gguf"),
            ("architecture", "bitnet-b1.58"),
            ("linears", "i2_s"),
            ("columns", "multiple of 128"),
            ("head", "tied"),
            ("activations", "int8 per token"),
            ("pre_tokenizer", "llama-bpe"),
        ]);
        let findings = judge(&file).unwrap();
        assert_eq!(verdict(&findings, "bitnet.cpp-2024"), Verdict::Loads);
        assert_eq!(verdict(&findings, "bitnet.cpp-2026"), Verdict::Depends);
        assert_eq!(verdict(&findings, "llama.cpp"), Verdict::Refuses);
        assert_eq!(verdict(&findings, "ik_llama.cpp"), Verdict::Loads);
        assert_eq!(verdict(&findings, "transformers"), Verdict::Refuses);
        assert_eq!(verdict(&findings, "mlx-lm"), Verdict::Refuses);
        assert_eq!(verdict(&findings, "bitnet-run"), Verdict::Loads);
    }

    #[test]
    fn a_file_of_an_arm_quantiser_without_pre_tokenizer() {
        let file = facts(&[
            ("container", "gguf"),
            ("architecture", "bitnet-b1.58"),
            ("linears", "i2_s-arm64"),
            ("columns", "multiple of 128"),
            ("head", "tied"),
            ("pre_tokenizer", "missing"),
        ]);
        let findings = judge(&file).unwrap();
        let old = findings.iter().find(|f| f.program == "bitnet.cpp-2024");
        let old = old.unwrap();
        assert_eq!(old.verdict, Verdict::Differs);
        assert_eq!(old.reasons.len(), 2, "{old:?}");
        assert_eq!(verdict(&findings, "ik_llama.cpp"), Verdict::Differs);
    }

    #[test]
    fn a_packed_checkpoint_that_divides() {
        let file = facts(&[
            ("container", "safetensors"),
            ("architecture", "LlamaForCausalLM"),
            ("linears", "hf_u8"),
            ("rows", "multiple of 4"),
            ("scale_direction", "divide"),
        ]);
        let findings = judge(&file).unwrap();
        assert_eq!(verdict(&findings, "transformers"), Verdict::Loads);
        assert_eq!(verdict(&findings, "mlx-lm"), Verdict::Differs);
        assert_eq!(verdict(&findings, "llama.cpp"), Verdict::Refuses);
    }
}
