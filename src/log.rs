//! The log: one line per message, limited per source.
//!
//! No peer may make us spend time or dom0's disk on logging, so each [`Source`] has a token bucket of its own: a chatty
//! client silences only itself. What was suppressed is said in one line as soon as the source has a token again. The
//! lines go to a [`Sink`], which is the Xen console in the image; the console itself never blocks.

use core::fmt;

use crate::time::Instant;

/// Lines that a source may write at once.
const BURST: u32 = 40;
/// Time after which a source gets one more line, in nanoseconds: five lines a second in the long run.
const REFILL_NS: u64 = 200_000_000;
/// Client slots with a bucket of their own; a higher slot shares one by remainder.
const CLIENT_BUCKETS: usize = 64;
/// Buckets that belong to no client.
const FIXED_BUCKETS: usize = 5;

/// Where a line ends up.
pub trait Sink {
    /// Writes one line; the sink adds the line end and must not block.
    fn line(&mut self, text: fmt::Arguments<'_>);
}

/// Who caused a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Our own start, stop and life cycle: few by nature and never suppressed.
    System,
    /// QubesDB, rules and configuration.
    Control,
    /// The uplink device and its backend.
    Uplink,
    /// xenstore.
    Store,
    /// qrexec.
    Qrexec,
    /// Verdict summaries.
    Traffic,
    /// The client in this slot.
    Client(u16),
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: u32,
    refilled_at_ns: u64,
    suppressed: u64,
}

impl Bucket {
    const FULL: Bucket = Bucket { tokens: BURST, refilled_at_ns: 0, suppressed: 0 };

    /// Takes a token if there is one.
    fn take(&mut self, now_ns: u64) -> bool {
        let earned = now_ns.saturating_sub(self.refilled_at_ns) / REFILL_NS;
        if earned > 0 {
            let earned32 = u32::try_from(earned).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned32).min(BURST);
            self.refilled_at_ns =
                self.refilled_at_ns.saturating_add(earned.saturating_mul(REFILL_NS));
        }
        if self.tokens == 0 {
            self.suppressed = self.suppressed.saturating_add(1);
            return false;
        }
        self.tokens -= 1;
        true
    }
}

/// The rate-limited log in front of a sink.
pub struct Log<S: Sink> {
    sink: S,
    fixed: [Bucket; FIXED_BUCKETS],
    clients: [Bucket; CLIENT_BUCKETS],
}

impl<S: Sink> Log<S> {
    /// A log whose sources may all write at once.
    pub fn new(sink: S) -> Self {
        Self { sink, fixed: [Bucket::FULL; FIXED_BUCKETS], clients: [Bucket::FULL; CLIENT_BUCKETS] }
    }

    /// Writes `text` unless `source` has used up its share.
    pub fn line(&mut self, now: Instant, source: Source, text: fmt::Arguments<'_>) {
        let Some(bucket) = self.bucket(source) else {
            self.sink.line(format_args!("fw: {text}"));
            return;
        };
        if !bucket.take(now.as_nanos()) {
            return;
        }
        let suppressed = core::mem::take(&mut bucket.suppressed);
        if suppressed > 0 {
            self.sink.line(format_args!("fw: {suppressed} lines suppressed source={source:?}"));
        }
        self.sink.line(format_args!("fw: {text}"));
    }

    /// The sink, for those who must get through whatever the limits say.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    fn bucket(&mut self, source: Source) -> Option<&mut Bucket> {
        let fixed = match source {
            Source::System => return None,
            Source::Control => 0,
            Source::Uplink => 1,
            Source::Store => 2,
            Source::Qrexec => 3,
            Source::Traffic => 4,
            Source::Client(slot) => {
                return self.clients.get_mut(usize::from(slot) % CLIENT_BUCKETS);
            }
        };
        self.fixed.get_mut(fixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Lines(Vec<String>);

    impl Sink for Lines {
        fn line(&mut self, text: fmt::Arguments<'_>) {
            self.0.push(text.to_string());
        }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_flood_is_cut_at_the_burst() {
        let mut log = Log::new(Lines::default());
        for n in 0..1000 {
            log.line(at(0), Source::Client(3), format_args!("{n}"));
        }
        assert_eq!(log.sink().0.len(), BURST as usize);
    }

    #[test]
    fn one_source_does_not_silence_another() {
        let mut log = Log::new(Lines::default());
        for _ in 0..1000 {
            log.line(at(0), Source::Client(3), format_args!("flood"));
        }
        log.line(at(0), Source::Client(4), format_args!("other"));
        log.line(at(0), Source::Control, format_args!("control"));
        let lines = &log.sink().0;
        assert_eq!(lines[lines.len() - 2..], ["fw: other", "fw: control"]);
    }

    #[test]
    fn what_was_suppressed_is_counted_in_the_next_line() {
        let mut log = Log::new(Lines::default());
        for _ in 0..BURST + 7 {
            log.line(at(0), Source::Uplink, format_args!("x"));
        }
        log.line(at(200), Source::Uplink, format_args!("later"));
        let lines = &log.sink().0;
        assert_eq!(lines[lines.len() - 2..], ["fw: 7 lines suppressed source=Uplink", "fw: later"]);
    }

    #[test]
    fn the_system_source_is_never_suppressed() {
        let mut log = Log::new(Lines::default());
        for _ in 0..1000 {
            log.line(at(0), Source::System, format_args!("x"));
        }
        assert_eq!(log.sink().0.len(), 1000);
    }
}
