use super::*;
use serde_json::Value;

/// What transformers' own function says (`scripts/module_patterns.py`).
const TABLE: &str = include_str!("table.json");

fn names(entry: &str, module: &str) -> Result<bool, NoAnswer> {
    let mut steps = u64::MAX;
    ModulePattern::new(entry)?.names(module, &mut steps)
}

#[test]
fn entries_name_the_modules_that_transformers_says() {
    let table: Value = serde_json::from_str(TABLE).unwrap();
    let modules: Vec<&str> = table["modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m.as_str().unwrap())
        .collect();
    let rows = table["entries"].as_array().unwrap();
    assert!(rows.len() > 100);
    let mut refused = 0;
    for row in rows {
        let entry = row[0].as_str().unwrap();
        let found: Result<Vec<usize>, NoAnswer> = modules
            .iter()
            .enumerate()
            .filter_map(|(i, module)| match names(entry, module) {
                Ok(true) => Some(Ok(i)),
                Ok(false) => None,
                Err(e) => Some(Err(e)),
            })
            .collect();
        match row[1].as_array() {
            Some(expected) => {
                let expected: Vec<usize> = expected
                    .iter()
                    .map(|i| i.as_u64().unwrap() as usize)
                    .collect();
                assert_eq!(found, Ok(expected), "{entry:?}");
            }
            None => {
                assert!(found.is_err(), "{entry:?}: {found:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn hostile_entries_end_soon() {
    let name = "model.layers.0.self_attn.q_proj";
    let nested = format!("{}a{}", "(".repeat(500), ")*".repeat(500));
    let long = "a".repeat(ENTRY_CHARS + 1);
    for entry in [nested.as_str(), &long] {
        assert_eq!(names(entry, name), Err(NoAnswer::TooLarge));
    }
    for (entry, expected) in [
        ("(.*)*(.*)*(.*)*(.*)*(.*)*x", Ok(false)),
        (
            "((((.{0,1000000}){0,1000000}){0,1000000}){0,1000000})x",
            Ok(false),
        ),
        ("(a|a|a|a|aa|aaa)*b", Ok(false)),
        ("(?:(?:(?:m*)*)*)*odel", Ok(true)),
        ("(?:.?){4000000000}", Ok(true)),
    ] {
        assert_eq!(names(entry, name), expected, "{entry}");
    }
    // a budget that all calls share
    let mut steps = 40;
    let pattern = ModulePattern::new("model.layers.x").unwrap();
    let calls = (0..100).take_while(|_| pattern.names(name, &mut steps).is_ok());
    assert!(calls.count() < 40);
    assert!(names("(?=a", name).is_err());
    assert!(matches!(
        names("(a)\\1", name),
        Err(NoAnswer::Unsupported(_))
    ));
    assert!(matches!(
        names("(?>a)", name),
        Err(NoAnswer::Unsupported(_))
    ));
}
