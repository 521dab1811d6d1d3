//! Several sequences at once: a scheduler that steps a model, and the HTTP API in front of it.
//!
//! Invariant of this crate: what a request gets depends on the request and the model alone, not on other requests, on the
//! order in which they come, or on what is cached.

#![forbid(unsafe_code)]

mod api;
mod constraint;
mod engine;
mod http;

pub use api::{ApiError, ApiOptions, Begun, Endpoint, Running, Service, begin, parse};
pub use constraint::{Constraint, Grammars};
pub use engine::{
    Client, Continuation, Embed, Engine, EngineOptions, Event, Events, Generate, Metrics,
    TokenLogprob,
};
pub use http::{Server, ServerOptions, Stopper};
