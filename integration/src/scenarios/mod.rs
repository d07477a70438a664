//! What must hold on real Xen, as named scenarios. Those of a group share a booted lab and its [`World`]; each
//! one asks for what it needs (`world.need_...`) and leaves the world usable, so that any of them also runs
//! alone. A scenario's text is what it measured.

#![forbid(unsafe_code)]

pub mod abuse;
mod abusers;
pub mod basics;
pub mod books;
pub mod chain;
pub mod control;
pub mod dom0_command;
mod ends;
pub mod hidden;
pub mod hostile;
pub mod installed;
pub mod lifecycle;
pub mod lives;
pub mod loads;
pub mod many;
pub mod memory;
pub mod names;
pub mod opened;
pub mod six;
pub mod soak;
pub mod steps;
pub mod told;
pub mod traffic;
pub mod witness;
pub mod xenbus;

use std::time::Duration;

use self::witness::Asks::{Gateway, Server};
use self::witness::{beside, keeping_books, under_load};
use crate::error::Result;
use crate::lab::plan::Plan;
use crate::lab::qemu::MachineOptions;
use crate::lab::world::World;

/// For what takes a moment; generous for a busy host.
const MOMENT: Duration = Duration::from_secs(60);

/// One thing that must hold.
pub struct Scenario {
    /// Its name, for the report and for running it alone.
    pub name: &'static str,
    /// Shows it; the text says what was measured.
    pub run: fn(&mut World) -> Result<String>,
}

/// Scenarios that share a booted lab.
pub struct Group {
    /// Its name.
    pub name: &'static str,
    /// The network.
    pub plan: fn() -> Plan,
    /// The xenstore daemon of dom0.
    pub xenstored: &'static str,
    /// Memory of the machine, MiB.
    pub memory_mib: u32,
    /// In running order: the early ones are what the later ones build on.
    pub scenarios: &'static [Scenario],
}

impl Group {
    /// The machine that it runs on.
    pub fn machine(&self) -> MachineOptions {
        MachineOptions {
            name: self.name.into(),
            xenstored: self.xenstored,
            memory_mib: self.memory_mib,
            ..Default::default()
        }
    }
}

macro_rules! scenarios {
    ($($name:literal => $run:expr,)*) => { &[$(Scenario { name: $name, run: $run }),*] };
}

/// Scenarios and groups that have not held in the lab yet. `test` leaves them out and says so; `lab scenario NAME` runs
/// them. One that has held is taken off this list in the commit that says so.
pub const NOT_SHOWN_YET: &[&str] = &[];

/// Variants of other scenarios (another way for a domain to end, another machine or xenstored): `test` leaves them out so
/// that it ends within half an hour, and says so; `lab scenario NAME` runs them.
pub const LONG_ONLY: &[&str] = &[
    "NetVM shut down and restarted while clients run",
    "NetVM crashed and restarted while clients run",
    "firewall shut down and restarted while a client runs",
    "firewall crashed and restarted while a client runs",
    // The harder variant runs: with other ids, addresses and kernel.
    "netvm change, none, and back while clients run",
    "other ids, addresses, sizes and kernel: accept all",
    "other ids, addresses, sizes and kernel: rule edit",
    "oxenstored: one port only",
    "oxenstored: NetVM restart while clients run",
    "oxenstored: powers off",
    // Seven minutes, most of them for the channels of 200 callers in an emulated dom0.
    "services tell of rules, drops and flows; hostile callers are refused",
    // Builds the image once more, as the next version.
    INSTALLED,
    // Four minutes of nothing but xl.
    "50 vifs come and go, and nothing is left",
    // Groups of `test --long`.
    "lives",
    "cycles",
    "many",
    "long chain",
    "abuse",
    "soak",
];

/// What a machine with three clients needs.
const USUAL_MIB: u32 = 2048;
/// And one with eight, or with larger ones.
const LARGE_MIB: u32 = 4096;
/// The way of the package.
const INSTALLED: &str = "install from the package, create, migrate, upgrade, roll back, restore";

/// All groups, in running order.
pub const GROUPS: &[Group] = &[
    Group {
        name: "usual",
        plan: Plan::usual,
        xenstored: "xenstored",
        memory_mib: USUAL_MIB,
        scenarios: scenarios! {
            "comes up without a NetVM and shuts down" => basics::without_netvm,
            "a NetVM is attached to one that started without" => basics::netvm_attached_later,
            "client reaches the outside, masqueraded" => traffic::ping_is_masqueraded,
            "only tcp/443: page on 443, refused at once on 80" => traffic::one_port_only,
            "accept all: ping, 20 MB with the right hash, DNS redirected" => traffic::accept_all,
            "clients do not reach each other" => traffic::clients_are_isolated,
            "the outside opens nothing inwards" => traffic::nothing_inwards,
            "a forged source address is dropped and counted" => traffic::forged_source,
            "broken frames are dropped and counted, the other client downloads" => hostile::raw_frames,
            "a broken backend directory costs its client alone" => hostile::broken_directory,
            "IPv6: reaches the outside, masqueraded; 4 MB, names" => six::reaches_the_outside,
            "IPv6: only tcp/443, refused at once on 80" => six::one_port_only,
            "IPv6: a rule edit ends a connection, its server is told nothing" => six::rule_edit,
            "IPv6: clients do not reach each other" => six::clients_are_isolated,
            "IPv6: a forged source address is dropped and counted" => six::forged_source,
            "a forwarded port is open while dom0 says so" => opened::forwarded_port,
            "one client reaches another's port while dom0 says so" => opened::one_client_for_another,
            "a rule edit during a download takes effect in under a second" => control::rule_edit,
            "a malformed rule denies its client alone" => control::malformed_rule,
            "dom0's command: status, an edit with hits, why it was refused, rules learned and applied" => dom0_command::from_status_to_learned_rules,
            "a rule with a host name, which moves" => names::rule_with_a_name,
            "qrexec: hello, known calls answered, others refused with 127" => control::qrexec_calls,
            "QubesDB closes and comes back" => control::qubesdb_restart,
            "services tell of rules, drops and flows; hostile callers are refused" => told::rules_drops_and_flows,
            "NetVM killed and restarted while clients run" => lifecycle::netvm_restart,
            "NetVM shut down and restarted while clients run" => lifecycle::netvm_shutdown,
            "NetVM crashed and restarted while clients run" => lifecycle::netvm_crash,
            "a client's vif is detached and attached again" => lifecycle::client_reattached,
            "50 vifs come and go, and nothing is left" => memory::vifs_come_and_go,
            "netvm change, none, and back while clients run" => lifecycle::netvm_change,
            "suspend and resume in place" => lifecycle::suspend,
            "two vifs with one address: the stuck one harms nobody" => lifecycle::stuck_twin,
            "firewall killed and restarted while a client runs" => lifecycle::firewall_restart,
            "firewall shut down and restarted while a client runs" => lifecycle::firewall_shutdown,
            "firewall crashed and restarted while a client runs" => lifecycle::firewall_crash,
            "clients shut down, a third one works" => lifecycle::third_client,
            "powers off on request" => lifecycle::powers_off,
            "reboots on request" => lifecycle::reboots,
            "powers off when dom0 asks by a call" => lifecycle::powers_off_by_call,
        },
    },
    Group {
        name: "unusual",
        plan: Plan::unusual,
        xenstored: "xenstored",
        memory_mib: USUAL_MIB,
        scenarios: scenarios! {
            "other ids, addresses, sizes and kernel: accept all" => traffic::accept_all,
            "other ids, addresses, sizes and kernel: one port only" => traffic::one_port_only,
            "other ids, addresses, sizes and kernel: rule edit" => control::rule_edit,
            "other ids, addresses, sizes and kernel: netvm change" => lifecycle::netvm_change,
            "other ids, addresses, sizes and kernel: powers off" => lifecycle::powers_off,
        },
    },
    Group {
        name: "chain",
        plan: Plan::chain,
        xenstored: "xenstored",
        memory_mib: USUAL_MIB,
        scenarios: scenarios! {
            "a firewall behind another firewall" => chain::behind_another_firewall,
            "the firewall in front is killed and restarted" => chain::other_firewall_restart,
        },
    },
    Group {
        name: "long chain",
        plan: Plan::long_chain,
        xenstored: "xenstored",
        memory_mib: LARGE_MIB,
        scenarios: scenarios! {
            "a firewall behind another one behind a Linux firewall VM" => chain::behind_another_firewall,
            "through three firewalls: packet size, checksums, throughput" => chain::size_sums_and_speed,
        },
    },
    Group {
        name: "hidden",
        plan: Plan::hidden,
        // What Qubes has: as good here as in a group of its own.
        xenstored: "oxenstored",
        memory_mib: USUAL_MIB,
        scenarios: scenarios! {
            "hidden addresses: two clients believe in the same one" => hidden::two_clients_with_one_address,
            "hidden addresses: the firewall's own" => hidden::firewall_with_a_hidden_address,
            "hidden addresses: the real one counts as forged" => hidden::real_address_is_forged_there,
        },
    },
    Group {
        name: "installed",
        plan: Plan::installed,
        xenstored: "xenstored",
        memory_mib: USUAL_MIB,
        scenarios: &[Scenario { name: INSTALLED, run: installed::from_package_to_restore }],
    },
    Group {
        name: "oxenstored",
        plan: Plan::usual_without_ipv6,
        xenstored: "oxenstored",
        memory_mib: USUAL_MIB,
        scenarios: scenarios! {
            "oxenstored: one port only" => traffic::one_port_only,
            "oxenstored: NetVM restart while clients run" => lifecycle::netvm_restart,
            "oxenstored: powers off" => lifecycle::powers_off,
        },
    },
    Group {
        name: "lives",
        plan: Plan::usual,
        xenstored: "xenstored",
        memory_mib: USUAL_MIB,
        scenarios: scenarios! {
            "life: a close cycle before the first connect" => |world| keeping_books(world, xenbus::closes_before_it_connects),
            "life: a client without any offload" => |world| keeping_books(world, xenbus::without_features),
            "life: a frontend stops in each xenbus state" => |world| beside(world, Server, xenbus::stops_in_each_state),
            "life: an event channel each way" => |world| beside(world, Server, xenbus::split_event_channels),
            "life: two vifs with one address" => |world| beside(world, Server, lifecycle::stuck_twin),
            "life: a vif detached and attached under load" => |world| beside(world, Server, lifecycle::client_reattached),
            "life: client killed in mid-transfer" => |world| beside(world, Server, lives::client_killed),
            "life: client shut down in mid-transfer" => |world| beside(world, Server, lives::client_shut_down),
            "life: client crashed in mid-transfer" => |world| beside(world, Server, lives::client_crashed),
            "life: client rebooted in mid-transfer" => |world| beside(world, Server, lives::client_rebooted),
            "life: client paused in mid-transfer" => |world| beside(world, Server, lives::client_paused),
            "life: qrexec lost and back under load" => |world| beside(world, Server, |world| under_load(world, lives::qrexec_lost)),
            "life: QubesDB lost and back under load" => lives::qubesdb_lost,
            "life: NetVM killed and restarted under load" => |world| beside(world, Gateway, |world| under_load(world, lifecycle::netvm_restart)),
            "life: NetVM shut down and restarted under load" => |world| beside(world, Gateway, |world| under_load(world, lifecycle::netvm_shutdown)),
            "life: NetVM crashed and restarted under load" => |world| beside(world, Gateway, |world| under_load(world, lifecycle::netvm_crash)),
            "life: netvm switched, none and back under load" => |world| beside(world, Gateway, |world| under_load(world, lifecycle::netvm_change)),
            "life: ten client restarts" => |world| beside(world, Server, lives::client_restarts),
            "life: firewall paused, its clock jumps" => |world| keeping_books(world, lives::firewall_paused),
            "life: suspend and resume under load" => |world| keeping_books(world, |world| under_load(world, lifecycle::suspend)),
            "life: firewall killed and restarted" => lifecycle::firewall_restart,
            "life: firewall shut down and restarted" => lifecycle::firewall_shutdown,
            "life: firewall crashed and restarted" => lifecycle::firewall_crash,
        },
    },
    Group {
        name: "cycles",
        plan: many::lasting_plan,
        xenstored: "xenstored",
        memory_mib: LARGE_MIB,
        scenarios: scenarios! {
            "life: 200 vifs come and go" => |world| beside(world, Server, many::cycles),
        },
    },
    Group {
        name: "many",
        plan: many::sixty_four_plan,
        xenstored: "xenstored",
        memory_mib: LARGE_MIB,
        scenarios: scenarios! {
            "life: 64 vifs at once, beyond the node quota" => many::sixty_four,
        },
    },
    Group {
        name: "abuse",
        plan: Plan::usual,
        xenstored: "xenstored",
        memory_mib: USUAL_MIB,
        scenarios: scenarios! {
            "abuse: flows without limit" => abuse::flows,
            "abuse: tiny packets" => abuse::tiny_packets,
            "abuse: first fragments without the rest" => abuse::lone_fragments,
            "abuse: large pings in fragments" => abuse::large_pings,
            "abuse: DNS questions" => abuse::questions,
            "abuse: ARP" => abuse::neighbours,
            "abuse: connections that are refused" => abuse::refused_connections,
            "abuse: nonsense in xenstore" => abuse::xenstore,
            "abuse: events without end" => abuse::events,
            "abuse: a ring's producer that jumps" => abuse::ring_producer,
            "abuse: a ring full of noise" => abuse::ring_requests,
            "abuse: rings and features that are none" => abuse::settings,
        },
    },
    Group {
        name: "soak",
        plan: many::lasting_plan,
        xenstored: "xenstored",
        memory_mib: LARGE_MIB,
        scenarios: scenarios! {
            "soak: ten minutes of load and churn" => soak::ten_minutes,
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_exists() {
        let names: Vec<&str> = GROUPS
            .iter()
            .flat_map(|group| group.scenarios.iter().map(|one| one.name).chain([group.name]))
            .collect();
        for name in NOT_SHOWN_YET.iter().chain(LONG_ONLY) {
            assert!(names.contains(name), "no scenario or group is called {name:?}");
        }
    }

    #[test]
    fn names_of_scenarios_are_unique() {
        let mut names: Vec<&str> =
            GROUPS.iter().flat_map(|group| group.scenarios.iter().map(|one| one.name)).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a record keeps one by its name");
    }
}
