//! A day in the appliance's life: everything comes, works, changes and goes.

use xen::mem;
use xen::mem::inject;
use xen::mem::ledger::{self, RESERVE_BYTES};

use crate::appliance::Appliance;

/// Cycles after which everything has its size.
const WARM_UP: u64 = 60;

/// What a day took.
pub(crate) struct Day {
    /// Requests for memory that might have failed.
    pub(crate) requests: u64,
    /// Operations of the control plane.
    pub(crate) operations: u64,
    /// Most bytes, without the tables.
    pub(crate) peak: usize,
    /// Something was refused.
    pub(crate) was_short: bool,
}

/// Lives a day with a heap of `limit` bytes beside the reserve (nothing: as much as it takes), and with what `arrange`
/// arranges. Nothing forbidden may leave whatever happens; at the end there is memory, and everything has to work.
pub(crate) fn lived(limit: Option<usize>, arrange: impl FnOnce()) -> Result<Day, String> {
    inject::fail_request(None);
    inject::refuse_operation(None);
    inject::set_limit(limit.map(|bytes| bytes + RESERVE_BYTES));
    let refused_before = ledger::operations().refused;
    let failures =
        || ledger::Part::ALL.map(|part| ledger::usage(part).failures).iter().sum::<u64>();
    let failures_before = failures();
    let mut appliance = Appliance::start();
    arrange();
    let lived = live(&mut appliance);
    let day = Day {
        requests: inject::requests(),
        operations: inject::operations(),
        peak: mem::heap_peak(),
        was_short: failures() > failures_before || ledger::operations().refused > refused_before,
    };
    lived?;
    inject::fail_request(None);
    inject::refuse_operation(None);
    inject::set_limit(None);
    ledger::Part::ALL.iter().for_each(|part| ledger::set_budget(*part, usize::MAX));
    recover(&mut appliance)?;
    appliance.end()?;
    Ok(day)
}

/// What fails for want of memory is no fault here.
fn live(appliance: &mut Appliance) -> Result<(), String> {
    appliance.set_rules(true);
    appliance.unit.dom0.start_database(&mut appliance.unit.store);
    appliance.wait(10, |this| this.unit.dom0.is_dumped() && this.unit.dom0.has_agent())?;
    appliance.attach_uplink()?;
    appliance.attach_client()?;
    appliance.send()?;
    // Within seconds an edit is in force, or everything is denied.
    appliance.set_rules(false);
    appliance.wait(10, |this| this.unit.dom0.is_dumped())?;
    appliance.pass(5000)?;
    appliance.settle()?;
    appliance.forbid();
    if appliance.send()? {
        return Err(appliance.told("what an edit forbids gets through".into()));
    }
    appliance.call("firewall.Memory")?;
    appliance.set_rules(true);
    appliance.pass(1000)?;
    appliance.send()?;
    appliance.suspend()?;
    appliance.remove_client()?;
    appliance.attach_client()?;
    appliance.remove_uplink()?;
    appliance.attach_uplink()?;
    appliance.unit.dom0.stop_database(&mut appliance.unit.store);
    appliance.pass(500)?;
    appliance.unit.dom0.start_database(&mut appliance.unit.store);
    appliance.unit.dom0.stop_agent();
    appliance.pass(2000)?;
    appliance.send()?;
    appliance.call("firewall.Stats").map(drop)
}

/// There is memory again, and dom0 does everything anew.
fn recover(appliance: &mut Appliance) -> Result<(), String> {
    appliance.remove_client()?;
    appliance.remove_uplink()?;
    appliance.unit.dom0.stop_database(&mut appliance.unit.store);
    appliance.pass(2000)?;
    appliance.unit.dom0.start_database(&mut appliance.unit.store);
    appliance.set_rules(true);
    if !appliance.wait(20, |this| this.unit.dom0.is_dumped())? {
        return Err(appliance.told("QubesDB is not read any more".into()));
    }
    if !(appliance.attach_uplink()? && appliance.attach_client()?) {
        return Err(appliance.told("a device does not connect any more".into()));
    }
    appliance.pass(3000)?;
    if !appliance.send()? {
        return Err(appliance.told("what is allowed does not pass any more".into()));
    }
    match appliance.call("firewall.Memory")? {
        Some(text) if text.contains("\"leaks\":0") => {}
        other => return Err(appliance.told(format!("a call's answer: {other:?}"))),
    }
    appliance.remove_client()?;
    appliance.settle()
}

/// Everything comes and goes, `count` times.
pub(crate) fn cycles(count: u64) -> Result<(), String> {
    let mut appliance = Appliance::start();
    appliance.set_rules(true);
    appliance.unit.dom0.start_database(&mut appliance.unit.store);
    appliance.wait(10, |this| this.unit.dom0.is_dumped() && this.unit.dom0.has_agent())?;
    appliance.attach_uplink()?;
    let mut start = None;
    for number in 0..count + WARM_UP {
        cycle(&mut appliance, number).map_err(|problem| format!("cycle {number}: {problem}"))?;
        let books = appliance.books();
        match &start {
            None if number + 1 >= WARM_UP => start = Some(books),
            Some(start) if *start != books => {
                return Err(
                    appliance.told(format!("after cycle {number}: {books:?}, before {start:?}"))
                );
            }
            _ => {}
        }
    }
    let largest = ledger::operations().largest;
    println!(
        "cycles\t{count}\nlargest operation\t{largest}\nleaks\t{}",
        ledger::operations().leaks
    );
    if largest > RESERVE_BYTES / 2 {
        return Err(format!("an operation took {largest} bytes of {RESERVE_BYTES}"));
    }
    appliance.remove_client()?;
    appliance.end()
}

/// A client comes, is heard, and goes; now and then something else as well.
fn cycle(appliance: &mut Appliance, number: u64) -> Result<(), String> {
    if !appliance.attach_client()? {
        return Err(appliance.told("the client does not connect".into()));
    }
    appliance.pass(50)?;
    if !appliance.send()? {
        return Err(appliance.told("the client's packet does not pass".into()));
    }
    if number % 10 == 3 && appliance.call("firewall.Memory")?.is_none() {
        return Err(appliance.told("a call is not answered".into()));
    }
    appliance.remove_client()?;
    match number % 30 {
        5 => {
            appliance.remove_uplink()?;
            if !appliance.attach_uplink()? {
                return Err(appliance.told("the uplink does not connect".into()));
            }
        }
        15 => {
            appliance.unit.dom0.stop_database(&mut appliance.unit.store);
            appliance.pass(500)?;
            appliance.unit.dom0.start_database(&mut appliance.unit.store);
            appliance.wait(10, |this| this.unit.dom0.is_dumped())?;
        }
        25 => {
            appliance.suspend()?;
            appliance.unit.dom0.stop_agent();
            appliance.wait(10, |this| this.unit.dom0.has_agent())?;
        }
        _ => {}
    }
    appliance.settle()
}
