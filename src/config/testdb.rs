//! dom0's side of a QubesDB link for tests: real messages into a real client.

use qubesdb::{Client, Event, Limits};

const WRITE: u8 = 1;
const RM: u8 = 4;
const RESP_OK: u8 = 7;
const RESP_MULTIREAD: u8 = 11;
const HEADER: usize = 72;

/// A client with what dom0 sends to it and gets from it.
pub(crate) struct TestDb {
    pub(crate) client: Client,
    /// Keys and values that the client wrote, oldest first.
    pub(crate) written: Vec<(String, String)>,
    to_client: Vec<u8>,
    from_client: Vec<u8>,
}

impl TestDb {
    pub(crate) fn new() -> Self {
        Self::within(Limits::default())
    }

    pub(crate) fn within(limits: Limits) -> Self {
        let (to_client, from_client) = (Vec::new(), Vec::new());
        Self { client: Client::new(limits), written: Vec::new(), to_client, from_client }
    }

    /// A client that has taken this dump.
    pub(crate) fn with(entries: &[(&str, &str)]) -> Self {
        let mut db = Self::new();
        db.dump(entries);
        db.run(|_, _| {});
        db
    }

    /// Connects (again) and sends a dump, in the order of dom0: descending.
    pub(crate) fn dump(&mut self, entries: &[(&str, &str)]) {
        self.to_client.clear();
        self.from_client.clear();
        self.client.connected();
        let mut sorted = entries.to_vec();
        sorted.sort_unstable();
        for (path, value) in sorted.iter().rev() {
            self.send(RESP_MULTIREAD, path, value);
        }
        self.send(RESP_MULTIREAD, "", "");
    }

    pub(crate) fn write(&mut self, path: &str, value: &str) {
        self.send(WRITE, path, value);
    }

    pub(crate) fn remove(&mut self, path: &str) {
        self.send(RM, path, "");
    }

    fn send(&mut self, kind: u8, path: &str, value: &str) {
        let mut message = vec![0; HEADER];
        message[0] = kind;
        message[1..=path.len()].copy_from_slice(path.as_bytes());
        message[68..72].copy_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
        message.extend_from_slice(value.as_bytes());
        self.to_client.extend_from_slice(&message);
    }

    /// Delivers everything in both directions; `on_event` gets each event and may command.
    pub(crate) fn run(&mut self, mut on_event: impl FnMut(&Event, &mut Client)) {
        loop {
            while let Some(event) = self.client.poll_event() {
                on_event(&event, &mut self.client);
            }
            let sent = self.client.poll_transmit(self.to_client.len(), 4096).to_vec();
            self.client.transmitted(sent.len());
            self.from_client.extend_from_slice(&sent);
            let room = self.client.input_room().min(self.to_client.len());
            let piece: Vec<u8> = self.to_client.drain(..room).collect();
            assert_eq!(self.client.handle_bytes(&piece), room);
            let answered = self.answer();
            if sent.is_empty() && room == 0 && !answered {
                return;
            }
        }
    }

    /// Takes the complete messages of the client apart and answers its writes.
    fn answer(&mut self) -> bool {
        let mut any = false;
        while let Some(header) = self.from_client.get(..HEADER) {
            let (kind, path) = (header[0], header[1..65].split(|b| *b == 0).next().unwrap());
            let path = String::from_utf8(path.to_vec()).unwrap();
            let length = u32::from_le_bytes(header[68..72].try_into().unwrap()) as usize;
            let Some(value) = self.from_client.get(HEADER..HEADER + length) else { break };
            if kind == WRITE {
                self.written.push((path.clone(), String::from_utf8(value.to_vec()).unwrap()));
                self.send(RESP_OK, &path, "");
            }
            self.from_client.drain(..HEADER + length);
            any = true;
        }
        any
    }
}
