//! A client that has nothing to do with what happens: an echo request every tenth of a second, and the longest time without an
//! answer. And clients that load all the time, whatever happens to them.

use std::time::Duration;

use super::books::Books;
use super::steps::{self, ALICE, BOB, CAROL, need_both};
use crate::error::{Error, Result};
use crate::fail;
use crate::lab::domain::Background;
use crate::lab::guests::BIG;
use crate::lab::world::{ACCEPT_ALL, World};

/// The longest time for which a client may be without an answer while somebody else's domain comes, goes or misbehaves, in
/// seconds. Of an emulated machine on a busy host: a second goes by without anybody's fault.
pub const LONGEST_GAP_S: f64 = 5.0;
/// Fewer answers than these show nothing.
const FEWEST_ANSWERS: u32 = 20;
/// What a part of the program may keep for good after something that it has seen for the first time: lists that have grown.
pub const SLACK_BYTES: u64 = 4096;
/// For commands of a guest beside a load.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whom the witness asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// The server behind the NetVM.
    Server,
    /// The firewall: where the NetVM itself goes.
    Gateway,
}

/// A client that asks all the time.
pub struct Witness {
    client: usize,
    asks: Background,
    file: String,
}

/// What it has seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Longest time without an answer, in seconds.
    pub gap_s: f64,
    /// Answers.
    pub answers: u32,
    /// Requests that were not answered in time.
    pub lost: u32,
}

impl Witness {
    /// Begins on the client number `client` of the plan.
    ///
    /// # Errors
    /// When that client does not run.
    pub fn start(world: &World, client: usize, whom: Asks) -> Result<Self> {
        let address = match whom {
            Asks::Server => &world.plan.internet,
            Asks::Gateway => &world.plan.firewall.ip,
        };
        // The time of each line is that of the guest; a line about a missing answer moves the time on as well.
        let file = format!("/tmp/witness.{}", address.replace('.', "-"));
        let line = format!(
            "sh -c 'echo $$ >{file}; exec ping -D -O -i 0.1 {address}' 2>&1 | awk '\
             {{ t = substr($1, 2) + 0; if (t > now) now = t }} \
             / bytes from / {{ n++; if (last && t - last > most) most = t - last; last = t }} \
             / no answer / {{ lost++ }} \
             END {{ if (last && now - last > most) most = now - last; \
             printf \"gap %.2f answers %d lost %d\\n\", most, n, lost }}'"
        );
        let asks = world.client(client)?.spawn(&world.lab, &line)?;
        Ok(Self { client, asks, file })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When the client does not tell.
    pub fn end(self, world: &World) -> Result<Seen> {
        let client = world.client(self.client)?;
        world.sh(client, &format!("kill -INT $(cat {})", self.file))?;
        let text = self.asks.finish(&world.lab, client, PATIENCE)?.text;
        Seen::parse(&text).ok_or_else(|| Error::Failed(format!("{}: ping: {text}", client.name)))
    }
}

impl Seen {
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().rev().find(|line| line.starts_with("gap "))?;
        let mut words = line.split(' ').skip(1).step_by(2);
        let gap_s = words.next()?.parse().ok()?;
        Some(Self {
            gap_s,
            answers: words.next()?.parse().ok()?,
            lost: words.next()?.parse().ok()?,
        })
    }

    /// Judges it; for people.
    ///
    /// # Errors
    /// When there was too long a gap.
    pub fn judge(self, most_s: f64) -> Result<String> {
        let Self { gap_s, answers, lost } = self;
        if gap_s > most_s || answers < FEWEST_ANSWERS {
            fail!(
                "the other client was without an answer for {gap_s:.2} s (at most {most_s} s), {answers} answers, {lost} lost"
            );
        }
        Ok(format!(
            "longest gap of the other client {gap_s:.2} s ({answers} answers, {lost} late or lost)"
        ))
    }
}

/// Runs a scenario of clients A and B beside client C, which asks `whom` all the time: C has had no longer gap than it may, and
/// what the firewall holds is afterwards what it was before.
///
/// # Errors
/// When the scenario fails, C had a gap, or something is left.
pub fn beside(
    world: &mut World,
    whom: Asks,
    scenario: impl FnOnce(&mut World) -> Result<String>,
) -> Result<String> {
    need_both(world)?;
    world.need_rules(CAROL, ACCEPT_ALL)?;
    world.need_client(CAROL)?;
    steps::page(world, world.client(CAROL)?, 0)?;
    let before = Books::read(world)?;
    let witness = Witness::start(world, CAROL, whom)?;
    let result = scenario(world);
    let seen = witness.end(world);
    let note = result?;
    let seen = seen?.judge(LONGEST_GAP_S)?;
    need_both(world)?;
    steps::page(world, world.client(CAROL)?, 0)?;
    let books = before.settle_with(world, SLACK_BYTES)?;
    Ok(format!("{note}; {seen}; {books}"))
}

/// Runs a scenario in which all clients may be without an answer: what the firewall holds is afterwards what it was before.
///
/// # Errors
/// When the scenario fails, or something is left.
pub fn keeping_books(
    world: &mut World,
    scenario: impl FnOnce(&mut World) -> Result<String>,
) -> Result<String> {
    need_both(world)?;
    let before = Books::read(world)?;
    let note = scenario(world)?;
    let books = before.settle_with(world, SLACK_BYTES)?;
    Ok(format!("{note}; {books}"))
}

/// Runs a scenario while A and B download without end.
///
/// # Errors
/// When it fails, or the clients do not load afterwards.
pub fn under_load(
    world: &mut World,
    scenario: impl FnOnce(&mut World) -> Result<String>,
) -> Result<String> {
    need_both(world)?;
    let loads = [ALICE, BOB].map(|client| Restless::start(world, client));
    let note = scenario(world);
    for load in loads {
        load?.end(world)?;
    }
    note
}

/// A client that downloads again and again, whatever becomes of each download.
pub struct Restless {
    client: usize,
    downloads: Background,
}

impl Restless {
    /// Begins.
    ///
    /// # Errors
    /// When the client does not run.
    pub fn start(world: &World, client: usize) -> Result<Self> {
        let line = format!(
            "rm -f /tmp/rest; until [ -e /tmp/rest ]; do timeout 15 wget -q -O /dev/null http://{}:443/{} || usleep 200000; done",
            world.plan.internet, BIG.name
        );
        Ok(Self { client, downloads: world.client(client)?.spawn(&world.lab, &line)? })
    }

    /// Ends it.
    ///
    /// # Errors
    /// When the client does not answer.
    pub fn end(self, world: &World) -> Result<()> {
        let client = world.client(self.client)?;
        world.sh(client, "touch /tmp/rest; killall wget 2>/dev/null; true")?;
        self.downloads.finish(&world.lab, client, PATIENCE).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_witness_says_is_read_and_judged() {
        let seen = Seen::parse("noise\ngap 0.31 answers 120 lost 2\n");
        assert_eq!(seen, Some(Seen { gap_s: 0.31, answers: 120, lost: 2 }));
        assert_eq!(Seen::parse("gap x answers 1 lost 0"), None);
        assert_eq!(Seen::parse("ping: unknown host"), None);
        let judged = |gap_s, answers| Seen { gap_s, answers, lost: 0 }.judge(1.0).is_ok();
        assert!(judged(0.9, 100));
        assert!(!judged(1.1, 100));
        assert!(!judged(0.0, 3), "nothing was seen");
    }
}
