//! One flow, as small as it can be: the table has as many as fit into its memory.
//!
//! What its faces have in common is there once ([`Words`]), and no address that the table has anyway: the client's is that
//! of its owner, what stands for it outside is ours ([`super::table::Table::inside_of`],
//! [`super::table::Table::outside_of`]). A flow whose faces are others cannot be made, or gets no place in the table.

use core::net::IpAddr;

use crate::clients::{Generation, HostId};
use crate::conntrack::face::{Halves, Tuple, Words};
use crate::conntrack::marks::Marks;
use crate::conntrack::slab::Slab;
use crate::conntrack::{Basis, Class, Hold, Permit, Standing, list, tcp};
use crate::dns::Held;
use crate::fast::Passed;
use crate::nat::MappingId;
use crate::time::Instant;

const _: () = assert!(Slab::<Flow>::SLOT_BYTES <= 128);

/// One flow and both its faces.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(crate) struct Flow {
    /// Not usable from then on.
    pub(crate) deadline: Instant,
    words: Words,
    /// The far end as the client sees it, before any DNS redirection.
    remote_inside: Halves,
    /// As the world sees it.
    remote_outside: Halves,
    /// Present for TCP.
    pub(crate) tcp: Option<tcp::Tracker>,
    pub(super) links: list::Links,
    pub(crate) generation: Generation,
    /// For the fast path.
    pub(crate) passed: Passed,
    /// The mapping if it has one, or the client that it goes to if it is between clients.
    number: u32,
    /// The name by which the rules accepted it, as of its generation.
    pub(crate) held: Option<Held>,
    /// The client that opened it, or that it was forwarded to.
    host: u16,
    /// The stretch of time in which its deadline was when it got its place in the list of its class.
    listed: u16,
    pub(crate) class: Class,
    marks: Marks,
}

// Marks of a flow.
const IS_FIRM: u8 = 1;
const IS_FORBIDDEN: u8 = 2;
/// It has a mapping.
const IS_MAPPED: u8 = 4;
const IS_FORWARDED: u8 = 8;
/// It is noted for filtering by address.
const IS_NOTED: u8 = 16;

/// A flow that is renewed again and again moves in the list of its class once in such a stretch of time (in nanoseconds, a
/// power of two: half a second), so that the head of a list may be up to that much further from its end than one behind it.
const STRETCH: u32 = 29;

/// No lifetime is as long as it takes until stretches have the same numbers again: no flow is taken for one that is in its
/// place because of that.
const _: () = assert!((Class::LONGEST.as_nanos() >> STRETCH) < 1 << u16::BITS);

fn stretch_of(deadline: Instant) -> u16 {
    (deadline.as_nanos() >> STRETCH) as u16
}

impl Flow {
    /// A flow without a place in any list yet. `None` if its faces are not those of one flow.
    pub(super) fn new(now: Instant, new: &NewFlow) -> Option<Self> {
        let (between, number) = match (new.basis, new.mapping) {
            (Basis::Allowed { to }, None) => (true, to.0),
            (Basis::Rules, Some(mapping)) => (false, mapping.number()),
            (Basis::Rules | Basis::Forwarded, None) => (false, 0),
            (Basis::Allowed { .. } | Basis::Forwarded, Some(_)) => return None,
        };
        let marks = Marks::default()
            .with(IS_MAPPED, new.mapping.is_some())
            .with(IS_FORWARDED, new.basis == Basis::Forwarded)
            .with(IS_NOTED, new.is_noted);
        let deadline = now.after(new.class.lifetime());
        Some(Self {
            deadline,
            words: Words::new(&new.inside, &new.outside, between)?,
            remote_inside: Halves::of(new.inside.remote),
            remote_outside: Halves::of(new.outside.remote),
            tcp: new.tcp,
            links: list::Links::default(),
            generation: new.permit.generation,
            passed: Passed::default(),
            number,
            held: new.permit.held,
            host: u16::try_from(new.host.0).ok()?,
            listed: stretch_of(deadline),
            class: new.class,
            marks,
        })
    }

    /// Whether its inside face is `face`, if that has the address of the flow's client.
    #[inline(always)]
    pub(super) fn is_inside(&self, face: &Tuple) -> bool {
        self.words.inside() == face.word() && self.remote_inside.is(face.remote)
    }

    /// Whether its outside face is `face`, if that has the address which stands for the flow's client.
    #[inline(always)]
    pub(super) fn is_outside(&self, face: &Tuple) -> bool {
        self.words.outside() == face.word() && self.remote_outside.is(face.remote)
    }

    /// Whether its outside face has our own address and is `face`, if that has it.
    #[inline(always)]
    pub(super) fn is_outside_of_us(&self, face: &Tuple) -> bool {
        self.words.is_outside_of_us(face.word()) && self.remote_outside.is(face.remote)
    }

    /// Its inside face; `client` is the client's address.
    pub(super) fn inside(&self, client: IpAddr) -> Tuple {
        Tuple {
            protocol: self.protocol(),
            local: client,
            local_port: self.words.local_port_inside(),
            remote: self.remote_inside.address(self.words.is_ipv6()),
            remote_port: self.words.remote_port(),
        }
    }

    /// Its outside face; `local` is what stands for the client's address there.
    pub(super) fn outside(&self, local: IpAddr) -> Tuple {
        Tuple {
            protocol: self.protocol(),
            local,
            local_port: self.local_port_outside(),
            remote: self.remote_outside(),
            remote_port: self.words.remote_port(),
        }
    }

    pub(crate) fn protocol(&self) -> u8 {
        self.words.protocol()
    }

    pub(crate) fn is_ipv4(&self) -> bool {
        !self.words.is_ipv6()
    }

    #[inline(always)]
    pub(crate) fn local_port_inside(&self) -> u16 {
        self.words.local_port_inside()
    }

    #[inline(always)]
    pub(crate) fn local_port_outside(&self) -> u16 {
        self.words.local_port_outside()
    }

    /// The far end as the world sees it.
    pub(crate) fn remote_outside(&self) -> IpAddr {
        self.remote_outside.address(self.words.is_ipv6())
    }

    /// Whether the far end is another one than the client means: DNS is redirected.
    pub(crate) fn is_redirected(&self) -> bool {
        self.remote_inside != self.remote_outside
    }

    /// Whether both faces have the client's address.
    pub(super) fn is_between_clients(&self) -> bool {
        self.words.is_between_clients()
    }

    #[inline(always)]
    pub(crate) fn host(&self) -> HostId {
        HostId(self.host.into())
    }

    pub(crate) fn basis(&self) -> Basis {
        if self.is_between_clients() {
            Basis::Allowed { to: HostId(self.number) }
        } else if self.marks.has(IS_FORWARDED) {
            Basis::Forwarded
        } else {
            Basis::Rules
        }
    }

    /// The port on our address; none for protocols without ports, and where there is no NAT or it is a forwarded one.
    pub(crate) fn mapping(&self) -> Option<MappingId> {
        self.marks.has(IS_MAPPED).then(|| MappingId::numbered(self.number))
    }

    /// Whether it is noted for filtering by address.
    pub(crate) fn is_noted(&self) -> bool {
        self.marks.has(IS_NOTED)
    }

    #[inline(always)]
    pub(crate) fn standing(&self) -> Standing {
        if self.marks.has(IS_FORBIDDEN) { Standing::Forbidden } else { Standing::Accepted }
    }

    pub(crate) fn set_standing(&mut self, standing: Standing) {
        self.marks.set(IS_FORBIDDEN, standing == Standing::Forbidden);
    }

    #[inline(always)]
    pub(crate) fn hold(&self) -> Hold {
        if self.marks.has(IS_FIRM) { Hold::Firm } else { Hold::Loose }
    }

    pub(super) fn set_hold(&mut self, hold: Hold) {
        self.marks.set(IS_FIRM, hold == Hold::Firm);
    }

    /// Starts its lifetime anew; false if it has to move in the list of its class.
    #[inline(always)]
    pub(crate) fn prolong(&mut self, now: Instant) -> bool {
        self.deadline = now.after(self.class.lifetime());
        stretch_of(self.deadline) == self.listed
    }

    /// Notes that it gets its place in a list now.
    pub(super) fn note_listed(&mut self) {
        self.listed = stretch_of(self.deadline);
    }
}

/// What a new flow starts with.
#[derive(Debug)]
pub(crate) struct NewFlow {
    /// As the client sees it, before any DNS redirection.
    pub(crate) inside: Tuple,
    /// As the world sees it.
    pub(crate) outside: Tuple,
    pub(crate) host: HostId,
    pub(crate) basis: Basis,
    pub(crate) mapping: Option<MappingId>,
    pub(crate) is_noted: bool,
    pub(crate) permit: Permit,
    pub(crate) class: Class,
    pub(crate) tcp: Option<tcp::Tracker>,
}
