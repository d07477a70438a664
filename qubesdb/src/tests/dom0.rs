//! dom0's daemon as recorded, unforgiving: whatever ends the real one ends this one. Written from the recordings,
//! with its own parser.

use super::feed;
use crate::Client;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub(super) const RING_BYTES: usize = 4096;

pub(super) struct Dom0 {
    database: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Ring towards the client, and what waits in memory for room in it.
    ring: VecDeque<u8>,
    pending: VecDeque<u8>,
    received: Vec<u8>,
    dumped: bool,
    death: Option<&'static str>,
    bytes_to_client: usize,
}

impl Dom0 {
    pub(super) fn new(entries: &[(&str, &str)]) -> Self {
        let own =
            |(key, value): &(&str, &str)| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        Self {
            database: entries.iter().map(own).collect(),
            ring: VecDeque::new(),
            pending: VecDeque::new(),
            received: Vec::new(),
            dumped: false,
            death: None,
            bytes_to_client: 0,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.death.is_none()
    }

    pub(super) fn death(&self) -> Option<&'static str> {
        self.death
    }

    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.database.get(key.as_bytes()).map(Vec::as_slice)
    }

    pub(super) fn entries(&self) -> Vec<(String, String)> {
        let text = |bytes: &Vec<u8>| core::str::from_utf8(bytes).unwrap().to_string();
        self.database.iter().map(|(key, value)| (text(key), text(value))).collect()
    }

    pub(super) fn unread(&self) -> usize {
        self.ring.len()
    }

    pub(super) fn bytes_to_client(&self) -> usize {
        self.bytes_to_client
    }

    /// The client reads.
    pub(super) fn take(&mut self, most: usize) -> Vec<u8> {
        let bytes = self.ring.drain(..most.min(self.ring.len())).collect();
        self.flush();
        bytes
    }

    pub(super) fn local_write(&mut self, key: &str, value: &[u8]) {
        self.database.insert(key.as_bytes().to_vec(), value.to_vec());
        if self.dumped {
            self.send(1, &field(key.as_bytes()), value);
        }
    }

    pub(super) fn local_remove(&mut self, key: &str) {
        if self.remove(key.as_bytes()) && self.dumped {
            self.send(4, &field(key.as_bytes()), &[]);
        }
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        let before = self.database.len();
        let below = key.ends_with(b"/");
        self.database.retain(|k, _| if below { !k.starts_with(key) } else { k != key });
        self.database.len() != before
    }

    /// The client wrote bytes.
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
        while self.is_alive() && self.received.len() >= 72 {
            let length = u32::from_le_bytes(self.received[68..72].try_into().unwrap()) as usize;
            if length >= 3072 {
                self.death = Some("value too long");
            } else if self.received.len() < 72 + length {
                break;
            } else {
                let message: Vec<u8> = self.received.drain(..72 + length).collect();
                self.handle(&message);
            }
        }
    }

    fn handle(&mut self, message: &[u8]) {
        let path_field = &message[1..68];
        let path: Vec<u8> = message[1..65].iter().copied().take_while(|&b| b != 0).collect();
        let value = &message[72..];
        match message[0] {
            2 if self.dumped => self.death = Some("second MULTIREAD"),
            2 => self.dump(&path, path_field),
            1 if !is_key(&path) => self.death = Some("write of an illegal path"),
            1 if value.contains(&0) => self.send(9, path_field, &[]),
            1 => {
                self.database.insert(path, value.to_vec());
                self.send(7, path_field, &[]);
            }
            4 if self.ring.len() + 72 > RING_BYTES => {
                self.death = Some("no room to answer a removal");
            }
            4 if !self.remove(&path) => self.death = Some("removal of an absent entry"),
            4 => self.send(7, path_field, &[]),
            7 | 9 if !value.is_empty() => self.death = Some("answer with a value"),
            7 | 9 => {}
            _ => self.death = Some("illegal type"),
        }
    }

    fn dump(&mut self, prefix: &[u8], request: &[u8]) {
        assert!(prefix.is_empty());
        let mut last = request.to_vec();
        for (key, value) in self.database.clone().into_iter().rev() {
            last = field(&key);
            self.send(11, &last, &value);
        }
        last[0] = 0;
        self.send(11, &last, &[]);
        self.dumped = true;
    }

    fn send(&mut self, kind: u8, path_field: &[u8], value: &[u8]) {
        assert_eq!(path_field.len(), 67);
        self.pending.push_back(kind);
        self.pending.extend(path_field);
        self.pending.extend((value.len() as u32).to_le_bytes());
        self.pending.extend(value);
        self.flush();
    }

    fn flush(&mut self) {
        while self.ring.len() < RING_BYTES {
            let Some(byte) = self.pending.pop_front() else { break };
            self.ring.push_back(byte);
            self.bytes_to_client += 1;
        }
    }
}

/// Path and padding.
fn field(key: &[u8]) -> Vec<u8> {
    let mut field = key.to_vec();
    field.resize(67, 0);
    field
}

fn is_key(path: &[u8]) -> bool {
    let legal = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_/.:@";
    path.starts_with(b"/") && !path.ends_with(b"/") && path.iter().all(|b| legal.contains(b))
}

/// Moves bytes both ways until nothing moves; events are taken and forgotten.
pub(super) fn exchange(dom0: &mut Dom0, client: &mut Client) {
    loop {
        let received = dom0.take(RING_BYTES);
        feed_with_answers(dom0, client, &received);
        let moved = transmit(dom0, client, usize::MAX);
        if received.is_empty() && !moved && dom0.unread() == 0 {
            return;
        }
    }
}

/// One step of sending; says whether something was sent.
pub(super) fn transmit(dom0: &mut Dom0, client: &mut Client, most: usize) -> bool {
    let bytes = client.poll_transmit(dom0.unread(), RING_BYTES);
    let bytes = bytes[..bytes.len().min(most)].to_vec();
    client.transmitted(bytes.len());
    dom0.receive(&bytes);
    !bytes.is_empty()
}

fn feed_with_answers(dom0: &mut Dom0, client: &mut Client, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let piece = bytes.len().min(client.input_room()).min(1000);
        feed(client, &bytes[..piece]);
        bytes = &bytes[piece..];
        while transmit(dom0, client, usize::MAX) {}
    }
}
