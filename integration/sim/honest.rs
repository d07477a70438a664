//! Honest traffic, which has to get through whatever happens beside it: two clients and a server beyond the NetVM.

use xen::DomId;
use xen::fake;
use xen::fake::vif::{Guest, attach_client};
use xen::fake::xenstore::Store;
use xen::netif::{RxFlags, RxResponse, TxFlags, TxRequest};

use crate::frames::{self, Ends};
use crate::whole::is_question;
use crate::world::{MS, World};

/// First bytes of what an honest client sends and gets.
pub(crate) const MARK: &[u8] = b"honest";
const PORT: u16 = 40_000;
/// The first of their domains.
const FIRST: u16 = 5;
/// Receive buffers that a client keeps posted.
const BUFFERS: usize = 64;
/// Turns in which a frame has to get through.
const PATIENCE: usize = 12;
/// A client is told so soon that its slots are answered, whatever it sent.
const TOLD_WITHIN_MS: u64 = 11;
pub(crate) const NOT_TOLD: &str = "an honest client was not told that its slots are answered";
/// For so long what a client sent keeps its mapping, in ns: less than RFC 4787's two minutes.
const MAPPING_NS: u64 = 100_000 * MS;
/// Most offset of data in a receive buffer, in bytes: netif.h lets a backend choose it.
const MOST_OFFSET: u16 = 1024;

/// What a sender says of a checksum.
#[derive(Clone, Copy)]
pub(crate) enum Checksum {
    /// It is complete.
    Full,
    /// It is complete, and right.
    Claimed,
    /// The receiver is to complete it.
    Blank,
}

impl Checksum {
    fn apply(self, frame: &mut [u8]) {
        if let Self::Blank = self {
            frames::make_blank(frame);
        }
    }
}

/// A client that does everything right.
pub(crate) struct Honest {
    guest: Guest,
    address: [u8; 4],
    /// The port on our address that stands for its own, and when it sent last, in ns.
    pub(crate) outside: Option<(u16, u64)>,
}

impl Honest {
    pub(crate) fn attach(store: &mut Store, which: u16) -> Self {
        let address = frames::HONEST[usize::from(which)];
        let domain = DomId(FIRST + which);
        let [a, b, c, d] = address;
        attach_client(store, domain, 0, &format!("{a}.{b}.{c}.{d}"));
        let guest = Guest::new(domain, 0);
        guest.publish(store);
        Self { guest, address, outside: None }
    }

    pub(crate) fn post(&mut self) {
        self.guest.post(BUFFERS);
    }

    /// Looks at what was said so far; what comes next is an answer to what it does next.
    pub(crate) fn begin(&mut self) {
        self.guest.responses();
        self.guest.peer.take_notifications();
    }

    /// Sends a datagram to the server, and tells the backend as far as that wants to be told.
    pub(crate) fn send(&mut self, payload: &[u8], checksum: Checksum) {
        let ends = Ends {
            source: (self.address, PORT),
            destination: (frames::SERVER, frames::SERVER_PORT),
        };
        let mut frame = frames::datagram((frames::GATEWAY_MAC, frames::CLIENT_MAC), ends, payload);
        checksum.apply(&mut frame);
        let flags = match checksum {
            Checksum::Full => 0,
            Checksum::Claimed => TxFlags::DATA_VALIDATED,
            Checksum::Blank => TxFlags::CSUM_BLANK | TxFlags::DATA_VALIDATED,
        };
        self.guest.send(&frame, TxFlags(flags));
    }

    /// That so many requests were answered since the last look, and that all are done.
    pub(crate) fn expect_answers(&mut self, count: usize) -> Result<(), String> {
        let answers = self.guest.responses();
        if answers.len() != count || answers.iter().any(|answer| answer.status != 0) {
            return Err(format!("slots of an honest client, {count} in number: {answers:?}"));
        }
        Ok(())
    }

    /// Whether somebody said so since the last look.
    pub(crate) fn is_told(&mut self) -> bool {
        self.guest.peer.take_notifications().contains(&self.guest.port)
    }

    /// Payloads that have arrived from the server; anything else is an error.
    pub(crate) fn take_received(&mut self) -> Result<Vec<Vec<u8>>, String> {
        let got = self.guest.received();
        if got.is_empty() {
            return Ok(vec![]);
        }
        self.guest.post(got.len());
        let payload = |(response, mut frame): (RxResponse, Vec<u8>)| {
            match (response.flags.has(RxFlags::CSUM_BLANK), response.flags.0) {
                (true, _) => frames::complete(&mut frame),
                (false, flags) if RxFlags(flags).has(RxFlags::DATA_VALIDATED) => {
                    return Err("an honest client is told to trust a checksum".into());
                }
                (false, _) => {}
            }
            match frames::read(&frame) {
                Some((ends, bytes)) if ends.destination == (self.address, PORT) => {
                    Ok(bytes.to_vec())
                }
                _ => Err(format!("an honest client got {response:?} {frame:02x?}")),
            }
        };
        got.into_iter().map(payload).collect()
    }
}

impl World {
    /// What we have sent to the uplink, partial checksums completed: each frame is ours, and the NetVM cannot change it.
    pub(crate) fn take_sent(&mut self) -> Result<Vec<Vec<u8>>, String> {
        self.answer_seen()?;
        Ok(std::mem::take(&mut self.answered))
    }

    /// Requests that the NetVM has seen; it is up to the caller to answer them.
    pub(crate) fn take_requests(&mut self) -> Vec<TxRequest> {
        self.seen.drain(..).map(|(request, _)| request).collect()
    }

    /// The NetVM looks at what came: each frame has to be entitled to leave.
    pub(crate) fn look_at_uplink(&mut self) -> Result<(), String> {
        let Some(netvm) = &mut self.netvm else { return Ok(()) };
        for request in netvm.take_requests() {
            let mut frame = vec![0; usize::from(request.size)];
            // An uplink that has closed in the meantime takes its frames back.
            let is_there = netvm.peer.read(request.gref, usize::from(request.offset), &mut frame);
            if is_there.is_ok() {
                self.model.check_out(&frame)?;
                self.seen.push((request, frame));
            }
        }
        if self.is_prompt { self.answer_seen() } else { Ok(()) }
    }

    fn answer_seen(&mut self) -> Result<(), String> {
        let Some(netvm) = &mut self.netvm else { return Ok(()) };
        for (request, frame) in &mut self.seen {
            match request.flags.has(TxFlags::CSUM_BLANK) {
                true => frames::complete(frame),
                // Of its own questions the appliance has computed it.
                false if request.flags.has(TxFlags::DATA_VALIDATED) && !is_question(frame) => {
                    return Err("the uplink is told to trust a checksum".into());
                }
                false => {}
            }
            if netvm.peer.write(request.gref, 0, &[]).is_ok() {
                return Err("the uplink may write into a frame of ours".into());
            }
        }
        for (request, frame) in self.seen.drain(..) {
            netvm.respond(request.id, 0);
            self.answered.push(frame);
        }
        Ok(())
    }

    /// All of them are honest: Linux sends frames of its own with partial checksums, and vouches for what it passes on.
    fn any_checksum(&mut self) -> Checksum {
        let all = [Checksum::Full, Checksum::Claimed, Checksum::Blank];
        all[self.random.usize(0..all.len())]
    }

    /// One of the honest clients.
    pub(crate) fn any_honest(&mut self) -> usize {
        self.random.usize(0..self.honest.len())
    }

    /// An honest client sends a datagram, which has to leave once.
    pub(crate) fn honest_sends(&mut self) -> Result<(), String> {
        let which = self.any_honest();
        self.this_one_sends(which)
    }

    fn this_one_sends(&mut self, which: usize) -> Result<(), String> {
        self.take_sent()?;
        self.number += 1;
        let payload = self.payload(MARK);
        self.honest_sends_only(which, &payload);
        let mut found = Vec::new();
        for _ in 0..PATIENCE {
            self.turns(1)?;
            for sent in self.take_sent()? {
                found.extend(
                    frames::read(&sent).filter(|(_, bytes)| *bytes == payload).map(|(e, _)| e),
                );
            }
            if !found.is_empty() {
                break;
            }
        }
        let [ends] = found.as_slice() else {
            return Err(format!("of a packet of an honest client {} left", found.len()));
        };
        if ends.destination != (frames::SERVER, frames::SERVER_PORT) {
            return Err(format!("an honest client's packet went to {:?}", ends.destination));
        }
        let client = &mut self.honest[which];
        client.outside = Some((ends.source.1, fake::now_ns()));
        client.expect_answers(1)?;
        self.honest_sent += 1;
        if !client.is_told() {
            self.pass(TOLD_WITHIN_MS)?;
            if !self.honest[which].is_told() {
                return Err(NOT_TOLD.into());
            }
        }
        Ok(())
    }

    /// An honest client sends, and nobody looks what becomes of it.
    pub(crate) fn honest_sends_only(&mut self, which: usize, payload: &[u8]) {
        let checksum = self.any_checksum();
        self.honest[which].begin();
        self.honest[which].send(payload, checksum);
    }

    /// The server answers an honest client, which has to get it, and nothing else; the other gets nothing.
    pub(crate) fn honest_gets(&mut self) -> Result<(), String> {
        let which = self.any_honest();
        // A mapping that was not used for two minutes is gone.
        let is_fresh = |(_, at)| fake::now_ns() < at + MAPPING_NS;
        if !self.honest[which].outside.is_some_and(is_fresh) {
            self.this_one_sends(which)?;
        }
        self.take_sent()?;
        self.number += 1;
        let payload = self.payload(MARK);
        let (offset, checksum) = (self.random.u16(0..MOST_OFFSET), self.any_checksum());
        self.server_sends(which, &payload, offset, checksum)?;
        let mut got = Vec::new();
        for _ in 0..PATIENCE {
            self.turns(1)?;
            got.extend(self.honest[which].take_received()?);
            if !got.is_empty() {
                break;
            }
        }
        if got != [payload] {
            return Err(format!("an honest client got {} frames, not its one", got.len()));
        }
        for (other, client) in self.honest.iter_mut().enumerate() {
            if other != which && !client.take_received()?.is_empty() {
                return Err("an honest client got what is the other's".into());
            }
        }
        self.honest_answered += 1;
        Ok(())
    }

    /// The server sends to what stands for an honest client; the frame lies at an offset of the receive buffer.
    pub(crate) fn server_sends(
        &mut self,
        which: usize,
        payload: &[u8],
        offset: u16,
        checksum: Checksum,
    ) -> Result<(), String> {
        let Some((outside, _)) = self.honest[which].outside else { return Ok(()) };
        self.server_sends_to(outside, payload, offset, checksum)
    }

    /// The same to any port of ours.
    pub(crate) fn server_sends_to(
        &mut self,
        port: u16,
        payload: &[u8],
        offset: u16,
        checksum: Checksum,
    ) -> Result<(), String> {
        let ends =
            Ends { source: (frames::SERVER, frames::SERVER_PORT), destination: (self.own, port) };
        let mut frame = frames::datagram((frames::UPLINK_MAC, frames::GATEWAY_MAC), ends, payload);
        checksum.apply(&mut frame);
        let flags = RxFlags(match checksum {
            Checksum::Full => 0,
            Checksum::Claimed => RxFlags::DATA_VALIDATED,
            Checksum::Blank => RxFlags::CSUM_BLANK | RxFlags::DATA_VALIDATED,
        });
        let Some(netvm) = &mut self.netvm else { return Ok(()) };
        let buffer = netvm.take_buffer().ok_or("no receive buffer is posted to the uplink")?;
        let written = netvm.peer.write(buffer.gref, usize::from(offset), &frame);
        written.map_err(|status| format!("a receive buffer cannot be written: {status:?}"))?;
        let status = frame.len() as i16;
        netvm.respond_rx(RxResponse { id: buffer.id, offset, flags, status });
        Ok(())
    }

    /// A payload with a number of its own.
    pub(crate) fn payload(&mut self, mark: &[u8]) -> Vec<u8> {
        let filler = vec![0x55; self.random.usize(0..1200)];
        [mark, &self.number.to_be_bytes(), &filler].concat()
    }
}
