//! The whole-program and whole-format tests, in one executable that links once.
//!
//! Invariant: tests share the process, so none of them changes what belongs to the process (working
//! directory, environment, limits). What a thread allocates is counted for the hostile files.

use bitnet_tests::counting::Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

mod answers;
mod atomic_output;
mod bench;
mod bench_peers;
mod bench_serve;
mod block_types;
mod bonsai;
mod bounded_reading;
mod bundles;
mod byte_sources;
mod candidates;
mod certificates;
mod changing_inputs;
mod chat;
mod chat_templates;
mod checks;
mod command_line;
mod configuration;
mod convert;
mod demo;
mod determinism;
#[cfg(unix)]
mod docs;
mod doctor;
mod embed;
mod embedding_pipelines;
mod experts;
mod faults;
mod file_faults;
mod flips;
mod force;
mod fuzz_regressions;
#[cfg(unix)]
mod guides;
mod hostile_containers;
mod hostile_formats;
mod hostile_sources;
mod hunyuan;
mod inspect_vectors;
mod inventory;
mod jobs;
mod kv_types;
mod layout;
mod manners;
mod minicpm;
mod misleading_errors;
mod mlx_and_gpu;
mod mlx_packs;
mod mlx_tables;
mod named_templates;
mod observers;
mod oracle;
mod ordinary_files;
mod other_runtime;
mod packages;
mod packed;
mod pairs;
mod placed_zeros;
mod predictors;
mod publication;
mod pytorch;
mod qwen2;
mod qwen35;
mod random_networks;
mod readers;
mod readme;
mod remote;
mod rooms;
mod rope_frequencies;
mod rotation;
mod rotation_faults;
mod run;
mod schemas;
mod screen;
mod sequences;
mod serve;
mod side_files;
mod signatures;
mod sources;
mod special_tokens;
mod speculate;
mod storage;
mod streaming;
mod tokenizer;
mod tokenizer_cost;
mod tokenizer_files;
mod verify;
mod verify_reports;
