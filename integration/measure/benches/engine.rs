//! Times of the packet core. `cargo xtask bench engine` prints them; nothing judges them.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use criterion::{Bencher, Criterion};
use measure::shapes::{End, MIXTURE};
use measure::{
    Connection, Page, Population, Protocol, Side, World, accepted, by_client, by_uplink, delivered,
    first_packet, flows, through,
};

use firewall::{ClientId, Fate};

/// Packets of one call. New flows of one call, which end behind it.
const PACKETS: usize = 256;
const NEW: u16 = 64;
/// The visitor's ports: nobody else has them.
const FIRST_PORT: u16 = 50_000;
/// Flows that leave room for the visitor's in the largest table.
const MOST: usize = 65_536 - NEW as usize;

fn main() -> Result<(), String> {
    let mut criterion = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    for rules in first_packet::SIZES {
        let mut world =
            World::with(first_packet::WITH_MANY_NAMES, 1, &MIXTURE, End::Policy, rules)?;
        time_new(&mut criterion, &format!("first/rules_{rules}"), &mut world, ClientId(0))?;
    }
    for size in flows::SIZES {
        let mut population = Population::new(size)?;
        population.grow(size)?;
        let up: Vec<Page> = population.spread(PACKETS).map(Connection::up).collect();
        let down: Vec<Page> = population.spread(PACKETS).map(Connection::down).collect();
        let world = &mut population.world;
        let sides: [(&str, &[Page], Side, Check); 2] =
            [("up", &up, by_client, accepted), ("down", &down, by_uplink, delivered)];
        for (name, pages, side, check) in sides {
            let name = format!("established_{name}/flows_{size}");
            timed(
                &mut criterion,
                &name,
                &mut Case { world, pages, side, check, after: |_| Ok(()) },
            )?;
        }
        let mut population = Population::new(size)?;
        population.grow(size.min(MOST))?;
        let name = format!("first/flows_{size}");
        time_new(&mut criterion, &name, &mut population.world, Population::VISITOR)?;
    }
    criterion.final_summary();
    Ok(())
}

/// Fails unless the packets got what they are meant to get.
type Check = fn(&[Page], &[Option<Fate>]) -> Result<(), String>;

/// Packets that are taken through again and again.
struct Case<'a, A: Fn(&mut World) -> Result<(), String>> {
    world: &'a mut World,
    pages: &'a [Page],
    side: Side,
    check: Check,
    /// Between two calls, not timed.
    after: A,
}

fn time_new(
    criterion: &mut Criterion,
    name: &str,
    world: &mut World,
    client: ClientId,
) -> Result<(), String> {
    let first = |number| Connection::first(world, client, Protocol::Tcp, FIRST_PORT + number);
    let pages: Vec<Page> = (0..NEW).map(first).collect::<Result<_, _>>()?;
    let after = |world: &mut World| world.end_flows_of(client);
    timed(
        criterion,
        name,
        &mut Case { world, pages: &pages, side: by_client, check: accepted, after },
    )
}

fn timed<A: Fn(&mut World) -> Result<(), String>>(
    criterion: &mut Criterion,
    name: &str,
    case: &mut Case<'_, A>,
) -> Result<(), String> {
    let mut outcome = Ok(());
    criterion.bench_function(name, |bencher: &mut Bencher<'_>| {
        bencher.iter_custom(|packets| match case.run(packets) {
            Ok(spent) => spent,
            Err(problem) => {
                outcome = Err(format!("{name}: {problem}"));
                // Criterion wants a time, and has no word for a failure.
                Duration::from_secs(1)
            }
        });
    });
    outcome
}

impl<A: Fn(&mut World) -> Result<(), String>> Case<'_, A> {
    fn run(&mut self, packets: u64) -> Result<Duration, String> {
        let mut copies: Vec<Page> =
            self.pages.iter().map(|page| Page::new(page.client, page.frame())).collect();
        let (mut spent, mut left) =
            (Duration::ZERO, usize::try_from(packets).unwrap_or(usize::MAX));
        while left > 0 {
            let count = left.min(copies.len());
            let pages = copies.get_mut(..count).unwrap_or_default();
            // They were rewritten.
            pages.iter_mut().zip(self.pages).for_each(|(copy, page)| copy.put(page.frame()));
            let begun = Instant::now();
            let fates = through(self.world, self.side, pages);
            spent += begun.elapsed();
            (self.check)(pages, &fates)?;
            (self.after)(self.world)?;
            left -= count;
        }
        Ok(spent)
    }
}
