//! What only the real hypervisor can show, on request of the kernel command line (`fw-selftest=NAME`).
//!
//! `all` checks timer, memory, grants and events and powers the domain off; every other name ends the domain in the
//! way that it says. For the lab: dom0 writes the command line, and dom0 can end us anyway.

use alloc::vec::Vec;
use core::hint::black_box;

use crate::abi::event_channel::PORTS;
use crate::event::{self, Channel};
use crate::grant::{self, Access, CopyBatch, CopyStatus};
use crate::mem::{self, Page};
use crate::{DomId, EventPort, GrantRef, console_line, entropy, power, time, toolstack};

/// Grants at once: more than the first frame of the table holds.
const MANY_GRANTS: usize = 700;

/// Runs the test of this name. Returns only if there is none.
pub fn run(name: &str) {
    match name {
        "all" => all(),
        "poweroff" => power::poweroff(),
        "reboot" => power::reboot(),
        "panic" => panic!("asked for"),
        "out-of-memory" => out_of_memory(),
        "stack-overflow" => {
            black_box(overflow(0));
        }
        "read-null" => {
            black_box(read(8));
        }
        "write-text" => write(run as *const () as usize),
        "write-constant" => write(NAMES.as_ptr().addr()),
        "execute-data" => execute_data(),
        "write-guard" => write(crate::hypercall::shared_info_address() + 4096),
        _ => console_line!("selftest: unknown name; known are {NAMES}"),
    }
}

const NAMES: &str = "all poweroff reboot panic out-of-memory stack-overflow read-null write-text write-constant \
    execute-data write-guard";

fn all() -> ! {
    let tests: [(&str, fn()); 6] = [
        ("timer", timer),
        ("pages", pages),
        ("heap", heap),
        ("grants", grants),
        ("events", events),
        ("entropy", entropy_differs),
    ];
    for (name, test) in tests {
        let start = time::system_time_ns();
        test();
        console_line!(
            "selftest: {name} passed after {} us",
            (time::system_time_ns() - start) / 1000
        );
    }
    console_line!("selftest: all passed");
    crate::console::drain();
    power::poweroff()
}

fn timer() {
    const SLEEP_NS: u64 = 20_000_000;
    for _ in 0..3 {
        let (before, running) = (time::system_time_ns(), time::vcpu_running_ns());
        while time::system_time_ns() < before + SLEEP_NS {
            event::wait(Some(before + SLEEP_NS));
            event::take_pending(|port| panic!("event at {port:?}"));
        }
        let (slept, ran) = (time::system_time_ns() - before, time::vcpu_running_ns() - running);
        console_line!(
            "selftest: slept {} us for {} us, ran {} us",
            slept / 1000,
            SLEEP_NS / 1000,
            ran / 1000
        );
    }
    assert!(time::wall_clock_s() > 1_500_000_000, "the wall clock is before 2017");
}

fn pages() {
    let total = mem::free_pages();
    let mut pages: Vec<Page> = core::iter::from_fn(Page::alloc).collect();
    assert_eq!(pages.len(), total);
    for page in &mut pages {
        assert!(page.bytes().iter().all(|byte| *byte == 0), "a page is not zero");
        let gfn = page.gfn().0.to_le_bytes();
        page.prefix_mut(8).copy_from_slice(&gfn);
    }
    let intact = pages.iter().all(|page| page.bytes().starts_with(&page.gfn().0.to_le_bytes()));
    assert!(intact, "two pages share memory");
    drop(pages);
    assert_eq!(mem::free_pages(), total);
}

fn heap() {
    let used = mem::heap_used();
    let mut large: Vec<u8> = Vec::new();
    assert!(large.try_reserve_exact(mem::heap_size()).is_err(), "more than the heap was allocated");
    large.try_reserve_exact(mem::heap_size() / 2).expect("half of the heap is free");
    large.resize(mem::heap_size() / 2, 0xa5);
    assert!(large.iter().all(|byte| *byte == 0xa5));
    drop(large);
    assert_eq!(mem::heap_used(), used);
    assert!(mem::heap_peak() >= mem::heap_size() / 2);
}

/// We play the peer ourselves: copying through own grants is allowed, mapping them is not tried.
fn grants() {
    let own = toolstack::own_domain().expect("Xen tells the own domain");
    let mut granted = Vec::new();
    for index in 0..MANY_GRANTS {
        let mut page = Page::alloc().expect("pages for the test");
        page.prefix_mut(4).copy_from_slice(&(index as u32).to_le_bytes());
        let access = if index % 2 == 0 { Access::ReadOnly } else { Access::ReadWrite };
        granted.push(grant::grant(page, own, access).map_err(|(error, _)| error).expect("a grant"));
    }
    for (index, granted) in granted.iter().enumerate() {
        let seen = copy(own, granted.gref(), false).expect("a granted page can be read");
        assert_eq!(seen, index as u32, "another page was read");
        assert_eq!(copy(own, granted.gref(), true).is_some(), index % 2 == 1, "writing a grant");
    }
    let revoked: Vec<GrantRef> = granted.iter().map(grant::Granted::gref).collect();
    granted.into_iter().for_each(|granted| drop(granted.revoke().expect("nobody uses it")));
    assert!(
        revoked.into_iter().all(|gref| copy(own, gref, false).is_none()),
        "a revoked page was read"
    );
    assert_eq!((grant::grants_in_use(), grant::quarantined()), (0, 0));
    let refused = grant::map(DomId::DOM0, &[GrantRef(8), GrantRef(4_000_000)], Access::ReadWrite);
    assert!(refused.is_err(), "dom0 granted us nothing");
}

/// Copies four bytes out of, or into, an own grant; `None` if Xen refuses.
fn copy(own: DomId, gref: GrantRef, into: bool) -> Option<u32> {
    let mut batch = CopyBatch::with_capacity(1, 1);
    batch.begin(Page::alloc()?, 0);
    if into { batch.to_peer(own, gref, 8, 0, 4) } else { batch.from_peer(own, gref, 0, 0, 4) }
        .ok()?;
    batch.run();
    let mut result = None;
    batch.finish(|page, _, status| {
        if let (CopyStatus::Ok, Some(bytes)) = (status, page.bytes().first_chunk()) {
            result = Some(u32::from_le_bytes(*bytes));
        }
    });
    result
}

/// A channel from us to us.
fn events() {
    let own = toolstack::own_domain().expect("Xen tells the own domain");
    let near = Channel::alloc_unbound(own).expect("a port");
    assert!(!near.is_connected());
    let far = Channel::bind_interdomain(own, near.port()).expect("the port is reserved for us");
    assert!(near.is_connected() && far.is_connected());
    assert_eq!(delivered(), [Some(far.port()), None], "the event of the binding");
    near.notify();
    assert_eq!(delivered(), [None, None], "held back until unmasked");
    far.unmask();
    event::wait(None);
    assert_eq!(delivered(), [Some(far.port()), None]);
    far.unmask();
    far.notify();
    near.notify();
    event::wait(None);
    let mut both = delivered();
    both.sort_unstable();
    assert_eq!(both, [Some(near.port()), Some(far.port())]);
    assert!(near.port().0 < PORTS);
    drop(near);
    assert!(!far.is_connected());
}

/// The first two events.
fn delivered() -> [Option<EventPort>; 2] {
    let mut ports = [None; 2];
    let mut slots = ports.iter_mut();
    event::take_pending(|port| *slots.next().expect("at most two events") = Some(port));
    ports
}

fn entropy_differs() {
    let (first, second) = (entropy::seed(), entropy::seed());
    assert_ne!(first, second);
}

fn out_of_memory() -> ! {
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    loop {
        hoard.push(Vec::with_capacity(1 << 20));
    }
}

#[expect(unconditional_recursion, reason = "must run into the guard page")]
fn overflow(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    overflow(depth + 1) + frame.iter().sum::<u64>()
}

fn read(address: usize) -> u8 {
    // SAFETY: none; the address must not be mapped, and the fault ends the domain.
    unsafe { core::ptr::with_exposed_provenance::<u8>(black_box(address)).read_volatile() }
}

fn write(address: usize) {
    // SAFETY: none; the address must not be writable, and the fault ends the domain.
    unsafe { core::ptr::with_exposed_provenance_mut::<u8>(black_box(address)).write_volatile(0) };
}

fn execute_data() {
    // ret
    let code = alloc::boxed::Box::new(black_box(0xc3_u8));
    // SAFETY: none; the heap must not be executable, and the fault ends the domain.
    let function = unsafe { core::mem::transmute::<*const u8, extern "C" fn()>(&raw const *code) };
    function();
}
