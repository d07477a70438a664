//! Many devices: 64 at once, of eight Linux VMs, and 200 that come and go.
//!
//! Each vif has an address of its own, so for the firewall each one is a qube.

use std::time::Duration;

use serde_json::Value;

use super::books::Books;
use super::steps::{self, ALICE, BOB, need_both};
use crate::error::Result;
use crate::fail;
use crate::lab::plan::{Client, Plan};
use crate::lab::world::World;

/// Linux VMs, and vifs of each.
const VMS: usize = 8;
const VIFS_OF_A_VM: usize = 8;
const VIFS: usize = VMS * VIFS_OF_A_VM;
/// For a command of a guest or of dom0 beside 64 vifs.
const PATIENCE: Duration = Duration::from_secs(300);
/// Cycles of each of two clients. Each costs a Linux guest two MiB for good.
const CYCLES: u32 = 100;
/// Memory of a client that lives through them, MiB.
const LASTING_MIB: u32 = 448;
/// Nodes that a vif's backend offers at least (Xen public/io/netif.h).
const ESSENTIAL: &str = "feature-rx-copy";
/// And those of a vif that has all.
const EVERYTHING: &str = "feature-gso-tcpv6";

/// [`Plan::usual`] with `vms` Linux VMs of `vifs` vifs each; the clients' numbers count the vifs, VM by VM.
pub fn plan(vms: usize, vifs: usize) -> Plan {
    let mut plan = Plan::usual();
    plan.clients = (0..vms * vifs)
        .map(|number| Client {
            name: format!("many-{}", number / vifs),
            ip: format!("10.137.1.{}", number + 1),
            ip6: None,
            visible: None,
            mac: format!("00:16:3e:5e:6d:{number:02x}"),
            devid: u32::try_from(number % vifs).unwrap_or_default(),
            memory_mib: 128,
        })
        .collect();
    plan
}

/// The network of [`sixty_four`].
pub fn sixty_four_plan() -> Plan {
    plan(VMS, VIFS_OF_A_VM)
}

/// The network of [`cycles`].
pub fn lasting_plan() -> Plan {
    let mut plan = Plan::usual();
    plan.clients.iter_mut().for_each(|client| client.memory_mib = LASTING_MIB);
    plan
}

/// Starts the VM number `vm` of a [`plan`] with all its `vifs`, each with a table of routes of its own, and has each one reach
/// the firewall.
///
/// # Errors
/// When a vif does not connect, or gets no answer.
pub fn start(world: &mut World, vm: usize, vifs: usize) -> Result<()> {
    let first = vm * vifs;
    world.need_client(first)?;
    for index in first + 1..first + vifs {
        world.need_vif(index)?;
    }
    let gateway = &world.plan.firewall.ip;
    let mut line =
        String::from("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done; set -e; ");
    for index in first..first + vifs {
        let (ip, device, table) = (world.client_ip(index)?, index - first, 100 + index);
        line.push_str(&format!(
            "n=0; until [ -e /sys/class/net/eth{device} ] || [ $n -gt 500 ]; do usleep 20000; n=$((n + 1)); done; \
             printf '%s\\n' 'addr replace {ip}/32 dev eth{device}' 'link set eth{device} up' \
             'neigh replace {gateway} lladdr fe:ff:ff:ff:ff:ff dev eth{device} nud permanent' \
             'route replace {gateway} dev eth{device} scope link table {table}' \
             'route replace default via {gateway} dev eth{device} onlink table {table}' \
             'rule add from {ip} lookup {table}' | ip -batch -; ping -c 1 -W 30 -I {ip} {gateway} >/dev/null; "
        ));
    }
    world.client(first)?.exec_for(&world.lab, &line, PATIENCE)?.ok("vifs").map(drop)
}

/// 64 vifs at once: more nodes than xenstore gives one domain. Each of them reaches the server, and the firewall says which
/// ones have fewer features.
///
/// # Errors
/// When one does not work, or the firewall does not say so.
pub fn sixty_four(world: &mut World) -> Result<String> {
    world.need_firewall(Some(0))?;
    for vm in 0..VMS {
        start(world, vm, VIFS_OF_A_VM)?;
    }
    for vm in 0..VMS {
        let first = vm * VIFS_OF_A_VM;
        let addresses: Vec<String> = (first..first + VIFS_OF_A_VM)
            .map(|index| world.client_ip(index))
            .collect::<Result<_>>()?;
        let line = format!(
            "for ip in {}; do ping -q -c 3 -i 0.2 -W 10 -I $ip {server} >/dev/null || echo no answer for $ip; done",
            addresses.join(" "),
            server = world.plan.internet
        );
        let text = world.client(first)?.exec_for(&world.lab, &line, PATIENCE)?.ok("pings")?;
        if !text.trim().is_empty() {
            fail!("{}", text.trim());
        }
        steps::download(world, world.client(first)?, crate::lab::guests::PART)?;
    }
    let domid = world.firewall()?.domid;
    let nodes = world.lab.exec_for(&format!("xenstore-ls -f /local/domain/{domid}"), PATIENCE)?;
    let nodes = nodes.ok("nodes of the firewall")?;
    let with = |name: &str| nodes.lines().filter(|line| line.contains(name)).count();
    let (essential, full) = (with(ESSENTIAL), with(EVERYTHING));
    let (limited, fewer) = (told_limited(world)?, fewer(world)?);
    if essential != VIFS || full == VIFS || limited == 0 || limited != fewer {
        fail!(
            "{essential} vifs with {ESSENTIAL}, {full} with {EVERYTHING}, {limited} told to have fewer features, {fewer} \
             have, of {VIFS}"
        );
    }
    Ok(format!(
        "{VIFS} vifs, all reach the server; {limited} with fewer features and told so; {} nodes, {full} vifs with all",
        nodes.lines().count()
    ))
}

/// How many vifs the firewall says to have fewer features.
fn told_limited(world: &World) -> Result<usize> {
    let out = world.dom0d()?.call(&world.lab, "QUBESRPC firewall.Stats dom0")?;
    let lines = out.text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let told = lines.filter_map(|line| line.get("limited_vifs").and_then(Value::as_u64)).next();
    match told.and_then(|told| usize::try_from(told).ok()) {
        Some(told) => Ok(told),
        None => fail!("firewall.Stats: exit status {}: {}", out.status, out.text),
    }
}

/// How many vifs have fewer features, as their drivers see it.
fn fewer(world: &World) -> Result<usize> {
    let mut count = 0;
    for vm in 0..VMS {
        let line = "for d in /sys/class/net/eth*; do ethtool -k ${d##*/} | grep -c '^tcp-segmentation-offload: off'; done; true";
        let client = world.client(vm * VIFS_OF_A_VM)?;
        let text = client.exec_for(&world.lab, line, PATIENCE)?.ok("ethtool")?;
        count += text.lines().filter(|line| line.trim() == "1").count();
    }
    Ok(count)
}

/// 200 vifs come and go, of two clients, by the nodes that libxl writes: what the firewall holds is what it was.
///
/// # Errors
/// When one does not connect or go, or something is left.
pub fn cycles(world: &mut World) -> Result<String> {
    need_both(world)?;
    // The first ones make what stays for good: lists that have grown.
    cycle(world, ALICE, 1)?;
    cycle(world, BOB, 1)?;
    let before = Books::read(world)?;
    let begun = std::time::Instant::now();
    // In pieces, so that a command of dom0 does not take too long.
    for _ in 0..CYCLES / 20 {
        cycle(world, ALICE, 20)?;
        cycle(world, BOB, 20)?;
    }
    let seconds = begun.elapsed().as_secs();
    let books = before.settle(world)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    steps::page(world, world.client(BOB)?, 0)?;
    Ok(format!("{} vifs in {seconds} s, {books}", 2 * CYCLES))
}

/// What libxl writes for a device (see `xenstore-ls` of one), without libxl: which takes seconds for each.
const CYCLE: &str = "\
i=0; while [ $i -lt $count ]; do i=$((i + 1)); d=$((10 + i % 4))
back=/local/domain/$f/backend/vif/$c/$d; front=/local/domain/$c/device/vif/$d
xenstore-write $back ''; xenstore-chmod $back n$f r$c; xenstore-write $front ''; xenstore-chmod $front n$c r$f
xenstore-write $back/frontend $front $back/frontend-id $c $back/handle $d $back/mac 00:16:3e:5e:6c:00 $back/ip 10.137.200.$d \
 $back/script vif-route-qubes $back/type vif $back/online 1 $back/hotplug-status '' $back/state 1
xenstore-write $front/backend $back $front/backend-id $f $front/handle $d $front/mac 00:16:3e:5e:6c:00 $front/state 1
n=0; until [ \"$(xenstore-read $back/state)\" = 4 ]; do n=$((n + 1)); \
 [ $n -lt 600 ] || { echo \"device $d does not connect\"; xenstore-ls $back; xenstore-ls $front; exit 1; }; sleep 0.1; done
xenstore-write $back/online 0 $back/state 5
n=0; while xenstore-exists $back; do n=$((n + 1)); \
 [ $n -lt 600 ] || { echo \"device $d does not go\"; xenstore-ls $back; exit 1; }; sleep 0.1; done
xenstore-rm $front; done";

/// Vifs of the client number `index` come and go, one after the other.
///
/// # Errors
/// When one does not connect, or does not go.
pub fn cycle(world: &World, index: usize, count: u32) -> Result<()> {
    let (f, c) = (world.firewall()?.domid, world.client(index)?.domid);
    let line = format!("f={f}; c={c}; count={count}\n{CYCLE}");
    let out = world.lab.exec_for(&line, PATIENCE)?;
    if !out.success() {
        fail!("vifs of {}: {}", world.client(index)?.name, out.text.trim());
    }
    Ok(())
}
