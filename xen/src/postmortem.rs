//! The last things that happened, kept for the case that an invariant of our own breaks, and the report that is made of them
//! then: what dom0's console log tells of an end that nobody asked for.
//!
//! Noting costs a few stores into a ring of fixed size; no text is made and no clock is read. An event that repeats the one
//! before it is counted there, so that a flood of one kind does not push everything else out.
#![forbid(unsafe_code)]

use core::cell::Cell;
use core::fmt;

use crate::mem::ledger::{self, Part};
use crate::mem::{self, global};
use crate::{counts, event, time};

/// Events that are kept.
pub const EVENTS: usize = 256;

/// What happened. The two numbers of an event mean what is said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// An event channel fired: its port.
    Port,
    /// Went to sleep: until when (ns of system time; 0: until something happens).
    Sleep,
    /// Frames were taken from clients: how many.
    FromClients,
    /// Frames were taken from the uplink: how many.
    FromUplink,
    /// Grants were copied: operations, bytes.
    Copy,
    /// A client's frontend broke the protocol: its slot.
    Violation,
    /// A client's vif was connected: its slot, its domain.
    ClientUp,
    /// It is gone: its slot.
    ClientDown,
    /// The uplink was connected: its backend's domain.
    UplinkUp,
    /// It is gone.
    UplinkDown,
    /// xenstore answered: the part that asked.
    StoreReply,
    /// A watch fired: the part that set it.
    StoreWatch,
    /// QubesDB was connected (1) or lost (0).
    Database,
    /// The qrexec control channel was opened (1) or lost (0).
    Agent,
    /// A call's channel was opened (1) or is gone (0).
    Call,
    /// Work had to wait for memory: the part.
    Short,
    /// The domain was suspended and goes on.
    Resumed,
    /// dom0 asked us to stop.
    Stop,
}

impl What {
    /// Its name, and those of its numbers where there are any.
    const fn names(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::Port => ("event", ["port", ""]),
            Self::Sleep => ("sleep", ["until_ns", ""]),
            Self::FromClients => ("from-clients", ["frames", ""]),
            Self::FromUplink => ("from-uplink", ["frames", ""]),
            Self::Copy => ("copy", ["operations", "bytes"]),
            Self::Violation => ("violation", ["slot", ""]),
            Self::ClientUp => ("client-up", ["slot", "domid"]),
            Self::ClientDown => ("client-down", ["slot", ""]),
            Self::UplinkUp => ("uplink-up", ["domid", ""]),
            Self::UplinkDown => ("uplink-down", ["", ""]),
            Self::StoreReply => ("store-reply", ["part", ""]),
            Self::StoreWatch => ("store-watch", ["part", ""]),
            Self::Database => ("qubesdb", ["up", ""]),
            Self::Agent => ("qrexec", ["up", ""]),
            Self::Call => ("call", ["up", ""]),
            Self::Short => ("short-of-memory", ["part", ""]),
            Self::Resumed => ("resumed", ["", ""]),
            Self::Stop => ("stop", ["", ""]),
        }
    }
}

/// An event as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Noted {
    /// Xen's system time when the clock was last looked at, ns.
    at_ns: u64,
    what: What,
    numbers: [u64; 2],
    /// How often it happened in a row.
    times: u32,
}

impl fmt::Display for Noted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, keys) = self.what.names();
        f.write_str(name)?;
        for (key, number) in keys.into_iter().zip(self.numbers) {
            match (key, usize::try_from(number).ok().and_then(|part| Part::ALL.get(part))) {
                ("", _) => {}
                ("part", Some(part)) => write!(f, " part={}", part.name())?,
                _ => write!(f, " {key}={number}")?,
            }
        }
        match self.times {
            0 | 1 => Ok(()),
            times => write!(f, " times={times}"),
        }
    }
}

struct Ring {
    events: [Cell<Option<Noted>>; EVENTS],
    /// Events noted since the start; repetitions are one.
    count: Cell<u64>,
}

global! {
    static RING: Ring =
        Ring { events: [const { Cell::new(None) }; EVENTS], count: Cell::new(0) };
}

/// Notes an event that two numbers say more about.
pub fn note(what: What, numbers: [u64; 2]) {
    let at_ns = time::latest_ns();
    RING.with(|ring| {
        let count = ring.count.get();
        if let Some(last) = ring.slot(count.wrapping_sub(1))
            && let Some(noted) =
                last.get().filter(|noted| (noted.what, noted.numbers) == (what, numbers))
        {
            let times = noted.times.saturating_add(1);
            return last.set(Some(Noted { at_ns, times, ..noted }));
        }
        if let Some(slot) = ring.slot(count) {
            slot.set(Some(Noted { at_ns, what, numbers, times: 1 }));
        }
        ring.count.set(count.wrapping_add(1));
    });
}

impl Ring {
    fn slot(&self, number: u64) -> Option<&Cell<Option<Noted>>> {
        self.events.get((number % EVENTS as u64) as usize)
    }

    /// The newest first.
    fn newest(&self) -> impl Iterator<Item = Noted> + '_ {
        let count = self.count.get();
        let numbers = (1..=EVENTS as u64).map(move |back| count.wrapping_sub(back));
        numbers.filter_map(|number| self.slot(number)?.get())
    }
}

/// Forgets all events together with the fake hypervisor that they happened on.
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(crate) fn reset() {
    RING.with(|ring| {
        ring.events.iter().for_each(|slot| slot.set(None));
        ring.count.set(0);
    });
}

/// Writes the report, a line for each call of `line`: what was asked of Xen, the books about memory, and the events, the
/// newest first. `line` says whether it took the line; the first one that it did not take is the last. Allocates nothing and
/// borrows nothing that the code that failed may have borrowed, but for the last line.
pub fn report(mut line: impl FnMut(fmt::Arguments<'_>) -> bool) {
    let whole = try_report(&mut line);
    // The pool may be what was in use: then there is a second panic, which ends it here.
    if whole {
        line(format_args!(
            "post-mortem: end pages_free={} pages={}",
            mem::free_pages(),
            mem::total_pages()
        ));
    }
}

fn try_report(line: &mut impl FnMut(fmt::Arguments<'_>) -> bool) -> bool {
    let now = time::latest_ns();
    let counts = counts::counts();
    let operations = ledger::operations();
    let head = line(format_args!(
        "post-mortem: system_time_ns={now} hypercalls={} copies={} events_sent={} sleeps={} channels={}",
        counts.hypercalls,
        counts.copies,
        counts.notifications,
        counts.sleeps,
        event::open_channels()
    ));
    let memory = head
        && line(format_args!(
            "post-mortem: operations largest={} refused={} reserve_used={} leaks={}",
            operations.largest, operations.refused, operations.reserve_used, operations.leaks
        ));
    let mut parts = Part::ALL.into_iter().map(|part| (part, ledger::usage(part)));
    memory
        && parts.all(|(part, has)| {
            line(format_args!(
                "post-mortem: memory part={} live={} peak={} blocks={} failures={}",
                part.name(),
                has.live,
                has.peak,
                has.blocks,
                has.failures
            ))
        })
        && RING.with(|ring| {
            ring.newest().all(|noted| {
                let ago_us = now.saturating_sub(noted.at_ns) / 1000;
                line(format_args!("post-mortem: ago_us={ago_us} {noted}"))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn lines(most: usize) -> Vec<String> {
        let mut lines = Vec::new();
        report(|line| {
            lines.push(line.to_string());
            lines.len() < most
        });
        lines
    }

    fn events() -> Vec<String> {
        let all = lines(usize::MAX);
        all.into_iter().filter(|line| line.contains("ago_us=")).collect()
    }

    #[test]
    fn the_newest_event_is_told_first_and_the_oldest_are_gone() {
        reset();
        for port in 0..300 {
            note(What::Port, [port, 0]);
        }
        let events = events();
        assert_eq!(events.len(), EVENTS);
        assert!(events[0].ends_with(" event port=299"), "{}", events[0]);
        assert!(events[255].ends_with(" event port=44"), "{}", events[255]);
    }

    #[test]
    fn repetitions_are_one_event() {
        reset();
        note(What::UplinkDown, [0, 0]);
        for _ in 0..1000 {
            note(What::FromClients, [3, 0]);
        }
        note(What::Short, [Part::Rules as u64, 0]);
        let events = events();
        let ends =
            ["short-of-memory part=rules", "from-clients frames=3 times=1000", "uplink-down"];
        assert!(events.iter().zip(ends).all(|(event, end)| event.ends_with(end)), "{events:?}");
        assert_eq!(events.len(), 3);
    }

    #[test]
    fn times_are_told_from_the_end() {
        reset();
        let _ = time::system_time_ns();
        note(What::Stop, [0, 0]);
        fake::advance_ns(5_000_000);
        let _ = time::system_time_ns();
        assert_eq!(events(), ["post-mortem: ago_us=5000 stop"]);
    }

    #[test]
    fn the_report_is_bounded_and_whole() {
        reset();
        for port in 0..1000 {
            note(What::Port, [u64::MAX - port, 0]);
        }
        let all = lines(usize::MAX);
        assert_eq!(all.len(), 2 + Part::ALL.len() + EVENTS + 1);
        assert!(all.iter().all(|line| line.len() < 120), "no line is cut");
        assert!(all.iter().any(|line| line.contains("memory part=packets live=")));
        assert!(all.last().unwrap().starts_with("post-mortem: end pages_free="));
    }

    #[test]
    fn a_console_that_takes_nothing_more_ends_it() {
        reset();
        note(What::Stop, [0, 0]);
        for most in 1..14 {
            assert_eq!(lines(most).len(), most);
        }
    }
}
