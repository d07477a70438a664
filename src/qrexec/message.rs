//! Framing of both channels: `type` u32, `len` u32, body; little endian (Qubes `qrexec.h`).

/// Size of a header in bytes.
pub(super) const HEADER_BYTES: usize = 8;

/// The version that we speak: the newest one that all supported releases accept.
pub(super) const VERSION: u32 = 3;
/// Below this no daemon of a supported release goes.
pub(super) const LOWEST_VERSION: u32 = 2;

pub(super) const DATA_STDIN: u32 = 0x190;
pub(super) const DATA_STDOUT: u32 = 0x191;
pub(super) const DATA_STDERR: u32 = 0x192;
pub(super) const DATA_EXIT_CODE: u32 = 0x193;
pub(super) const EXEC_CMDLINE: u32 = 0x200;
pub(super) const JUST_EXEC: u32 = 0x201;
pub(super) const SERVICE_CONNECT: u32 = 0x202;
pub(super) const SERVICE_REFUSED: u32 = 0x203;
pub(super) const TRIGGER_SERVICE3: u32 = 0x212;
pub(super) const CONNECTION_TERMINATED: u32 = 0x211;
pub(super) const HELLO: u32 = 0x300;

/// A decoded header; neither field is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) len: u32,
}

impl Header {
    fn decode(raw: [u8; HEADER_BYTES]) -> Self {
        let [k0, k1, k2, k3, l0, l1, l2, l3] = raw;
        Self {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
        }
    }

    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let [k0, k1, k2, k3] = self.kind.to_le_bytes();
        let [l0, l1, l2, l3] = self.len.to_le_bytes();
        [k0, k1, k2, k3, l0, l1, l2, l3]
    }
}

/// A message whose body is one number: HELLO, EXIT_CODE.
pub(super) fn number_message(kind: u32, number: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    let header = Header { kind, len: 4 }.encode();
    for (to, from) in bytes.iter_mut().zip(header.into_iter().chain(number.to_le_bytes())) {
        *to = from;
    }
    bytes
}

/// CONNECTION_TERMINATED.
pub(super) fn terminated_message(domain: u32, port: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    let header = Header { kind: CONNECTION_TERMINATED, len: 8 }.encode();
    let body = domain.to_le_bytes().into_iter().chain(port.to_le_bytes());
    for (to, from) in bytes.iter_mut().zip(header.into_iter().chain(body)) {
        *to = from;
    }
    bytes
}

/// A step of a message in a byte stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'b> {
    /// A header is complete. Its length is to be judged before the body is waited for.
    Begin(Header),
    /// A piece of the body.
    Body(&'b [u8]),
    /// The body is complete.
    End,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header { raw: [u8; HEADER_BYTES], have: usize },
    Body { left: u32 },
}

/// Cuts a byte stream, in pieces of any size, into [`Item`]s. Holds nothing but the header.
#[derive(Debug)]
pub(super) struct Reader {
    state: State,
}

impl Reader {
    pub(super) const fn new() -> Self {
        Self { state: State::Header { raw: [0; HEADER_BYTES], have: 0 } }
    }

    /// The next item; `bytes` is advanced over what it took. `None`: more bytes have to come.
    pub(super) fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Option<Item<'b>> {
        match &mut self.state {
            State::Header { raw, have } => {
                let taken = bytes.len().min(HEADER_BYTES.saturating_sub(*have));
                for (to, from) in raw.iter_mut().skip(*have).zip(split_off(bytes, taken)) {
                    *to = *from;
                }
                *have = have.saturating_add(taken);
                if *have < HEADER_BYTES {
                    return None;
                }
                let header = Header::decode(*raw);
                self.state = State::Body { left: header.len };
                Some(Item::Begin(header))
            }
            State::Body { left: 0 } => {
                *self = Self::new();
                Some(Item::End)
            }
            State::Body { .. } if bytes.is_empty() => None,
            State::Body { left } => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX);
                let piece = split_off(bytes, bytes.len().min(most));
                *left = left.saturating_sub(piece.len() as u32);
                Some(Item::Body(piece))
            }
        }
    }
}

/// Takes the first `count` bytes off.
fn split_off<'b>(bytes: &mut &'b [u8], count: usize) -> &'b [u8] {
    let (front, rest) = bytes.split_at_checked(count).unwrap_or((&[], bytes));
    *bytes = rest;
    front
}
