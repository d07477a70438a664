//! DNS messages: the question that we ask, and what an answer says about its question.
//!
//! [`read`] is the door for bytes from outside; it and what follows from it look at each byte a bounded number of
//! times and keep nothing but [`MAX_ADDRESSES`] addresses. `smoltcp::wire::dns` parses records and names: each
//! compression pointer that it follows must lead further back than the one before, so that none go in circles.
//! The cache, the TTL bounds and the question whether an answer is ours are elsewhere (`store`, `resolver`).

use core::net::IpAddr;

use rules::Family;
use smoltcp::wire::{DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsRcode, DnsRepr};
use smoltcp::wire::{DnsQuestion, DnsRecord, DnsRecordData};

use super::name::{MAX_WIRE_BYTES, NameText, WireName};

/// Addresses that are taken of one answer.
pub const MAX_ADDRESSES: usize = 64;
/// Aliases that are followed from the name that was asked for.
pub const MAX_ALIASES: usize = 8;
/// Records of an answer that are looked at.
const MAX_RECORDS: u16 = 256;
/// Bytes of a question of ours.
pub(crate) const MAX_QUERY_BYTES: usize = 12 + MAX_WIRE_BYTES + 4;
/// The five numbers at the end of an SOA record (RFC 1035, 3.3.13); the last of them is MINIMUM.
const SOA_NUMBERS_BYTES: usize = 20;

/// Which addresses of a name are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4.
    A,
    /// IPv6.
    Aaaa,
}

impl Kind {
    /// What a rule tree of this family needs.
    #[must_use]
    pub const fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self::A,
            Family::V6 => Self::Aaaa,
        }
    }

    /// The family of its addresses.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::A => Family::V4,
            Self::Aaaa => Family::V6,
        }
    }

    const fn query_type(self) -> DnsQueryType {
        match self {
            Self::A => DnsQueryType::A,
            Self::Aaaa => DnsQueryType::Aaaa,
        }
    }
}

/// Writes a question and says how long it is; `None` if `out` is too small for it.
pub(crate) fn write_query(out: &mut [u8], id: u16, name: &WireName, kind: Kind) -> Option<usize> {
    let question = DnsQuestion { name: name.bytes(), type_: kind.query_type() };
    let (opcode, flags) = (DnsOpcode::Query, DnsFlags::RECURSION_DESIRED);
    let repr = DnsRepr { transaction_id: id, opcode, flags, question };
    let len = repr.buffer_len();
    let out = out.get_mut(..len)?;
    // The bits that smoltcp has no name for must be zero (RFC 1035, 4.1.1).
    out.fill(0);
    repr.emit(&mut DnsPacket::new_unchecked(out));
    Some(len)
}

/// A message that is no answer, or one that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not a response to a standard query with exactly one question.
    #[error("no response to one question")]
    NoResponse,
    /// Neither A nor AAAA of class IN was asked for.
    #[error("another type or class")]
    OtherType,
    /// A name or record is cut off, or its compression pointers go in circles.
    #[error("a name or record cannot be read")]
    Unreadable,
    /// More than [`MAX_ALIASES`] aliases, or aliases in a circle.
    #[error("too many aliases")]
    TooManyAliases,
}

impl From<smoltcp::wire::Error> for Malformed {
    fn from(_: smoltcp::wire::Error) -> Self {
        Self::Unreadable
    }
}

/// A response to one question about the addresses of a name.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    /// The name in the question.
    name: &'a [u8],
    kind: Kind,
    /// The records behind the question.
    records: &'a [u8],
}

/// How the name of a question compares to ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Echo {
    /// The same bytes.
    Exact,
    /// The same name with other cases.
    OtherCase,
    /// Another name.
    Other,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "lives for one call; a box would allocate on the data path"
)]
pub enum Outcome {
    /// The name has these addresses, at least one.
    Addresses {
        /// In the order of the message, none twice.
        addresses: Addresses,
        /// The least TTL of the records that led to them.
        ttl_s: u32,
    },
    /// The name does not exist.
    NoSuchName {
        /// How long that may be believed (RFC 2308), if the message says so.
        ttl_s: Option<u32>,
    },
    /// The name exists without addresses of this kind.
    NoAddress {
        /// As for a name that does not exist.
        ttl_s: Option<u32>,
    },
    /// The answer did not fit: to be asked again over TCP.
    Truncated,
    /// The server cannot say.
    Failed,
}

/// Addresses of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    list: [Option<IpAddr>; MAX_ADDRESSES],
    len: usize,
}

impl Addresses {
    const EMPTY: Self = Self { list: [None; MAX_ADDRESSES], len: 0 };

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.list.iter().flatten().copied()
    }

    /// More than fit are left out.
    fn push(&mut self, address: IpAddr) {
        if self.iter().any(|known| known == address) {
            return;
        }
        if let Some(place) = self.list.get_mut(self.len) {
            *place = Some(address);
            self.len += 1;
        }
    }
}

/// Reads the header and the question of a response.
///
/// # Errors
/// If it is no response, or not to a question of ours.
pub fn read(bytes: &[u8]) -> Result<Message<'_>, Malformed> {
    let packet = DnsPacket::new_checked(bytes)?;
    let is_response = packet.flags().contains(DnsFlags::RESPONSE);
    if !is_response || packet.opcode() != DnsOpcode::Query || packet.question_count() != 1 {
        return Err(Malformed::NoResponse);
    }
    let sections = bytes.get(bytes.len() - packet.payload().len()..).unwrap_or_default();
    let (records, question) = DnsQuestion::parse(sections)?;
    let kind = match question.type_ {
        DnsQueryType::A => Kind::A,
        DnsQueryType::Aaaa => Kind::Aaaa,
        _ => return Err(Malformed::OtherType),
    };
    Ok(Message { bytes, name: question.name, kind, records })
}

impl<'a> Message<'a> {
    /// The number that ties it to its question.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.packet().transaction_id()
    }

    /// Which addresses were asked for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The name that was asked for; `None` if no rule can name it.
    #[must_use]
    pub fn name(&self) -> Option<NameText> {
        let mut text = NameText::EMPTY;
        for label in self.packet().parse_name(self.name) {
            text.push_label(label.ok()?)?;
        }
        Some(text)
    }

    /// Compares the question with ours.
    pub(crate) fn echoes(&self, name: &WireName, kind: Kind) -> Echo {
        if kind != self.kind {
            return Echo::Other;
        }
        if self.name == name.bytes() {
            return Echo::Exact;
        }
        // As bytes: a response whose question is compressed was not made from ours.
        if self.name.eq_ignore_ascii_case(name.bytes()) { Echo::OtherCase } else { Echo::Other }
    }

    /// What it says about its question.
    ///
    /// # Errors
    /// If a record that counts cannot be read, or the aliases do not end.
    pub fn outcome(&self) -> Result<Outcome, Malformed> {
        let packet = self.packet();
        if packet.flags().contains(DnsFlags::TRUNCATED) {
            return Ok(Outcome::Truncated);
        }
        match packet.rcode() {
            DnsRcode::NoError => self.addresses(),
            DnsRcode::NXDomain => Ok(Outcome::NoSuchName { ttl_s: self.authority()?.ttl_s }),
            _ => Ok(Outcome::Failed),
        }
    }

    /// Follows the aliases from the name that was asked for to the addresses.
    fn addresses(&self) -> Result<Outcome, Malformed> {
        let mut name = self.name;
        let mut ttl_s = u32::MAX;
        for _ in 0..=MAX_ALIASES {
            let mut found = Addresses::EMPTY;
            let mut alias = None;
            let mut rest = self.records;
            for _ in 0..self.answers() {
                let (next, record) = DnsRecord::parse(rest)?;
                rest = next;
                if !self.is_same(record.name, name)? {
                    continue;
                }
                match (self.kind, record.data) {
                    (Kind::A, DnsRecordData::A(address)) => found.push(address.into()),
                    (Kind::Aaaa, DnsRecordData::Aaaa(address)) => found.push(address.into()),
                    (_, DnsRecordData::Cname(target)) => alias = alias.or(Some(target)),
                    _ => continue,
                }
                ttl_s = ttl_s.min(ttl(record.ttl));
            }
            if found.len > 0 {
                return Ok(Outcome::Addresses { addresses: found, ttl_s });
            }
            match alias {
                Some(target) => name = target,
                None => return self.no_address(),
            }
        }
        Err(Malformed::TooManyAliases)
    }

    /// No record answers the question: the name has none, or the server sends us to other servers.
    fn no_address(&self) -> Result<Outcome, Malformed> {
        let authority = self.authority()?;
        Ok(if authority.is_referral {
            Outcome::Failed
        } else {
            Outcome::NoAddress { ttl_s: authority.ttl_s }
        })
    }

    fn authority(&self) -> Result<Authority, Malformed> {
        let mut rest = self.records;
        for _ in 0..self.packet().answer_record_count() {
            rest = DnsRecord::parse(rest)?.0;
        }
        let mut authority = Authority { ttl_s: None, is_referral: false };
        for _ in 0..self.packet().authority_record_count().min(MAX_RECORDS) {
            let (next, record) = DnsRecord::parse(rest)?;
            rest = next;
            match record.data {
                DnsRecordData::Other(DnsQueryType::Soa, data) => {
                    let minimum = soa_minimum(data).ok_or(Malformed::Unreadable)?;
                    let ttl_s = ttl(record.ttl).min(minimum);
                    return Ok(Authority { ttl_s: Some(ttl_s), is_referral: false });
                }
                DnsRecordData::Other(DnsQueryType::Ns, _) => authority.is_referral = true,
                _ => {}
            }
        }
        Ok(authority)
    }

    fn answers(&self) -> u16 {
        self.packet().answer_record_count().min(MAX_RECORDS)
    }

    fn is_same(&self, one: &[u8], other: &[u8]) -> Result<bool, Malformed> {
        let packet = self.packet();
        let (mut left, mut right) = (packet.parse_name(one), packet.parse_name(other));
        let mut len = 1;
        loop {
            match (left.next().transpose()?, right.next().transpose()?) {
                (None, None) => return Ok(true),
                (Some(l), Some(r)) if l.eq_ignore_ascii_case(r) => len += l.len() + 1,
                _ => return Ok(false),
            }
            if len > MAX_WIRE_BYTES {
                return Err(Malformed::Unreadable);
            }
        }
    }

    fn packet(&self) -> DnsPacket<&'a [u8]> {
        DnsPacket::new_unchecked(self.bytes)
    }
}

/// What the authority section says about an absence.
struct Authority {
    ttl_s: Option<u32>,
    is_referral: bool,
}

fn soa_minimum(data: &[u8]) -> Option<u32> {
    let numbers = data.len().checked_sub(SOA_NUMBERS_BYTES)?;
    // Two names stand before the numbers, each at least one byte.
    (numbers >= 2).then_some(())?;
    Some(ttl(u32::from_be_bytes(*data.last_chunk::<4>()?)))
}

/// A TTL with the highest bit set is none (RFC 2181, section 8).
fn ttl(value: u32) -> u32 {
    if value > i32::MAX as u32 { 0 } else { value }
}
