//! The image: what Xen starts. Builds the parts and hands over to the event loop.
#![no_std]
#![no_main]

use firewall::config::DebugMode;
use firewall::config::features::{Features, Words};
use firewall::event_loop::{EventLoop, Millis};
use firewall::platform::{Budgets, ConsoleSink, XenMachine};
use firewall::{Firewall, Limits};
use xen::boot::{BootInfo, selftest};
use xen::{console_line, counts, entropy, event};

xen::entry!(run);

/// The first instruction of the firewall proper. Interrupts are off, memory and console are up.
fn run(info: BootInfo) -> ! {
    let kernel = phase(&info);
    let (major, minor) = info.xen_version;
    console_line!(
        "fw: qubes-rust-firewall {} booting on Xen {major}.{minor}, memory {} KiB, domid {}",
        env!("CARGO_PKG_VERSION"),
        info.memory_bytes / 1024,
        xen::toolstack::own_domain().map_or(-1, |own| i32::from(own.0))
    );
    if let Some(name) = info.value("fw-selftest") {
        selftest::run(name);
    }
    // What is said from here on is told with the first sleep.
    event::hold();
    // The control plane reports what it cannot understand.
    let words = Words::of_command_line(info.cmdline, &mut |_| {});
    let wanted = Features::new(&Words::default(), &words, DebugMode::Off).flows;
    let limits = Limits::for_memory(info.memory_bytes).with_flows(info.memory_bytes, wanted);
    console_line!(
        "fw: limits clients={} addresses={} flows={} flows_per_client={}",
        limits.clients,
        limits.addresses,
        limits.flows,
        limits.flows_per_client
    );
    let (command_line, memory_bytes) = (info.cmdline, info.memory_bytes);
    let firewall = match Firewall::new(limits, entropy::seed()) {
        Ok(firewall) => firewall,
        Err(error) => panic!("{error}"),
    };
    let tables = phase(&info);
    let mut machine = match XenMachine::start(info, &limits) {
        Ok(machine) => machine,
        Err(error) => panic!("{error}"),
    };
    console_line!("fw: budgets_kib {Budgets}");
    for (name, ((wall_us, vcpu_us), hypercalls)) in
        [("kernel", kernel), ("tables", tables), ("devices", phase(&info))]
    {
        let (wall, vcpu) = (Millis(wall_us), Millis(vcpu_us));
        console_line!("fw: phase {name} wall_ms={wall} vcpu_ms={vcpu} hypercalls={hypercalls}");
    }
    let stop = EventLoop::new(firewall, memory_bytes, command_line, ConsoleSink).run(&mut machine);
    machine.stop(stop)
}

/// Time since the first instruction, and hypercalls since then.
fn phase(info: &BootInfo) -> ((u64, u64), u64) {
    (info.uptime_us(), counts::counts().hypercalls)
}
