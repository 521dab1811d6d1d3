//! What the engine counts.
//!
//! Invariant: counters only grow; gauges are as of the last step.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters and gauges of an engine.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests accepted.
    pub requests: AtomicU64,
    /// Requests refused because the queue was full.
    pub refused: AtomicU64,
    /// Requests whose client went away.
    pub cancelled: AtomicU64,
    /// Requests that failed in the engine.
    pub failed: AtomicU64,
    /// Tokens of prompts that were computed.
    pub prompt_tokens: AtomicU64,
    /// Tokens drawn.
    pub generated_tokens: AtomicU64,
    /// Texts that were looked up in the prefix cache.
    pub cache_lookups: AtomicU64,
    /// Of these, those that began with cached tokens.
    pub cache_hits: AtomicU64,
    /// Tokens of prompts that the cache had.
    pub cached_tokens: AtomicU64,
    /// Steps of the model.
    pub steps: AtomicU64,
    /// Microseconds in these steps.
    pub step_micros: AtomicU64,
    /// Texts in progress.
    pub running: AtomicU64,
    /// Texts that wait.
    pub waiting: AtomicU64,
    /// Bytes of keys and values that texts in progress may need.
    pub reserved_bytes: AtomicU64,
    /// Bytes of keys and values in the prefix cache.
    pub cache_bytes: AtomicU64,
    /// Most bytes of keys and values.
    pub budget_bytes: AtomicU64,
    /// Whether the engine's thread is gone.
    pub dead: AtomicBool,
}

impl Metrics {
    /// Adds to a counter.
    pub(crate) fn add(counter: &AtomicU64, by: usize) {
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub(crate) fn set(gauge: &AtomicU64, to: usize) {
        gauge.store(to as u64, Ordering::Relaxed);
    }

    /// All of them in the text format of Prometheus.
    pub fn text(&self) -> String {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let mut text = String::new();
        let mut line = |name: &str, kind: &str, help: &str, value: &dyn std::fmt::Display| {
            let name = format!("bitnet_{name}");
            // writing to a string does not fail
            let _ = writeln!(
                text,
                "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}"
            );
        };
        for (name, help, value) in [
            ("requests_total", "Requests accepted.", &self.requests),
            (
                "requests_refused_total",
                "Requests refused because the queue was full.",
                &self.refused,
            ),
            (
                "requests_cancelled_total",
                "Requests whose client went away.",
                &self.cancelled,
            ),
            (
                "requests_failed_total",
                "Requests that failed while they ran.",
                &self.failed,
            ),
            (
                "prompt_tokens_total",
                "Prompt tokens computed.",
                &self.prompt_tokens,
            ),
            (
                "generated_tokens_total",
                "Tokens generated.",
                &self.generated_tokens,
            ),
            (
                "prefix_cache_lookups_total",
                "Texts looked up in the prefix cache.",
                &self.cache_lookups,
            ),
            (
                "prefix_cache_hits_total",
                "Texts whose first tokens were in the prefix cache.",
                &self.cache_hits,
            ),
            (
                "prefix_cache_tokens_total",
                "Prompt tokens taken from the prefix cache.",
                &self.cached_tokens,
            ),
            ("steps_total", "Steps of the model.", &self.steps),
        ] {
            line(name, "counter", help, &read(value));
        }
        line(
            "step_seconds_total",
            "counter",
            "Seconds in steps of the model.",
            &(read(&self.step_micros) as f64 / 1e6),
        );
        for (name, help, value) in [
            ("sequences_running", "Texts in progress.", &self.running),
            ("sequences_waiting", "Texts that wait.", &self.waiting),
            (
                "kv_reserved_bytes",
                "KV cache that texts in progress may need, in bytes.",
                &self.reserved_bytes,
            ),
            (
                "prefix_cache_bytes",
                "KV cache that the prefix cache holds, in bytes.",
                &self.cache_bytes,
            ),
            (
                "kv_budget_bytes",
                "Limit of the KV cache, in bytes.",
                &self.budget_bytes,
            ),
        ] {
            line(name, "gauge", help, &read(value));
        }
        text
    }
}
