//! The xenstore client against a store that writes anything into the shared page; and its parsers.
//!
//! Requests stay bounded, each has at most one reply, and what is on the request ring is a sequence of whole messages
//! that a store takes.

use std::collections::BTreeMap;

use xen::event::Channel;
use xen::shared::SharedPage;
use xen::xenstore::{
    self, Client, EncodeError, Event, HEADER_BYTES, Header, Health, MAX_OUTSTANDING, MAX_QUEUED,
    Op, Owner, PAYLOAD_MAX, Request, RequestError, StoreError, Token, TransactionEnd, TxId,
};
use xen::{DomId, fake};

use crate::source::Source;

const RING: u32 = 1024;
const RSP: usize = 1024;
const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;
const PATHS: &[&str] =
    &["device/vif/0/state", "/local/domain/3", "data", "", "bad path", "@introduceDomain", "a//b"];

/// A script of our requests and of what the store does.
pub fn run(data: &[u8]) {
    parsers(data);
    let mut source = Source::new(data);
    // Not the toolstack's port: it is closed with its client, and a new hypervisor for every input would cost memory
    // that is never given back.
    let page = fake::store_page();
    let channel = Channel::alloc_unbound(DomId(0)).expect("a port");
    let mut store = Store::new(fake::store_page(), &mut source, &page);
    let mut client = Client::new(page, channel);
    let mut asked = BTreeMap::new();
    while !source.is_empty() {
        match source.below(8) {
            0 | 1 => ask(&mut client, &mut source, &mut asked),
            2 => client.flush(),
            3 | 4 => store.answer(&mut source),
            5 => store.write(source.piece()),
            6 => store.watch_event(&mut source),
            _ => store.jump(&mut source),
        }
        for _ in 0..source.below(8) {
            match client.poll() {
                Some(Event::Reply(reply)) => {
                    let owner = asked.remove(&reply.id).expect("a reply to what was asked, once");
                    assert_eq!(owner, letter(reply.owner));
                    if let Ok(payload) = reply.result {
                        assert!(payload.len() <= PAYLOAD_MAX);
                    }
                }
                Some(Event::Watch(event)) => assert!(event.path.len() <= PAYLOAD_MAX),
                None => break,
            }
        }
        assert!(client.pending() <= MAX_OUTSTANDING + MAX_QUEUED);
        store.check_requests();
        if store.has_jumped && client.health() == Health::Broken {
            return;
        }
    }
}

fn ask(client: &mut Client, source: &mut Source<'_>, asked: &mut BTreeMap<xenstore::ReqId, char>) {
    let path = source.pick(PATHS);
    let token = Token { owner: Owner::Netback, id: source.long(), generation: source.long() };
    let owner = source.pick(&[Owner::Platform, Owner::Netback, Owner::Netfront]);
    let value = vec![source.byte(); usize::from(source.word()) % 5000];
    let request = match source.below(9) {
        0 => Request::Directory { path },
        1 => Request::Read { path },
        2 => Request::Write { path, value: &value },
        3 => Request::Mkdir { path },
        4 => Request::Watch { path, token },
        5 => Request::Unwatch { path, token },
        6 => Request::TransactionStart,
        7 => Request::TransactionEnd(TransactionEnd::Commit),
        _ => Request::ResetWatches,
    };
    match client.request(owner, request) {
        Ok(id) => assert!(asked.insert(id, letter(owner)).is_none(), "a number in use"),
        Err(RequestError::Full) => assert!(!client.has_room(1)),
        Err(RequestError::Encode(EncodeError::TooLong)) => assert!(value.len() > 4000),
        Err(RequestError::Encode(EncodeError::Path)) => {}
    }
}

fn letter(owner: Owner) -> char {
    match owner {
        Owner::Platform => 'p',
        Owner::Netback => 'b',
        Owner::Netfront => 'f',
    }
}

/// The other end of the page.
struct Store {
    page: SharedPage,
    req_cons: u32,
    rsp_prod: u32,
    taken: Vec<u8>,
    /// Operation and number of requests without an answer.
    open: Vec<(u32, u32)>,
    has_jumped: bool,
}

impl Store {
    /// Earlier kernels of the domain may have left the indices anywhere.
    fn new(page: SharedPage, source: &mut Source<'_>, other_view: &SharedPage) -> Self {
        let (req, rsp) = (source.long(), source.long());
        for (at, index) in [(REQ_CONS, req), (REQ_PROD, req), (RSP_CONS, rsp), (RSP_PROD, rsp)] {
            page.store_release_u32(at, index);
        }
        assert_eq!(other_view.load_acquire_u32(REQ_PROD), req, "one page");
        Self {
            page,
            req_cons: req,
            rsp_prod: rsp,
            taken: Vec::new(),
            open: Vec::new(),
            has_jumped: false,
        }
    }

    /// Puts on the ring what fits.
    fn write(&mut self, bytes: &[u8]) {
        let used = self.rsp_prod.wrapping_sub(self.page.load_acquire_u32(RSP_CONS));
        let room = RING.saturating_sub(used) as usize;
        for byte in &bytes[..bytes.len().min(room)] {
            self.page.copy_in(RSP + (self.rsp_prod % RING) as usize, &[*byte]);
            self.rsp_prod = self.rsp_prod.wrapping_add(1);
        }
        self.page.store_release_u32(RSP_PROD, self.rsp_prod);
    }

    fn message(&mut self, op: u32, req_id: u32, payload: &[u8], len: u32) {
        let header = Header { op, req_id, tx_id: 0, len };
        self.write(&[&header.encode()[..], payload].concat());
    }

    fn answer(&mut self, source: &mut Source<'_>) {
        let (op, id) = match self.open.is_empty() {
            true => (source.long(), source.long()),
            false => self.open.swap_remove(source.below(self.open.len())),
        };
        let op = source.pick(&[op, op, op, Op::Error as u32, 0]);
        let payload = source.piece();
        let wrong = source.pick(&[0, 0, 0, 0, 1, u32::MAX]);
        self.message(op, id, payload, (payload.len() as u32).wrapping_add(wrong));
    }

    fn watch_event(&mut self, source: &mut Source<'_>) {
        let token = Token { owner: Owner::Netfront, id: source.long(), generation: 1 }.encode();
        let path = source.pick(PATHS);
        let payload = match source.below(3) {
            0 => format!("{path}\0{token}\0").into_bytes(),
            1 => format!("{path}\0{token}").into_bytes(),
            _ => source.piece().to_vec(),
        };
        self.message(Op::WatchEvent as u32, 0, &payload, payload.len() as u32);
    }

    fn jump(&mut self, source: &mut Source<'_>) {
        self.has_jumped = true;
        let at = source.pick(&[REQ_CONS, RSP_PROD]);
        let by = source.pick(&[1, 1024, 1025, 0x8000_0000, u32::MAX]);
        let index = self.page.load_acquire_u32(at).wrapping_add(by);
        self.page.store_release_u32(at, index);
        match at {
            REQ_CONS => self.req_cons = index,
            _ => self.rsp_prod = index,
        }
    }

    /// Reads what the client wrote.
    fn check_requests(&mut self) {
        if self.has_jumped {
            return;
        }
        let prod = self.page.load_acquire_u32(REQ_PROD);
        assert!(prod.wrapping_sub(self.req_cons) <= RING, "the request ring overflows");
        while self.req_cons != prod {
            let mut byte = [0];
            self.page.copy_out((self.req_cons % RING) as usize, &mut byte);
            self.taken.extend(byte);
            self.req_cons = self.req_cons.wrapping_add(1);
        }
        self.page.store_release_u32(REQ_CONS, self.req_cons);
        while let Some(head) = self.taken.first_chunk::<HEADER_BYTES>() {
            let header = Header::decode(head);
            let length = header.len as usize;
            assert!(length <= PAYLOAD_MAX && header.req_id != 0);
            if self.taken.len() < HEADER_BYTES + length {
                return;
            }
            self.taken.drain(..HEADER_BYTES + length);
            assert!(self.open.len() < 2000);
            self.open.push((header.op, header.req_id));
        }
    }
}

fn parsers(data: &[u8]) {
    if let Some(head) = data.first_chunk::<HEADER_BYTES>() {
        assert_eq!(Header::decode(head).encode(), *head);
    }
    let _ = StoreError::parse(data);
    if let Some(TxId(number)) = TxId::parse(data) {
        assert!(number.to_string().len() <= data.len());
    }
    if let Ok(text) = core::str::from_utf8(data)
        && let Some(token) = Token::parse(text)
    {
        assert_eq!(token.encode(), text);
    }
    if let Some(number) = xenstore::decimal_u32(data) {
        assert_eq!(number.to_string().as_bytes(), data);
    }
    assert!(xenstore::children(data).all(|name| !name.is_empty() && !name.contains('\0')));
}
