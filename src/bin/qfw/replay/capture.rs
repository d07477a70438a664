//! Capture files, pcap and pcapng, packet by packet. Memory stays bounded whatever the file says.

use std::io::{self, Read};

use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};

/// A record may be as large as this, and a buffer is.
const RECORD_BYTES: usize = 1 << 20;
/// Interfaces in one section of a pcapng file.
const MAX_INTERFACES: usize = 4096;
const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// A packet as it was captured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record<'c> {
    pub(crate) link: Linktype,
    /// Since 1970. None if the file does not say it.
    pub(crate) nanos: Option<u64>,
    pub(crate) bytes: &'c [u8],
    /// How long the packet was, which may be more than what was captured of it.
    pub(crate) original_len: u32,
}

/// Why a capture was not read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("not a pcap or pcapng file")]
    NotACapture,
    #[error("it ends in the middle of a record")]
    CutOff,
    #[error("a record is larger than 1 MiB")]
    TooLarge,
    #[error("a record cannot be understood")]
    Malformed,
    #[error("more than {MAX_INTERFACES} interfaces")]
    TooManyInterfaces,
    #[error("it cannot be read")]
    Unreadable,
}

/// Calls `take` with each packet, in the order of the file.
pub(crate) fn read(
    source: impl Read + Send,
    mut take: impl FnMut(Record<'_>),
) -> Result<(), Broken> {
    let source = Whole(source);
    let mut reader = create_reader(RECORD_BYTES, source).map_err(|error| match error {
        PcapError::ReadError => Broken::Unreadable,
        _ => Broken::NotACapture,
    })?;
    let mut section = Section::default();
    let mut seen = None;
    loop {
        match reader.next() {
            Ok((length, block)) => {
                if let Some(record) = section.record(&block)? {
                    take(record);
                }
                if length == 0 && !matches!(block, PcapBlockOwned::LegacyHeader(_)) {
                    return Err(Broken::Malformed);
                }
                reader.consume(length);
                seen = None;
            }
            Err(PcapError::Eof) => return Ok(()),
            Err(PcapError::Incomplete(_)) => {
                // What was not enough before is not enough again.
                let available = reader.data().len();
                if seen == Some(available) && !reader.reader_exhausted() {
                    return Err(Broken::TooLarge);
                }
                seen = Some(available);
                reader.refill().map_err(|_| Broken::Unreadable)?;
            }
            Err(PcapError::UnexpectedEof) => return Err(Broken::CutOff),
            Err(PcapError::BufferTooSmall) => return Err(Broken::TooLarge),
            Err(PcapError::ReadError) => return Err(Broken::Unreadable),
            Err(_) => return Err(Broken::Malformed),
        }
    }
}

/// Fills the buffers that it is given: the reader takes the file's header out of its first read.
struct Whole<R>(R);

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(space) = buffer.get_mut(filled..).filter(|space| !space.is_empty()) {
            match self.0.read(space) {
                Ok(0) => break,
                Ok(more) => filled = filled.saturating_add(more),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// What the records of a file have in common.
#[derive(Default)]
struct Section {
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy)]
struct Interface {
    link: Linktype,
    /// Time units in a second.
    units: u128,
    offset_seconds: i64,
}

impl Section {
    fn record<'c>(&mut self, block: &PcapBlockOwned<'c>) -> Result<Option<Record<'c>>, Broken> {
        Ok(match block {
            PcapBlockOwned::LegacyHeader(header) => {
                let is_nanos = header.is_nanosecond_precision();
                let units = if is_nanos { NANOS_PER_SECOND } else { 1_000_000 };
                self.add(Interface { link: header.network, units, offset_seconds: 0 })?;
                None
            }
            PcapBlockOwned::Legacy(record) => self.interfaces.first().map(|interface| {
                let units = u128::from(record.ts_sec).saturating_mul(interface.units);
                let nanos = interface.nanos(units.saturating_add(record.ts_usec.into()));
                let (bytes, original_len) = (record.data, record.origlen);
                Record { link: interface.link, nanos, bytes, original_len }
            }),
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                self.interfaces.clear();
                None
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                self.add(Interface {
                    link: interface.linktype,
                    units: units(interface.if_tsresol),
                    offset_seconds: interface.if_tsoffset,
                })?;
                None
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let at = usize::try_from(packet.if_id).unwrap_or(usize::MAX);
                self.interfaces.get(at).map(|interface| {
                    let units = u128::from(packet.ts_high) << 32 | u128::from(packet.ts_low);
                    let length = usize::try_from(packet.caplen).unwrap_or(usize::MAX);
                    Record {
                        link: interface.link,
                        nanos: interface.nanos(units),
                        bytes: packet.data.get(..length).unwrap_or(packet.data),
                        original_len: packet.origlen,
                    }
                })
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                self.interfaces.first().map(|interface| Record {
                    link: interface.link,
                    nanos: None,
                    bytes: {
                        let length = usize::try_from(packet.orig_len()).unwrap_or(usize::MAX);
                        packet.data.get(..length).unwrap_or(packet.data)
                    },
                    original_len: packet.origlen,
                })
            }
            PcapBlockOwned::NG(_) => None,
        })
    }

    fn add(&mut self, interface: Interface) -> Result<(), Broken> {
        if self.interfaces.len() >= MAX_INTERFACES {
            return Err(Broken::TooManyInterfaces);
        }
        self.interfaces.push(interface);
        Ok(())
    }
}

/// Units in a second (pcapng, `if_tsresol`): a power of ten, or of two where the highest bit is set.
fn units(resolution: u8) -> u128 {
    let exponent = u32::from(resolution & 0x7f);
    let units = match resolution & 0x80 {
        0 => 10_u128.checked_pow(exponent),
        _ => 1_u128.checked_shl(exponent),
    };
    // Finer than any clock: no time at all.
    units.filter(|units| *units > 0).unwrap_or(u128::MAX)
}

impl Interface {
    fn nanos(&self, units: u128) -> Option<u64> {
        let seconds = i128::try_from(units.checked_div(self.units)?).ok()?;
        let rest = units.checked_rem(self.units)?.checked_mul(NANOS_PER_SECOND)?;
        let rest = i128::try_from(rest.checked_div(self.units)?).ok()?;
        let seconds = seconds.checked_add(self.offset_seconds.into())?;
        let nanos = seconds.checked_mul(1_000_000_000)?.checked_add(rest)?;
        u64::try_from(nanos).ok()
    }
}
