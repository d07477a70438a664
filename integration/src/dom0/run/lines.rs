//! A local socket that takes and gives JSON objects, one per line.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use serde_json::Value;

use super::{Attempt, Failure, Result};

/// The longest request, bytes.
const REQUEST_MAX: usize = 4 << 20;

struct Peer {
    id: u64,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    is_gone: bool,
}

/// The listening socket and its peers.
pub(crate) struct Lines {
    listener: UnixListener,
    peers: Vec<Peer>,
    next_id: u64,
}

impl Lines {
    pub(crate) fn bind(path: &str) -> Result<Self> {
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).doing(path)?;
        listener.set_nonblocking(true).doing(path)?;
        Ok(Self { listener, peers: Vec::new(), next_id: 0 })
    }

    /// What to wait for.
    pub(crate) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let peers = self.peers.iter().map(|peer| {
            let output = if peer.output.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            PollFd::new(&peer.stream, PollFlags::IN | output)
        });
        std::iter::once(PollFd::new(&self.listener, PollFlags::IN)).chain(peers).collect()
    }

    /// Does what can be done without waiting: the requests that came.
    pub(crate) fn service(&mut self) -> Vec<(u64, String)> {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_ok() {
                self.next_id += 1;
                let (input, output) = (Vec::new(), Vec::new());
                self.peers.push(Peer { id: self.next_id, stream, input, output, is_gone: false });
            }
        }
        let mut requests = Vec::new();
        for peer in &mut self.peers {
            peer.flush();
            peer.receive(&mut requests);
        }
        self.peers.retain(|peer| !peer.is_gone);
        requests
    }

    /// Answers a peer; one that has gone is forgotten.
    pub(crate) fn reply(&mut self, id: u64, value: &Value) {
        if let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == id) {
            peer.output.extend(format!("{value}\n").bytes());
            peer.flush();
        }
    }

    /// Whether a peer is still there.
    pub(crate) fn has(&self, id: u64) -> bool {
        self.peers.iter().any(|peer| peer.id == id)
    }
}

impl Peer {
    fn receive(&mut self, requests: &mut Vec<(u64, String)>) {
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.is_gone = true,
                Ok(n) => {
                    self.input.extend(buffer.get(..n).unwrap_or_default());
                    self.is_gone |= self.input.len() > REQUEST_MAX;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => self.is_gone = true,
            }
            if self.is_gone {
                break;
            }
        }
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            requests.push((self.id, String::from_utf8_lossy(&line).trim().to_owned()));
        }
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(n) if n > 0 => drop(self.output.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => {
                    self.is_gone = true;
                    return;
                }
            }
        }
    }
}

impl AsFd for Lines {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Asks a server one thing. When it has ended, the failure has its exit code and reason.
pub(crate) fn ask(socket: &str, request: &Value) -> Result<Value> {
    let gone = |error: std::io::Error| {
        super::process::reason_of_end(socket)
            .unwrap_or_else(|| Failure::Failed(format!("{socket}: {error}")))
    };
    let mut stream = UnixStream::connect(Path::new(socket)).map_err(gone)?;
    stream.write_all(format!("{request}\n").as_bytes()).map_err(gone)?;
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    while answer.last() != Some(&b'\n') {
        match stream.read(&mut buffer).map_err(gone)? {
            0 => return Err(gone(ErrorKind::UnexpectedEof.into())),
            n => answer.extend(buffer.get(..n).unwrap_or_default()),
        }
    }
    serde_json::from_slice(&answer).doing("the server's answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_in_order_and_pieces_are_joined() {
        let path = std::env::temp_dir().join(format!("dom0d-lines-{}", std::process::id()));
        let path = path.to_str().unwrap();
        let mut lines = Lines::bind(path).unwrap();
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(b"{\"a\":1}\n{\"b\"").unwrap();
        let first = lines.service();
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].1, "{\"a\":1}");
        client.write_all(b":2}\n").unwrap();
        let second = lines.service();
        assert_eq!(second[0], (first[0].0, "{\"b\":2}".to_owned()));
        lines.reply(second[0].0, &serde_json::json!({"ok": true}));
        let mut answer = [0; 12];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"{\"ok\":true}\n");
        drop(client);
        assert!(lines.service().is_empty());
        assert!(!lines.has(first[0].0));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn server_that_has_ended_tells_why() {
        let path = std::env::temp_dir().join(format!("dom0d-end-{}", std::process::id()));
        let path = path.to_str().unwrap();
        let end = format!("{path}.exit");
        fs::write(&end, r#"{"code":24,"reason":"why"}"#).unwrap();
        let failure = ask(path, &serde_json::json!({"cmd": "stats"}));
        fs::remove_file(&end).unwrap();
        assert!(matches!(failure, Err(Failure::Code(24, text)) if text.contains("why")));
    }
}
