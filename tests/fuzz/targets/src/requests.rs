//! Bodies of requests to the server, up to the point where the engine computes.
//!
//! The first byte of an input is the endpoint, the rest is the body. The engine stops when the answer is not waited for.

use crate::record::Record;
use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Model};
use bitnet_serve::{ApiOptions, Begun, Endpoint, Engine, EngineOptions, Service, begin, parse};
use std::sync::{Arc, OnceLock};

fn service() -> &'static Arc<Service> {
    static SERVICE: OnceLock<Arc<Service>> = OnceLock::new();
    SERVICE.get_or_init(|| {
        let tests = crate::directory();
        let path = tests.with_file_name("fixtures").join("demo/packed");
        let checkpoint = Checkpoint::open(&path, &OpenOptions::default()).expect("a fixture opens");
        let options = LoadOptions {
            backend: Backend::best(),
            threads: 1,
            ..LoadOptions::default()
        };
        let model = Model::load(&checkpoint, &options).expect("a fixture loads");
        let tokenizer = checkpoint.tokenizer().expect("a fixture has a tokenizer");
        let tokenizer = tokenizer.expect("a fixture has a tokenizer");
        let engine = EngineOptions {
            parallel: 1,
            ..EngineOptions::default()
        };
        let engine = Engine::start(Arc::new(model), Arc::new(tokenizer), engine);
        let options = ApiOptions {
            name: "demo".to_owned(),
            lenient: false,
            repeatable: true,
        };
        let engine = Arc::new(engine.expect("an engine starts"));
        Arc::new(Service::new(engine, options).expect("a fixture has a chat template"))
    })
}

/// A body.
pub(crate) fn server(data: &[u8], record: &mut Record) {
    let Some((endpoint, body)) = data.split_first() else {
        return;
    };
    let endpoint = Endpoint::ALL[usize::from(*endpoint) % Endpoint::ALL.len()];
    let begun = parse(body).and_then(|body| begin(service(), endpoint, body, 1));
    match begun {
        // answers are numbered
        Ok(Begun::Body(body, ignored)) => record.note(&(body, ignored)),
        Ok(Begun::Running(running)) => record.note(&(running.is_stream(), running.ignored())),
        Err(error) => record.note(&format!("{error:?}")),
    }
}
