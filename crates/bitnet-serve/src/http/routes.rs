//! Paths and what stands behind them.
//!
//! Invariant: every answer that is no success has the shape of OpenAI's errors.

use super::body::{EventBody, Gate, read};
use super::connection::{MOST_HEADER_BYTES, Peer};
use super::guard::Guard;
use crate::api::{ApiError, Begun, Endpoint, Service, begin, openapi, parse};
use crate::engine::Metrics;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;

/// The files of the chat page: path, kind, content.
const PAGE: [(&str, &str, &str); 3] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("../web/index.html"),
    ),
    (
        "/chat.js",
        "text/javascript; charset=utf-8",
        include_str!("../web/chat.js"),
    ),
    (
        "/chat.css",
        "text/css; charset=utf-8",
        include_str!("../web/chat.css"),
    ),
];
/// What the page may do: nothing beyond this server, and no script but its own file.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Seconds after which a client that was refused may ask again.
const RETRY_AFTER: u64 = 1;

/// What all routes share.
pub(super) struct Shared {
    pub service: Arc<Service>,
    pub guard: Guard,
    pub gate: Arc<Gate>,
    pub most_body: usize,
    pub stop: watch::Receiver<bool>,
}

type Site = State<Arc<Shared>>;

/// All routes.
pub(super) fn router(shared: Arc<Shared>, web: bool) -> Router {
    let mut router = Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(describe));
    for endpoint in Endpoint::ALL {
        let answer = move |site: Site, request: Request| answer(site, request, endpoint);
        router = router.route(endpoint.path(), post(answer));
    }
    if web {
        for (path, kind, content) in PAGE {
            router = router.route(path, get(move || async move { page(kind, content) }));
        }
    }
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Arc::clone(&shared), check))
        .with_state(shared)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(&self.body());
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if matches!(self.status, 429 | 503) {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, RETRY_AFTER.into());
        }
        response
    }
}

fn json_response(value: &Value) -> Response {
    let kind = (header::CONTENT_TYPE, "application/json");
    ([kind], value.to_string()).into_response()
}

/// Origins and keys, in front of every route.
async fn check(State(shared): Site, mut request: Request, next: Next) -> Response {
    let of_line = request.method().as_str().len() + request.uri().to_string().len();
    let of_headers =
        |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    let bytes = of_line + request.headers().iter().map(of_headers).sum::<usize>();
    if bytes > MOST_HEADER_BYTES {
        let message =
            format!("expected headers of at most {MOST_HEADER_BYTES} bytes, found {bytes}");
        return ApiError::new(431, message)
            .code("headers_too_large")
            .into_response();
    }
    let origin = match shared.guard.origin(request.headers()) {
        Ok(origin) => origin,
        Err(error) => return error.into_response(),
    };
    let path = request.uri().path();
    // the page asks for the key itself
    let open = path == "/health" || PAGE.iter().any(|(of_page, ..)| path == *of_page);
    let mut response = if origin.is_some() && request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        let peer = request.extensions().get::<Peer>().copied();
        match shared.guard.client(request.headers(), peer) {
            Err(error) if !open => error.into_response(),
            client => {
                request.extensions_mut().insert(client.unwrap_or(0));
                next.run(request).await
            }
        }
    };
    if let Some(value) = origin.and_then(|origin| HeaderValue::from_str(&origin).ok()) {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, value);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        for (name, value) in [
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, x-api-key",
            ),
            (header::ACCESS_CONTROL_EXPOSE_HEADERS, "x-ignored-fields"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    response
}

async fn no_route() -> ApiError {
    ApiError::new(404, "there is nothing at this path").code("unknown_route")
}

async fn no_method() -> ApiError {
    ApiError::new(405, "this path does not take this method").code("method_not_allowed")
}

fn page(kind: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, content).into_response()
}

/// How long an answer of `/health` waits for a look at the files of the model.
const CHECKED_WITHIN: Duration = Duration::from_secs(1);

async fn health(State(shared): Site) -> Response {
    let dead = shared.service.metrics().dead.load(Ordering::Relaxed);
    let service = Arc::clone(&shared.service);
    // files may be slow to ask
    let mut checking = tokio::task::spawn_blocking(move || service.check_model());
    let checked = tokio::time::timeout(CHECKED_WITHIN, &mut checking).await;
    checking.abort(); // a check that has no thread yet leaves the queue
    let failed = match (dead, checked) {
        (true, _) => Some(ApiError::new(503, "the engine has ended").code("internal")),
        (false, Ok(Ok(Err(error)))) => Some(error),
        // a check that waits behind requests says nothing of the model
        (false, _) => None,
    };
    let (status, mut body) = match (&failed, *shared.stop.borrow()) {
        (Some(_), _) => (503, json!({"status": "failed"})),
        (None, true) => (503, json!({"status": "stopping"})),
        (None, false) => (200, json!({"status": "ok"})),
    };
    if let (Some(error), Some(map)) = (failed, body.as_object_mut()) {
        map.insert("error".to_owned(), error.body()["error"].take());
    }
    let mut response = json_response(&body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    response
}

async fn models(State(shared): Site) -> Response {
    json_response(&shared.service.models())
}

async fn model(
    State(shared): Site,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let Ok(Path(name)) = name else {
        let message = "expected a path of UTF-8 text";
        return Err(ApiError::bad_request(message).of("model"));
    };
    Ok(json_response(&shared.service.model(&name)?))
}

async fn describe() -> Response {
    json_response(&openapi())
}

async fn metrics(State(shared): Site) -> Response {
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4");
    ([kind], shared.service.metrics().text()).into_response()
}

async fn answer(State(shared): Site, request: Request, endpoint: Endpoint) -> Response {
    match try_answer(&shared, request, endpoint).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn try_answer(
    shared: &Arc<Shared>,
    request: Request,
    endpoint: Endpoint,
) -> Result<Response, ApiError> {
    if *shared.stop.borrow() {
        return Err(ApiError::new(503, "the server stops").code("stopping"));
    }
    // the others wait for nothing, but tokenizing takes a while
    let admitted = shared.gate.admit().ok_or_else(|| {
        Metrics::add(&shared.service.metrics().refused, 1);
        ApiError::new(429, "too many requests wait; try again later").code("queue_full")
    })?;
    let (parts, body) = request.into_parts();
    let client = parts.extensions.get::<u64>().copied().unwrap_or(0);
    let bytes = read(&parts.headers, body, shared.most_body).await?;
    let service = Arc::clone(&shared.service);
    let begun = tokio::task::spawn_blocking(move || {
        let body = parse(&bytes)?;
        drop(bytes);
        // what waits for a thread keeps its place, also when its client has gone
        begin(&service, endpoint, body, client).map(|begun| (begun, admitted))
    });
    let (begun, admitted) = begun
        .await
        .map_err(|_| ApiError::new(500, "the request could not be read"))??;
    let mut running = match begun {
        Begun::Body(body, ignored) => {
            shared.service.say_ignored(&ignored);
            return Ok(naming(&ignored, json_response(&body)));
        }
        Begun::Running(running) => running,
    };
    let ignored = running.ignored().to_vec();
    shared.service.say_ignored(&ignored);
    let response = match running.is_stream() {
        true => {
            let headers = [
                (header::CONTENT_TYPE, "text/event-stream"),
                (header::CACHE_CONTROL, "no-cache"),
                (HeaderName::from_static("x-accel-buffering"), "no"),
            ];
            (headers, Body::new(EventBody::new(running, admitted))).into_response()
        }
        false => {
            while let Some(event) = running.events.0.recv().await {
                running.push(&event)?;
            }
            running.complete()?;
            json_response(&running.body())
        }
    };
    Ok(naming(&ignored, response))
}

/// The response, with the fields that were ignored in a header.
fn naming(ignored: &[String], mut response: Response) -> Response {
    let ignored = ignored.join(",");
    if !ignored.is_empty() {
        let shown: String = ignored
            .chars()
            .filter(char::is_ascii_graphic)
            .take(1024)
            .collect();
        if let Ok(value) = HeaderValue::from_str(&shown) {
            let name = HeaderName::from_static("x-ignored-fields");
            response.headers_mut().insert(name, value);
        }
    }
    response
}
