//! The part of HTTP/1.1 that the clients of the tests use, with faults on request.
//!
//! Invariant: every answer is noted before its last byte is sent.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Kind {
    /// The connection breaks behind so many bytes of the body.
    Drop(usize),
    /// A status with these headers and no content.
    Status(u16, Vec<(String, String)>),
    /// A status without content, of a request that is not served: nothing changes.
    Refused(u16),
    /// The connection closes without an answer, and the request is not served.
    Closed,
    /// `Content-Length`, and `X-Linked-Size` if it is there, are this number.
    Length(u64),
    /// So many bytes at a time with a pause between them.
    Slow(usize, Duration),
    /// A page that asks to log in.
    LoginPage,
    /// The first byte of the body is another.
    Corrupt,
    /// The whole content although a range was asked for.
    WholeFile,
    /// Another validator.
    OtherEtag,
}

/// A fault of some answers.
#[derive(Debug, Clone)]
pub struct Fault {
    /// `GET`, `HEAD`, …, or empty for every method.
    pub method: String,
    /// What the target of the request contains.
    pub target: String,
    /// How often it goes well before.
    pub after: usize,
    /// How often it goes wrong.
    pub times: usize,
    /// What goes wrong.
    pub kind: Kind,
}

impl Fault {
    /// A fault of the first so many answers.
    pub fn new(method: &str, target: &str, times: usize, kind: Kind) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            after: 0,
            times,
            kind,
        }
    }

    /// The same, once so many answers went well.
    #[must_use]
    pub fn after(self, after: usize) -> Self {
        Self { after, ..self }
    }
}

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The content.
    pub body: Vec<u8>,
}

impl Request {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The path, decoded.
    pub fn path(&self) -> String {
        decoded(self.target.split('?').next().unwrap_or_default())
    }

    /// The parameters of the query, decoded.
    pub fn query(&self) -> Vec<(String, String)> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.map(|(k, v)| (decoded(k), decoded(v))).collect()
    }

    /// A parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<String> {
        self.query()
            .into_iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v)
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| std::str::from_utf8(h).ok());
        match (first, hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// `200`
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// The whole content; ranges are cut out of it.
    pub body: Arc<Vec<u8>>,
    /// Whether ranges are served.
    pub ranges: bool,
}

impl Reply {
    /// An answer with content.
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: Arc::new(body.into()),
            ..Self::default()
        }
    }

    /// JSON.
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, value.to_string()).with("Content-Type", "application/json")
    }

    /// The same with a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// An answer that was given.
#[derive(Debug, Clone)]
pub struct Logged {
    /// What was asked.
    pub request: Request,
    /// Its status.
    pub status: u16,
    /// Bytes of content that were sent.
    pub bytes: u64,
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

struct Shared {
    handler: Box<Handler>,
    faults: Mutex<Vec<Fault>>,
    log: Mutex<Vec<Logged>>,
    connections: AtomicUsize, // that are open
    stopped: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server on a free port of the loopback interface, until it is dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    /// Answers every request with the handler.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            faults: Mutex::default(),
            log: Mutex::default(),
            connections: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stopped.load(Ordering::Relaxed) {
                    break;
                }
                let shared = Arc::clone(&accepting);
                if let Ok(stream) = stream {
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    std::thread::spawn(move || {
                        connection(&shared, stream);
                        shared.connections.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Self { address, shared }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Lets something go wrong.
    pub fn fail(&self, fault: Fault) {
        lock(&self.shared.faults).push(fault);
    }

    /// Everything that was answered so far.
    pub fn log(&self) -> Vec<Logged> {
        lock(&self.shared.log).clone()
    }

    /// Forgets what was answered, and the faults. Connections of a program that has ended still hold requests that it
    /// sent: these come first, as long as that takes a moment only.
    pub fn reset(&self) {
        let started = Instant::now();
        while self.shared.connections.load(Ordering::SeqCst) > 0
            && started.elapsed() < Duration::from_secs(2)
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        lock(&self.shared.log).clear();
        lock(&self.shared.faults).clear();
    }

    /// Bytes of content that were sent.
    pub fn bytes(&self) -> u64 {
        lock(&self.shared.log).iter().map(|l| l.bytes).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // wakes the thread that accepts
        let _ = TcpStream::connect(self.address);
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    // a proxy is asked with the whole URL
    let mut request = Request {
        method,
        target,
        ..Request::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        request
            .headers
            .push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    if request.header("expect").is_some() {
        reader
            .get_mut()
            .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            .ok()?;
    }
    if let Some(length) = request
        .header("content-length")
        .and_then(|l| l.parse().ok())
    {
        request.body = vec![0; length];
        reader.read_exact(&mut request.body).ok()?;
    } else if request
        .header("transfer-encoding")
        .is_some_and(|t| t.contains("chunked"))
    {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).ok()?;
            if size == 0 {
                break;
            }
            request.body.extend_from_slice(&chunk[..size]);
        }
    }
    Some(request)
}

fn connection(shared: &Shared, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let Ok(mut writer) = stream.try_clone() else {
        return;
    };
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_request(&mut reader) {
        if shared.stopped.load(Ordering::Relaxed) || !answer(shared, &request, &mut writer) {
            break;
        }
    }
    let _ = writer.shutdown(std::net::Shutdown::Both);
}

fn fault_of(shared: &Shared, request: &Request) -> Option<Kind> {
    let mut faults = lock(&shared.faults);
    let fault = faults.iter_mut().find(|fault| {
        (fault.method.is_empty() || fault.method == request.method)
            && request.target.contains(&fault.target)
            && fault.times > 0
    })?;
    if fault.after > 0 {
        fault.after -= 1;
        return None;
    }
    fault.times -= 1;
    Some(fault.kind.clone())
}

/// `bytes=5-9`, `bytes=5-`, `bytes=-5`
fn range_of(text: &str, len: u64) -> Option<Range<u64>> {
    let (start, end) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (start.parse::<u64>(), end.parse::<u64>()) {
        (Ok(start), Ok(end)) => start..len.min(end + 1),
        (Ok(start), Err(_)) => start..len,
        (Err(_), Ok(last)) => len.saturating_sub(last)..len,
        _ => return None,
    };
    (range.start < range.end).then_some(range)
}

/// Answers; `false` if the connection is to be closed.
fn answer(shared: &Shared, request: &Request, writer: &mut TcpStream) -> bool {
    let fault = fault_of(shared, request);
    let mut reply = match &fault {
        Some(Kind::Closed) => return false,
        Some(Kind::Refused(status)) => Reply::new(*status, Vec::new()),
        _ => (shared.handler)(request),
    };
    match &fault {
        Some(Kind::Status(status, headers)) => {
            reply = Reply::new(*status, Vec::new());
            reply.headers.clone_from(headers);
        }
        Some(Kind::LoginPage) => {
            let page = "<!DOCTYPE html><html><body>Please log in</body></html>";
            reply = Reply::new(200, page).with("Content-Type", "text/html; charset=utf-8");
        }
        Some(Kind::OtherEtag) => {
            for (name, value) in &mut reply.headers {
                if name.to_ascii_lowercase().ends_with("etag") {
                    *value = "\"another\"".to_owned();
                }
            }
        }
        _ => {}
    }
    let len = reply.body.len() as u64;
    let mut range = 0..len;
    let whole = matches!(fault, Some(Kind::WholeFile));
    if reply.ranges && reply.status == 200 && !whole {
        reply
            .headers
            .push(("Accept-Ranges".to_owned(), "bytes".to_owned()));
        if let Some(text) = request.header("range") {
            match range_of(text, len) {
                Some(found) => {
                    reply.status = 206;
                    let value = format!("bytes {}-{}/{len}", found.start, found.end - 1);
                    reply.headers.push(("Content-Range".to_owned(), value));
                    range = found;
                }
                None => {
                    reply.status = 416;
                    reply
                        .headers
                        .push(("Content-Range".to_owned(), format!("bytes */{len}")));
                    range = 0..0;
                }
            }
        }
    }
    let mut body = reply.body[range.start as usize..range.end as usize].to_vec();
    if let (Some(Kind::Corrupt), Some(first)) = (&fault, body.first_mut()) {
        *first ^= 1;
    }
    let mut length = body.len() as u64;
    if let Some(Kind::Length(said)) = fault {
        length = said;
        for (name, value) in &mut reply.headers {
            if name.eq_ignore_ascii_case("x-linked-size") {
                *value = said.to_string();
            }
        }
    }
    let mut head = format!("HTTP/1.1 {} Status\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.status != 304 && reply.status != 204 {
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    head.push_str("\r\n");
    let is_head = request.method == "HEAD";
    let sent: &[u8] = match (&fault, is_head) {
        (_, true) => &[],
        (Some(Kind::Drop(count)), _) => &body[..body.len().min(*count)],
        (Some(Kind::Length(said)), _) => &body[..body.len().min(*said as usize)],
        _ => &body,
    };
    lock(&shared.log).push(Logged {
        request: request.clone(),
        status: reply.status,
        bytes: sent.len() as u64,
    });
    if writer.write_all(head.as_bytes()).is_err() {
        return false;
    }
    let written = match &fault {
        Some(Kind::Slow(count, pause)) => sent.chunks((*count).max(1)).try_for_each(|part| {
            std::thread::sleep(*pause);
            writer.write_all(part)
        }),
        _ => writer.write_all(sent),
    };
    let is_short = !is_head && (sent.len() as u64) < length;
    written.is_ok() && !is_short && !matches!(fault, Some(Kind::Drop(_)))
}
