//! A server as its own process: many requests without growing, and signals.

#![cfg(target_os = "linux")]

use super::demo;
use bitnet_tests::http_client::{connect, post, receive, send};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_run_under_test"))
            .arg("serve")
            .arg(demo())
            .args(["--port", "0", "--json", "--threads", "1"])
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["status"], "listening");
        assert_eq!(ready["model"], "checkpoint");
        let url = ready["url"].as_str().unwrap();
        let address = url.strip_prefix("http://").unwrap().parse().unwrap();
        Self { child, address }
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status();
        assert!(done.unwrap().success());
    }

    /// How it ended.
    fn wait(&mut self) -> i32 {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().expect("no signal");
            }
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "it does not end"
            );
            sleep(Duration::from_millis(10));
        }
    }

    /// Resident bytes.
    fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn running_requests_finish_before_the_process_ends() {
    for signal in ["TERM", "INT"] {
        let mut process = Process::start(&[]);
        let address = process.address;
        let body =
            json!({"prompt": "One", "max_tokens": 500, "ignore_eos": true, "stream": true, "n": 4})
                .to_string();
        let mut clients: Vec<_> = (0..8).map(|_| connect(address)).collect();
        for client in &mut clients {
            send(client, "POST", "/v1/completions", &[], body.as_bytes()).unwrap();
        }
        sleep(Duration::from_millis(300));
        process.signal(signal);
        for client in &mut clients {
            let chunks = receive(client).unwrap().chunks();
            let ends = chunks
                .iter()
                .filter(|c| c["choices"][0]["finish_reason"] == "length");
            assert_eq!(ends.count(), 4);
        }
        assert_eq!(process.wait(), 0);
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}

#[test]
fn requests_beyond_the_grace_period_end_with_an_error() {
    let mut process = Process::start(&["--grace", "0", "--parallel", "1"]);
    let body =
        json!({"prompt": "One", "max_tokens": 500, "ignore_eos": true, "stream": true, "n": 100})
            .to_string();
    let mut client = connect(process.address);
    send(&mut client, "POST", "/v1/completions", &[], body.as_bytes()).unwrap();
    sleep(Duration::from_millis(300));
    process.signal("TERM");
    let reply = receive(&mut client).unwrap();
    let last: Value = serde_json::from_str(reply.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "stopping");
    assert_eq!(process.wait(), 0);
}

#[test]
fn a_signal_in_the_middle_of_load_loses_and_mixes_up_no_answer() {
    let body = |number: usize| json!({"prompt": format!("Request {number}:"), "max_tokens": 8, "seed": number, "temperature": 2});
    let without_name = |mut answer: Value| {
        for key in ["id", "created"] {
            answer.as_object_mut().unwrap().shift_remove(key);
        }
        answer
    };
    let mut process = Process::start(&["--parallel", "16"]);
    let address = process.address;
    let alone: Vec<Value> = (0..24)
        .map(|number| without_name(post(address, "/v1/completions", &body(number)).json()))
        .collect();
    let answered = AtomicUsize::new(0);
    scope(|scope| {
        for client in 0..64 {
            let (alone, answered) = (&alone, &answered);
            scope.spawn(move || {
                for turn in client.. {
                    let number = turn % alone.len();
                    let text = body(number).to_string();
                    // a connection that is refused or that ends before its answer begins is no lost answer
                    let Ok(mut stream) = std::net::TcpStream::connect(address) else {
                        return;
                    };
                    stream
                        .set_read_timeout(Some(Duration::from_secs(60)))
                        .unwrap();
                    if send(&mut stream, "POST", "/v1/completions", &[], text.as_bytes()).is_err() {
                        return;
                    }
                    if !matches!(stream.peek(&mut [0]), Ok(1)) {
                        return;
                    }
                    let reply = receive(&mut stream).unwrap();
                    match reply.status {
                        200 => {
                            assert_eq!(without_name(reply.json()), alone[number]);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        status => {
                            assert_eq!(status, 503, "{}", reply.text());
                            assert_eq!(reply.json()["error"]["code"], "stopping");
                        }
                    }
                }
            });
        }
        let started = Instant::now();
        while answered.load(Ordering::Relaxed) < 100 && started.elapsed() < Duration::from_secs(60)
        {
            sleep(Duration::from_millis(5));
        }
        process.signal("TERM");
    });
    assert!(answered.load(Ordering::Relaxed) >= 100);
    assert_eq!(process.wait(), 0);
}

/// So many requests, so many at once; resident bytes after a quarter of them and at the end.
fn grown(requests: usize, at_once: usize) -> (u64, u64) {
    let process = Process::start(&["--parallel", "16", "--kv-memory", "16MB"]);
    let next = AtomicUsize::new(0);
    let run = |until: usize| {
        scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= until {
                            next.fetch_sub(1, Ordering::Relaxed);
                            return;
                        }
                        let body = json!({"prompt": format!("Request {number}:"), "max_tokens": 3, "stream": number.is_multiple_of(2)});
                        let reply = post(process.address, "/v1/completions", &body);
                        assert_eq!(reply.status, 200, "{}", reply.text());
                    }
                });
            }
        });
    };
    run(requests / 4);
    let before = process.resident();
    run(requests);
    (before, process.resident())
}

#[test]
fn ten_thousand_requests_leave_nothing_behind() {
    let (before, after) = grown(10_000, 64);
    assert!(after < before + (8 << 20), "{before} to {after}");
}
