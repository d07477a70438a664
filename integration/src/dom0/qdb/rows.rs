//! The recorded exchanges off the straight path, as data: the unit tests replay them against the server, the
//! probe in a guest replays them against a daemon that runs in dom0.

use super::wire::{Header, kind};

/// One step of an exchange, seen from the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The VM writes these bytes with one ring write.
    Send(Vec<u8>),
    /// The VM reads exactly these bytes.
    Receive(Vec<u8>),
    /// Half a second passes and the VM has nothing to read.
    Silence,
    /// A program in dom0 writes an entry (unit tests only).
    Dom0Writes(&'static str, &'static str),
    /// The VM closes the link.
    Close,
}

/// How dom0's daemon is afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It serves the link.
    Alive,
    /// It announces a new link, with the database kept.
    Announces,
    /// It has ended; the exit code is that of the double.
    Exits(u8),
}

/// A row of the recordings.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name there, with a letter where one row has several cases.
    pub name: &'static str,
    /// What happens after the VM has connected.
    pub steps: Vec<Step>,
    /// And what comes of it.
    pub after: After,
}

impl Row {
    /// Whether it can be replayed by a VM alone.
    pub fn is_for_probe(&self) -> bool {
        !self.steps.iter().any(|step| matches!(step, Step::Dom0Writes(..)))
    }
}

/// The database of all rows.
pub const DATABASE: [(&str, &str); 2] = [("/name", "fw"), ("/qubes-ip", "10.137.0.6")];

/// A message with clean path field and padding.
pub fn message(kind: u8, path: &[u8], value: &[u8]) -> Vec<u8> {
    header_with(kind, path, u32::try_from(value.len()).unwrap_or(u32::MAX), value)
}

fn header_with(kind: u8, path: &[u8], data_len: u32, value: &[u8]) -> Vec<u8> {
    let mut bytes = Header::new(kind, path, data_len).encode();
    bytes.extend(value);
    bytes
}

/// The complete dump of [`DATABASE`]: 228 bytes.
pub fn dump() -> Vec<u8> {
    let mut end = Header::new(kind::RESP_MULTIREAD, b"/name", 0);
    if let Some(first) = end.path.first_mut() {
        *first = 0;
    }
    [
        message(kind::RESP_MULTIREAD, b"/qubes-ip", b"10.137.0.6"),
        message(kind::RESP_MULTIREAD, b"/name", b"fw"),
        end.encode(),
    ]
    .concat()
}

/// All rows M1 to M22 and P1 to P7 in order.
pub fn all() -> Vec<Row> {
    let mut rows = forbidden();
    rows.extend(writes());
    rows.extend(removals());
    rows.extend(answers());
    rows.extend(streams());
    rows.extend(before_the_dump());
    rows
}

/// MULTIREAD and dump first, then `steps`.
fn row(name: &'static str, steps: Vec<Step>, after: After) -> Row {
    let start =
        [Step::Send(message(kind::MULTIREAD, b"", b"")), Step::Receive(dump()), Step::Silence];
    Row { name, steps: start.into_iter().chain(steps).collect(), after }
}

/// One message and its answer; none where `answer` is `None`.
fn ask(name: &'static str, request: Vec<u8>, answer: Option<Vec<u8>>, after: After) -> Row {
    let answer = answer.map_or(Step::Silence, Step::Receive);
    row(name, vec![Step::Send(request), answer], after)
}

fn forbidden() -> Vec<Row> {
    let silent = |name, kind, path: &[u8], value: &[u8]| {
        ask(name, message(kind, path, value), None, After::Exits(20))
    };
    vec![
        ask(
            "M1",
            message(kind::MULTIREAD, b"", b""),
            Some(message(kind::RESP_ERROR, b"", b"")),
            After::Exits(21),
        ),
        silent("M2", 0x0e, b"/x", b""),
        silent("M2b", 0xff, b"/x", b""),
        silent("M3", 0, b"/name", b""),
        silent("M4", kind::RESP_ERROR_NOENT, b"/name", b""),
        silent("M5", kind::RESP_MULTIREAD, b"/name", b"x"),
        ask("M6", message(kind::WRITE, b"/bad path", b"x"), None, After::Exits(22)),
    ]
}

fn writes() -> Vec<Row> {
    let ok = |path: &[u8]| Some(message(kind::RESP_OK, path, b""));
    let refused = |name, path: &[u8]| {
        let answer = message(kind::RESP_ERROR, path, b"");
        ask(name, message(kind::WRITE, path, b"x"), Some(answer), After::Exits(23))
    };
    let longest = [&b"/"[..], &[b'p'; 62]].concat();
    let cut = [&b"/"[..], &[b'q'; 62]].concat();
    let mut uncut = Header::new(kind::WRITE, &cut, 1);
    if let Some(last) = uncut.path.last_mut() {
        *last = b'q';
    }
    let uncut = [uncut.encode(), b"v".to_vec()].concat();
    vec![
        refused("M7", b"noslash"),
        refused("M7b", b"/trail/"),
        refused("M7c", b""),
        ask("M8", uncut, ok(&cut), After::Alive),
        ask("M9", message(kind::WRITE, &longest, b"v"), ok(&longest), After::Alive),
        ask("M12", message(kind::WRITE, b"/big", &[b'x'; 3072]), None, After::Exits(25)),
        ask("M13", message(kind::WRITE, b"/big", &[b'x'; 3071]), ok(b"/big"), After::Alive),
        ask("M14", header_with(kind::WRITE, b"/big", u32::MAX, b""), None, After::Exits(25)),
        ask(
            "M15",
            message(kind::WRITE, b"/nul", b"a\0b"),
            Some(message(kind::RESP_ERROR, b"/nul", b"")),
            After::Alive,
        ),
    ]
}

fn removals() -> Vec<Row> {
    let absent = |name, path: &[u8]| {
        let answer = message(kind::RESP_ERROR_NOENT, path, b"");
        ask(name, message(kind::RM, path, b""), Some(answer), After::Exits(24))
    };
    let answer = |kind| Some(message(kind, b"/name", b""));
    vec![
        absent("M10", b"/absent"),
        absent("M10b", b"/absent/"),
        absent("M10c", b""),
        ask("M11", message(kind::RM, b"/name", b""), answer(kind::RESP_OK), After::Alive),
        ask("M16", message(kind::RM, b"/name", b"x"), answer(kind::RESP_ERROR), After::Alive),
    ]
}

fn answers() -> Vec<Row> {
    let write = message(kind::WRITE, b"/after", b"v");
    vec![
        row(
            "M17",
            vec![
                Step::Send(message(kind::RESP_OK, b"/name", b"data")),
                Step::Silence,
                Step::Send(write),
                Step::Silence,
            ],
            // The first byte of the data, `d`, is taken for a message type.
            After::Exits(20),
        ),
        ask("M18", message(kind::RESP_ERROR, b"/name", b""), None, After::Alive),
        ask("M19", message(kind::RESP_ERROR, b"/name", b"x"), None, After::Exits(26)),
    ]
}

fn streams() -> Vec<Row> {
    let ok = |path: &[u8]| message(kind::RESP_OK, path, b"");
    let mut soiled = Header::new(kind::WRITE, b"/g", 1);
    for (to, from) in soiled.path.iter_mut().skip(3).zip(b"garbage") {
        *to = *from;
    }
    soiled.padding = [0xaa, 0xbb, 0xcc];
    let written = [soiled.encode(), b"v".to_vec()].concat();
    let split = message(kind::WRITE, b"/split", b"four");
    let piece =
        |from: usize, to: usize| Step::Send(split.get(from..to).unwrap_or_default().to_vec());
    let three = [
        message(kind::WRITE, b"/t1", b"a"),
        message(kind::WRITE, b"/t2", b"b"),
        message(kind::RM, b"/t1", b""),
    ];
    vec![
        ask("M20", written, Some(soiled.answer(kind::RESP_OK).encode()), After::Alive),
        row(
            "M21",
            vec![
                piece(0, 30),
                Step::Silence,
                piece(30, 75),
                Step::Silence,
                piece(75, 76),
                Step::Receive(ok(b"/split")),
            ],
            After::Alive,
        ),
        ask(
            "M22",
            three.concat(),
            Some([ok(b"/t1"), ok(b"/t2"), ok(b"/t1")].concat()),
            After::Alive,
        ),
    ]
}

fn before_the_dump() -> Vec<Row> {
    let multiread = || Step::Send(message(kind::MULTIREAD, b"", b""));
    let entry = |path: &[u8], value: &[u8]| message(kind::RESP_MULTIREAD, path, value);
    let end = |left: &[u8]| {
        let mut end = Header::new(kind::RESP_MULTIREAD, &[b"/", left].concat(), 0);
        if let Some(first) = end.path.first_mut() {
            *first = 0;
        }
        end.encode()
    };
    let early =
        [dump().get(..156).unwrap_or_default().to_vec(), entry(b"/early", b"1"), end(b"early")]
            .concat();
    let live =
        [dump().get(..156).unwrap_or_default().to_vec(), entry(b"/live", b"1"), end(b"live")]
            .concat();
    let plain = |name, steps, after| Row { name, steps, after };
    vec![
        plain(
            "P1",
            vec![
                Step::Send(message(kind::WRITE, b"/early", b"1")),
                Step::Receive(message(kind::RESP_OK, b"/early", b"")),
                multiread(),
                Step::Receive(early),
                Step::Silence,
            ],
            After::Alive,
        ),
        plain(
            "P2",
            vec![
                Step::Silence,
                Step::Dom0Writes("/live", "1"),
                Step::Silence,
                multiread(),
                Step::Receive(live),
                Step::Silence,
            ],
            After::Alive,
        ),
        plain(
            "P3",
            vec![
                Step::Send(message(kind::MULTIREAD, b"/qubes", b"")),
                Step::Receive([entry(b"/qubes-ip", b"10.137.0.6"), end(b"qubes-ip")].concat()),
                Step::Silence,
            ],
            After::Alive,
        ),
        plain("P4", vec![Step::Silence, Step::Close], After::Exits(28)),
        plain("P5", vec![multiread(), Step::Close], After::Exits(28)),
        plain(
            "P7",
            vec![multiread(), Step::Receive(dump()), Step::Silence, Step::Close],
            After::Announces,
        ),
    ]
}
