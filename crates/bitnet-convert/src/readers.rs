//! Which programs can load a file, and which load it and compute something else (`formats/readers.md`).
//!
//! Invariant: what is known of other programs is data in `formats/readers.json`; here is only how the facts
//! of a file meet the rules of that table.

mod facts;

pub use self::facts::FileFacts;

use self::facts::FACTS;
use bitnet_cli::Table;
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::{Value, json};

/// The table: a copy of `formats/readers.json`, so that the package of this crate has it.
const TABLE: &str = include_str!("readers.json");

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
            facts.set(fact, value);
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
        assert_eq!(verdict(&findings, "ik_llama.cpp"), Verdict::Differs);
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
        let llama = [
            ("container", "safetensors"),
            ("architecture", "LlamaForCausalLM"),
            ("linears", "hf_u8"),
            ("rows", "multiple of 4"),
            ("scale_direction", "divide"),
            ("activations", "int8 per token"),
            ("quantization_config", "bitlinear"),
            ("dense_modules", "lm_head named"),
        ];
        let findings = judge(&facts(&llama)).unwrap();
        assert_eq!(verdict(&findings, "transformers"), Verdict::Loads);
        assert_eq!(verdict(&findings, "mlx-lm"), Verdict::Differs);
        assert_eq!(verdict(&findings, "llama.cpp"), Verdict::Refuses);
        for (fact, value) in [
            ("dense_modules", "null"),
            ("scale_type", "other"),
            ("sub_norms", "yes"),
            ("projection_norms", "yes"),
        ] {
            let mut changed: Vec<_> = llama.into_iter().filter(|(f, _)| *f != fact).collect();
            changed.push((fact, value));
            let findings = judge(&facts(&changed)).unwrap();
            assert_eq!(verdict(&findings, "mlx-lm"), Verdict::Refuses, "{fact}");
        }
    }

    #[test]
    fn narrow_ternary_types_of_ik_llama() {
        let file = |columns| {
            facts(&[
                ("container", "gguf"),
                ("architecture", "llama"),
                ("linears", "iq2_bn"),
                ("columns", columns),
                ("activations", "not quantized"),
            ])
        };
        let narrow = judge(&file("multiple of 256")).unwrap();
        assert_eq!(verdict(&narrow, "ik_llama.cpp"), Verdict::Refuses);
        let wide = judge(&file("at least 512")).unwrap();
        assert_eq!(verdict(&wide, "ik_llama.cpp"), Verdict::Loads);
    }

    #[test]
    fn rotated_files_are_noise_in_programs_that_do_not_rotate() {
        let file = facts(&[
            ("container", "gguf"),
            ("architecture", "llama"),
            ("linears", "f16 ternary"),
            ("activations", "not quantized"),
            ("rotated", "yes"),
        ]);
        let findings = judge(&file).unwrap();
        for program in ["llama.cpp", "ik_llama.cpp", "transformers"] {
            assert_eq!(verdict(&findings, program), Verdict::Differs, "{program}");
        }
    }
}
