//! The `fw-mss-clamp` word: TCP peers are told a smaller maximum segment size than they announced, so that their
//! segments fit a way on whose size they never learn (a tunnel beyond the NetVM that swallows the ICMP errors).
//!
//! Only lowered, never raised, and only where a SYN has the option: without it a peer sends small segments anyway
//! (RFC 9293, 3.7.1). Neighbours: `config` reads the word, `pipeline` calls `Firewall::clamp_mss` before a packet leaves.

use core::fmt;
use core::net::IpAddr;
use core::num::NonZeroU16;

use crate::conntrack::tcp::flags;
use crate::firewall::Firewall;
use crate::frame::{Checksum, Frame};
use crate::packet::{Packet, Upper};
use crate::wire::checksum::{Sum, update_full};
use crate::wire::{read_u16, write_u16};

/// Bytes of a TCP header without options.
const TCP_HEADER: usize = 20;
const TCP_CHECKSUM: usize = 16;
/// Bytes of the headers below and of TCP that a segment size does not count (RFC 6691).
const HEADERS_V4: u16 = 40;
const HEADERS_V6: u16 = 60;

const OPTION_END: u8 = 0;
const OPTION_NONE: u8 = 1;
const OPTION_MSS: u8 = 2;
const MSS_BYTES: u8 = 4;

/// Largest TCP segment that peers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MssClamp {
    /// `mtu`: what fits the smaller of the port that a packet leaves by and the uplink.
    Mtu,
    /// So many bytes of payload, for both families.
    Bytes(NonZeroU16),
}

impl MssClamp {
    /// Least number of bytes: what fits the smallest packet that every IPv4 link carries (RFC 791: 68 bytes).
    pub const MIN_BYTES: u16 = 28;

    fn bytes(self, mtu: u16, address: IpAddr) -> u16 {
        let most = match (self, address) {
            (Self::Bytes(most), _) => most.get(),
            (Self::Mtu, IpAddr::V4(_)) => mtu.saturating_sub(HEADERS_V4),
            (Self::Mtu, IpAddr::V6(_)) => mtu.saturating_sub(HEADERS_V6),
        };
        most.max(Self::MIN_BYTES)
    }
}

impl fmt::Display for MssClamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mtu => f.write_str("mtu"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

impl Firewall {
    /// Tells TCP peers of flows that are opened from now on a smaller segment size; `None`: what they say themselves.
    pub fn set_mss_clamp(&mut self, clamp: Option<MssClamp>) {
        self.mss_clamp = clamp;
    }

    /// Lowers the segment size in a SYN that leaves through a port with this MTU.
    pub(crate) fn clamp_mss(&self, packet: &Packet, mtu: u16, frame: &mut Frame<'_>) {
        let Some(clamp) = self.mss_clamp else { return };
        let Upper::Tcp(segment) = packet.upper else { return };
        if segment.flags & flags::SYN == 0 {
            return;
        }
        let mtu = self.uplink.map_or(mtu, |uplink| uplink.port.caps.mtu.min(mtu));
        lower(frame, packet.l4, clamp.bytes(mtu, packet.source));
    }
}

/// Lowers the option, wherever it stands, and keeps the checksum right. Leaves alone what is no well-formed option.
fn lower(frame: &mut Frame<'_>, l4: usize, most: u16) {
    let Some(segment) = frame.bytes().get(l4..) else { return };
    let Some(value_at) = find(segment) else { return };
    if read_u16(segment, value_at) <= most {
        return;
    }
    let is_full = frame.offload.checksum != Checksum::Blank;
    let Some(segment) = frame.bytes_mut().get_mut(l4..) else { return };
    // Options need not be aligned, checksums count aligned words: two of them cover the value.
    let words = [value_at & !1, (value_at + 1) & !1];
    let covered = words.map(|at| read_u16(segment, at));
    write_u16(segment, value_at, most);
    if is_full {
        let mut change = Sum::default();
        let is_one_word = words.iter().all(|at| *at == value_at);
        for (at, old) in words.into_iter().zip(covered).skip(usize::from(is_one_word)) {
            change = change.replace(old, read_u16(segment, at));
        }
        let field = read_u16(segment, TCP_CHECKSUM);
        write_u16(segment, TCP_CHECKSUM, update_full(field, change));
    }
}

/// Where the value of the segment size option stands (etherparse's options have no places), counted from the TCP header.
fn find(segment: &[u8]) -> Option<usize> {
    let header_len = usize::from(segment.get(12)? >> 4) * 4;
    let header = segment.get(..header_len)?;
    let mut at = TCP_HEADER;
    while let Some(kind) = header.get(at) {
        let len = match (*kind, header.get(at + 1)) {
            (OPTION_END, _) => return None,
            (OPTION_NONE, _) => 1,
            (OPTION_MSS, Some(&MSS_BYTES)) => {
                return (at + usize::from(MSS_BYTES) <= header_len).then_some(at + 2);
            }
            // Nothing after an option of a wrong length can be understood.
            (_, None | Some(0 | 1)) => return None,
            (_, Some(len)) => usize::from(*len),
        };
        at += len;
    }
    None
}
