//! Servers on the loopback interface for tests: a small Hub, an object store, a web server with files.
//!
//! Invariant: a server answers as the real one does where a test did not ask for a fault, and notes every request, so that
//! a test counts bytes and sees who got which credentials.

pub mod http;
pub mod hub;
pub mod s3;

pub use http::{Fault, Kind, Logged, Server};
