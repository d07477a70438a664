//! DNS messages for tests, put together byte by byte: nothing here uses the code under test.

use core::net::{IpAddr, Ipv4Addr};

pub(crate) const A: u16 = 1;
pub(crate) const NS: u16 = 2;
pub(crate) const CNAME: u16 = 5;
pub(crate) const SOA: u16 = 6;
pub(crate) const AAAA: u16 = 28;

/// A name as DNS writes it, put together by hand.
pub(crate) fn wire(text: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = text
        .split('.')
        .flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat())
        .collect();
    bytes.push(0);
    bytes
}

/// A question that went out.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) server: IpAddr,
    pub(crate) port: u16,
    pub(crate) id: u16,
    /// Name, type and class.
    pub(crate) question: Vec<u8>,
}

impl Asked {
    pub(crate) fn name(&self) -> &[u8] {
        &self.question[..self.question.len() - 4]
    }

    pub(crate) fn kind(&self) -> u16 {
        let at = self.question.len() - 4;
        u16::from_be_bytes([self.question[at], self.question[at + 1]])
    }
}

/// An answer under construction.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) question: Vec<u8>,
    pub(crate) answers: Vec<Vec<u8>>,
    pub(crate) authority: Vec<Vec<u8>>,
}

/// A record whose owner is `name` in wire form.
pub(crate) fn record(name: &[u8], kind: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = name.to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes.extend(ttl.to_be_bytes());
    bytes.extend((data.len() as u16).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A pointer to the name of the question.
pub(crate) const TO_QUESTION: &[u8] = &[0xc0, 12];

pub(crate) fn soa(ttl: u32, minimum: u32) -> Vec<u8> {
    let mut data = [wire("ns.example.org"), wire("admin.example.org")].concat();
    for number in [1, 7200, 900, 1_209_600, minimum] {
        data.extend(u32::to_be_bytes(number));
    }
    record(&wire("example.org"), SOA, ttl, &data)
}

impl Reply {
    pub(crate) fn to(asked: &Asked) -> Self {
        Self {
            id: asked.id,
            flags: 0x8180,
            question: asked.question.clone(),
            answers: vec![],
            authority: vec![],
        }
    }

    pub(crate) fn a(self, ttl: u32, address: Ipv4Addr) -> Self {
        self.answer(record(TO_QUESTION, A, ttl, &address.octets()))
    }

    pub(crate) fn answer(mut self, record: Vec<u8>) -> Self {
        self.answers.push(record);
        self
    }

    pub(crate) fn authority(mut self, record: Vec<u8>) -> Self {
        self.authority.push(record);
        self
    }

    pub(crate) fn rcode(mut self, rcode: u16) -> Self {
        self.flags |= rcode;
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let counts = [1, self.answers.len() as u16, self.authority.len() as u16, 0];
        let mut bytes: Vec<u8> =
            [self.id, self.flags].into_iter().chain(counts).flat_map(u16::to_be_bytes).collect();
        bytes.extend(&self.question);
        bytes.extend(self.answers.iter().chain(&self.authority).flatten());
        bytes
    }
}
