//! Logits that another runtime wrote, against ours.
//!
//! Invariant: the files are written here, by hand, and what is done to them is known.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{Fixture, fixture, skips_foreign_fixtures};
use bitnet_tests::program::{Ran, run};
use bitnet_verify::Golden;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A tensor by hand.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn source() -> Option<Fixture> {
    (!skips_foreign_fixtures()).then(|| fixture("llama3-8b-1.58").expect("a fixture"))
}

fn verify(model: &Path, logits: &Path, more: &[&str]) -> Ran {
    let words = [
        model.as_os_str(),
        "--json".as_ref(),
        "--logits-from".as_ref(),
        logits.as_os_str(),
    ];
    let more = more.iter().map(AsRef::as_ref);
    run(bitnet_verify::run, words.into_iter().chain(more))
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The golden logits and ids, as another runtime would write them.
fn tensors(golden: &Golden) -> Vec<Tensor> {
    let of = |p: &bitnet_verify::Prompt| {
        let recorded = &golden.logits[&p.name];
        let ids: Vec<u8> = p
            .ids
            .iter()
            .flat_map(|&id| i64::from(id).to_le_bytes())
            .collect();
        let shape = vec![recorded.rows, recorded.cols];
        let values = floats(&recorded.values);
        [
            (
                format!("{}.ids", p.name),
                Dtype::I64,
                vec![p.ids.len()],
                ids,
            ),
            (format!("{}.logits", p.name), Dtype::F32, shape, values),
        ]
    };
    let known = golden.prompts.iter();
    known
        .filter(|p| golden.logits.contains_key(&p.name))
        .flat_map(of)
        .collect()
}

fn write(dir: &TempDir, tensors: &[Tensor]) -> PathBuf {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor");
        (name.as_str(), view)
    });
    let said = [("runtime", "other"), ("version", "1.2")];
    let said = said.map(|(k, v)| (k.to_owned(), v.to_owned()));
    let path = dir.path().join("logits.safetensors");
    let bytes = safetensors::serialize(views, Some(HashMap::from(said))).expect("a file");
    std::fs::write(&path, bytes).expect("written");
    path
}

fn the_check(report: &Value) -> &Value {
    let checks = report["checks"].as_array().expect("checks");
    let is_it = |c: &&Value| c["name"] == "other-runtime";
    checks.iter().find(is_it).expect("the check")
}

#[test]
fn figures_of_another_runtime_are_reported_and_bounded() {
    let Some(source) = source() else { return };
    let (golden, dir) = (source.golden(), TempDir::new().expect("a directory"));
    let mut tensors = tensors(&golden);
    let ran = verify(&source.checkpoint, &write(&dir, &tensors), &[]);
    let report = ran.json();
    assert_eq!(ran.status, ExitStatus::Done, "{report:#}");
    assert_eq!(report["logits"]["reference"], "other runtime");
    let detail = the_check(&report)["detail"].as_str().expect("a line");
    assert!(detail.starts_with("other 1.2: "), "{detail}");
    for figure in [
        "kl_mean",
        "kl_p999",
        "kl_max",
        "perplexity",
        "perplexity_reference",
    ] {
        assert!(report["logits"][figure].is_number(), "{figure}");
    }

    // the best token of one position made unlikely: named with its prompt and position
    let (name, dtype, shape, bytes) = tensors
        .iter_mut()
        .find(|(_, dtype, shape, _)| *dtype == Dtype::F32 && shape[0] > 3)
        .expect("logits");
    let (prompt, cols) = (name.trim_end_matches(".logits").to_owned(), shape[1]);
    let row = 2 * cols * dtype.bitsize() / 8;
    let mut values: Vec<f32> = bytes[row..row + 4 * cols]
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")))
        .collect();
    let best = (0..cols).max_by(|a, b| values[*a].total_cmp(&values[*b]));
    values[best.expect("a token")] -= 20.0;
    bytes[row..row + 4 * cols].copy_from_slice(&floats(&values));
    let path = write(&dir, &tensors);
    let ran = verify(&source.checkpoint, &path, &[]);
    let report = ran.json();
    assert_eq!(ran.status, ExitStatus::Different, "{report:#}");
    assert_eq!(report["logits"]["kl_max_at"]["prompt"], prompt.as_str());
    assert_eq!(report["logits"]["kl_max_at"]["position"], 2);
    let wide = ["--max-kl", "9", "--min-top1", "0.5", "--flip-margin", "99"];
    let wide = [&wide[..], &["--max-nll-shift", "9"]].concat();
    let ran = verify(&source.checkpoint, &path, &wide);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
}

#[test]
fn what_the_other_runtime_does_otherwise_has_a_name() {
    let Some(source) = source() else { return };
    let (golden, dir) = (source.golden(), TempDir::new().expect("a directory"));
    let mut tensors = tensors(&golden);
    // every row one position too early
    for (_, dtype, shape, bytes) in &mut tensors {
        if *dtype == Dtype::F32 {
            bytes.rotate_left(4 * shape[1]);
        }
    }
    let ran = verify(&source.checkpoint, &write(&dir, &tensors), &[]);
    let report = ran.json();
    assert_eq!(ran.status, ExitStatus::Different, "{report:#}");
    assert_eq!(report["faults"][0]["name"], "token-offset", "{report:#}");
    assert_eq!(report["faults"][0]["check"], "other-runtime");
}

#[test]
fn ids_may_lie_beside_the_file() {
    let Some(source) = source() else { return };
    let recorded = source.golden.join("logits_f32.safetensors");
    let ran = verify(&source.checkpoint, &recorded, &[]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);

    let dir = TempDir::new().expect("a directory");
    let mut alone = tensors(&source.golden());
    alone.retain(|(name, ..)| name.ends_with(".logits"));
    let path = write(&dir, &alone);
    let ran = verify(&source.checkpoint, &path, &[]);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    assert_eq!(ran.json()["error"]["code"], "missing-tensor");
    let prompts = source.golden.join("prompts.json");
    let prompts = prompts.to_str().expect("UTF-8");
    let ran = verify(&source.checkpoint, &path, &["--prompts", prompts]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
}

#[test]
fn what_does_not_fit_is_said() {
    let Some(source) = source() else { return };
    let (golden, dir) = (source.golden(), TempDir::new().expect("a directory"));
    let sound = tensors(&golden);
    let ids = |tensors: &mut Vec<Tensor>, ids: &[i64]| {
        tensors[0].2 = vec![ids.len()];
        tensors[0].3 = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    };
    let len = sound[0].2[0];
    type Damage<'a> = &'a dyn Fn(&mut Vec<Tensor>);
    let cases: [(&str, Damage<'_>, &str); 6] = [
        ("fewer ids", &|t| ids(t, &[1]), "wrong-shape"),
        ("a negative id", &|t| ids(t, &vec![-1; len]), "wrong-type"),
        (
            "an id beyond",
            &|t| ids(t, &vec![1 << 20; len]),
            "malformed",
        ),
        (
            "no logits",
            &|t| t.retain(|t| t.1 == Dtype::I64),
            "missing-tensor",
        ),
        ("logits as integers", &|t| t[1].1 = Dtype::I32, "wrong-type"),
        (
            "logits of one dimension",
            &|t| t[1].2 = vec![t[1].2.iter().product()],
            "wrong-type",
        ),
    ];
    for (what, damage, code) in cases {
        let mut tensors = sound.clone();
        damage(&mut tensors);
        let ran = verify(&source.checkpoint, &write(&dir, &tensors), &[]);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{what}: {}", ran.stdout);
        assert_eq!(ran.json()["error"]["code"], code, "{what}");
    }

    // a file that claims more than it has, and one whose rows have nothing
    let path = dir.path().join("header.safetensors");
    for header in [
        r#"{"p.logits":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}"#,
        r#"{"p.logits":{"dtype":"F32","shape":[3,0],"data_offsets":[0,0]}}"#,
    ] {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(&path, bytes).expect("written");
        let ran = verify(&source.checkpoint, &path, &[]);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
    }

    // another vocabulary: a difference, not a comparison of what does not belong together
    let mut tensors = sound.clone();
    let (rows, cols) = (tensors[1].2[0], tensors[1].2[1] - 1);
    tensors[1].2 = vec![rows, cols];
    tensors[1].3.truncate(4 * rows * cols);
    let ran = verify(&source.checkpoint, &write(&dir, &tensors), &[]);
    assert_eq!(ran.status, ExitStatus::Different, "{}", ran.stdout);
}
