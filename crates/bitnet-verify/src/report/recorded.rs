//! Reports that an earlier run wrote.
//!
//! Invariant: a report is believed only if it agrees with itself: its status is the one that its checks call for, and only
//! a check that found a difference, or could not compare, lists one.

use serde_json::Value;

/// From the strongest to the weakest.
pub(crate) const STATUSES: [&str; 4] = ["different", "error", "same", "skipped"];

/// The checks of a report.
///
/// # Errors
/// What was expected and found, for a value that is no report, or one that contradicts itself.
pub(crate) fn checks(report: &Value) -> Result<&[Value], String> {
    let checks = report.get("checks").and_then(Value::as_array);
    let checks = checks.filter(|checks| checks.iter().all(is_check));
    let checks = checks.ok_or("expected a report with a list of checks")?;
    if checks.is_empty() {
        return Err("expected a report with a list of checks, found an empty list".to_owned());
    }
    for check in checks {
        let (name, status) = (word(check, "name"), word(check, "status"));
        let lists = check["differences"]
            .as_array()
            .is_some_and(|d| !d.is_empty());
        if lists && matches!(status, "same" | "skipped") {
            return Err(format!(
                "the report contradicts itself: its check `{name}` is `{status}` and lists differences"
            ));
        }
    }
    let any = |status: &str| checks.iter().any(|check| check["status"] == status);
    // as `Report::status`
    let expected = match (any("different"), any("error"), any("same")) {
        (true, ..) => "different",
        (false, false, true) => "same",
        _ => "error",
    };
    let found = match report.get("status") {
        Some(Value::String(found)) => found.clone(),
        Some(other) => other.to_string(),
        None => "no status".to_owned(),
    };
    if found != expected {
        return Err(format!(
            "the report contradicts itself: its checks call for the status `{expected}`, found `{found}`"
        ));
    }
    // an error stands beside its status, and a fault is a difference with a name
    let has_error = report.get("error").is_some_and(|error| !error.is_null());
    if has_error && expected != "error" {
        return Err(format!(
            "the report contradicts itself: it has the status `{expected}` and an error"
        ));
    }
    Ok(checks)
}

fn word<'a>(check: &'a Value, key: &str) -> &'a str {
    check[key].as_str().unwrap_or_default()
}

fn is_check(check: &Value) -> bool {
    let differences = check.get("differences");
    check["name"].is_string()
        && check["detail"].is_string()
        && STATUSES.contains(&word(check, "status"))
        && differences.is_none_or(Value::is_array)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(name: &str, status: &str) -> Value {
        json!({"name": name, "status": status, "detail": "all"})
    }

    #[test]
    fn a_report_has_the_status_of_its_checks() {
        for (statuses, right) in [
            (&["same"][..], "same"),
            (&["same", "skipped"], "same"),
            (&["skipped"], "error"),
            (&["same", "error"], "error"),
            (&["error", "different"], "different"),
        ] {
            let list: Vec<Value> = (statuses.iter().enumerate())
                .map(|(at, status)| check(&at.to_string(), status))
                .collect();
            for status in STATUSES {
                let report = json!({"status": status, "checks": list});
                let found = checks(&report);
                assert_eq!(found.is_ok(), status == right, "{report}: {found:?}");
            }
            assert!(checks(&json!({"checks": list})).is_err());
        }
    }

    #[test]
    fn what_contradicts_itself_is_no_report() {
        let with = |check: Value| json!({"status": "same", "checks": [check]});
        let mut found = check("trits", "same");
        assert!(checks(&with(found.clone())).is_ok());
        found["differences"] = json!([]);
        assert!(checks(&with(found.clone())).is_ok());
        found["differences"] = json!([{"place": "q", "what": "x"}]);
        assert!(checks(&with(found)).unwrap_err().contains("`trits`"));
        let error =
            json!({"status": "same", "checks": [check("a", "same")], "error": {"code": "io"}});
        assert!(checks(&error).unwrap_err().contains("an error"));
        for junk in [
            json!({}),
            json!([]),
            json!(null),
            json!({"status": "error", "checks": []}),
        ] {
            assert!(checks(&junk).is_err(), "{junk}");
        }
    }
}
