//! A small HTTP/1.1 client, which does what a test tells it, wrong things too.
//!
//! Invariant: nothing is retried or repaired: a test sees the bytes of the server.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a server answered.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, put together.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// The body as text.
    ///
    /// # Panics
    /// If it is no UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The data of all events of a stream, in order; the last one of a whole stream is `[DONE]`.
    pub fn events(&self) -> Vec<String> {
        let lines = self.text().lines();
        let data = lines.filter_map(|line| line.strip_prefix("data: "));
        data.map(str::to_owned).collect()
    }

    /// The JSON of all events in front of `[DONE]`.
    ///
    /// # Panics
    /// If there is no `[DONE]` at the end, or what comes before is no JSON.
    pub fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"), "{}", self.text());
        events
            .iter()
            .map(|event| serde_json::from_str(event).expect("JSON"))
            .collect()
    }
}

/// An open connection.
///
/// # Panics
/// If there is none to be had.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends a request on a connection.
///
/// # Errors
/// Those of the connection.
pub fn send(
    stream: &mut TcpStream,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<()> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// Reads an answer from a connection.
///
/// # Errors
/// Errors of the connection; `InvalidData` if what comes is no HTTP answer.
pub fn receive(stream: &mut TcpStream) -> std::io::Result<Reply> {
    let wrong = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut reader = BufReader::new(stream);
    let mut line = || -> std::io::Result<String> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| wrong(&first))?;
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        match line.split_once(':') {
            Some((name, value)) => {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            None if line.is_empty() => break,
            None => return Err(wrong(&line)),
        }
    }
    let mut reply = Reply {
        status,
        headers,
        body: Vec::new(),
    };
    if let Some(length) = reply.header("content-length") {
        let length: usize = length.parse().map_err(|_| wrong(length))?;
        reply.body = vec![0; length];
        reader.read_exact(&mut reply.body)?;
        return Ok(reply);
    }
    if reply.header("transfer-encoding") != Some("chunked") {
        return Ok(reply);
    }
    loop {
        let mut size = String::new();
        reader.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).map_err(|_| wrong("a chunk"))?;
        let from = reply.body.len();
        reply.body.resize(from + size, 0);
        reader.read_exact(&mut reply.body[from..])?;
        let mut end = [0; 2];
        reader.read_exact(&mut end)?;
        if size == 0 {
            return Ok(reply);
        }
    }
}

/// One request on a connection of its own.
///
/// # Panics
/// If there is no answer.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut stream = connect(address);
    send(&mut stream, method, path, headers, body).expect("sent");
    receive(&mut stream).expect("an answer")
}

/// A JSON body to a path.
///
/// # Panics
/// As [`request`].
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    let headers = [("content-type", "application/json")];
    request(address, "POST", path, &headers, body.to_string().as_bytes())
}

/// What a path shows.
///
/// # Panics
/// As [`request`].
pub fn get(address: SocketAddr, path: &str) -> Reply {
    request(address, "GET", path, &[], b"")
}
