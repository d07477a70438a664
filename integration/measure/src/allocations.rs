//! Allocations of the cases whose instructions are counted: a packet never allocates.

use std::hint::black_box;

use allocation_counter::AllocationInfo;
use measure::{Meter, World, established, first_packet, flows};

/// Each line: the case as it is counted otherwise, packets, allocations.
///
/// # Errors
/// When there were any, or they cannot be counted.
pub(crate) fn run() -> Result<(), String> {
    let one = allocation_counter::measure(|| {
        black_box(Vec::<u8>::with_capacity(black_box(1)));
    });
    if one.count_total != 1 {
        return Err(format!("one allocation was counted as {}", one.count_total));
    }
    let mut counter = Counter::default();
    first_packet::run(&mut counter)?;
    established::run(&mut counter)?;
    flows::run(&mut counter, &flows::SIZES)?;
    match counter.faults.as_slice() {
        [] => Ok(()),
        faults => Err(format!("these allocated:\n{}", faults.join("\n"))),
    }
}

#[derive(Default)]
struct Counter {
    total: u64,
    faults: Vec<String>,
}

impl Meter for Counter {
    fn measure(&mut self, world: &mut World, work: &mut dyn FnMut(&mut World)) {
        let AllocationInfo { count_total, .. } = allocation_counter::measure(|| work(world));
        self.total += count_total;
    }

    fn report(&mut self, line: &str) {
        let line = format!("{line}\t{}", self.total);
        println!("{line}");
        if self.total > 0 {
            self.faults.push(line);
        }
        self.total = 0;
    }
}

#[cfg(test)]
mod tests {
    use measure::shapes::{End, HOSTS};

    use super::*;

    #[test]
    fn an_allocation_is_a_fault() {
        let mut world = World::new(&HOSTS, End::Policy, 1).unwrap();
        let mut counter = Counter::default();
        counter.measure(&mut world, &mut |_| ());
        counter.report("nothing\t1");
        assert!(counter.faults.is_empty());
        counter.measure(&mut world, &mut |_| drop(black_box(vec![1_u8; 100])));
        counter.measure(&mut world, &mut |_| drop(black_box(vec![1_u8; 100])));
        counter.report("something\t1");
        counter.measure(&mut world, &mut |_| ());
        counter.report("nothing\t1");
        assert_eq!(counter.faults, ["something\t1\t2"]);
    }
}
