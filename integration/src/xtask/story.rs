//! `cargo xtask run`: from nothing to the live story. Each sentence is a scenario that runs then and there, on
//! one booted lab, and what it says was measured by it.

use std::io::{BufRead, Write};
use std::time::Duration;

use super::image::Image;
use super::{image, scenarios};
use crate::error::{Error, Result};
use crate::lab::world::{ACCEPT_ALL, World};
use crate::scenarios::steps::{self, BOB};
use crate::scenarios::{GROUPS, control, lifecycle, traffic};
use crate::{apt, command, fail, progress};

/// How often the story is told because the emulator failed.
const EMULATOR_TRIES: u32 = 3;

/// One sentence of the story, and what shows it.
type Part = (&'static str, fn(&mut World) -> Result<String>);

const STORY: &[Part] = &[
    ("the NetVM (a Linux domain of its own)", |world| world.need_netvm(0).map(|()| String::new())),
    ("the firewall starts", starts),
    ("client A starts; it may use tcp/443 of the server only", |world| {
        steps::need_one(world).map(|()| String::new())
    }),
    ("client B starts; it may do everything", |world| {
        world.set_rules(BOB, ACCEPT_ALL)?;
        world.need_client(BOB).map(|()| String::new())
    }),
    ("A gets its page on 443 and is refused on 80, at once, by ICMP", traffic::one_port_only),
    ("B pings, downloads 20 MB, resolves a name through the DNS redirection", traffic::accept_all),
    ("A and B cannot reach each other", traffic::clients_are_isolated),
    ("dom0 edits A's rules while A downloads; B is not touched", control::rule_edit),
    ("a forged source address is dropped and counted", traffic::forged_source),
    ("A and B shut down, a third client starts and works", lifecycle::third_client),
];

/// Tells the story; with `keep`, the lab stays up with a prompt.
///
/// # Errors
/// When a part of it does not hold; the logs are kept.
pub fn run(keep: bool) -> Result<()> {
    let image = image::build()?;
    apt::ensure(apt::LAB)?;
    let images = scenarios::prepare()?;
    let Some(group) = GROUPS.first() else { fail!("no scenarios") };
    for tries in 1..=EMULATOR_TRIES {
        let mut world = scenarios::boot(&images, &image, group)?;
        let Err(error) = tell(&mut world, &image, keep) else { return Ok(()) };
        let fault = world.lab.fault();
        scenarios::save_logs(Some(&world), "run");
        let Some(fault) = fault else { return Err(error) };
        progress::say(format!("emulator fault {tries}: {fault}; telling it from the start"));
    }
    fail!("the emulator failed {EMULATOR_TRIES} times")
}

fn tell(world: &mut World, image: &Image, keep: bool) -> Result<()> {
    for (sentence, show) in STORY {
        let note = progress::step(sentence, || show(world))
            .map_err(|error| Error::Failed(format!("{sentence}: {error}")))?;
        if !note.is_empty() {
            progress::say(format!("    {note}"));
        }
        world.check_dom0()?;
    }
    if keep {
        steps::need_both(world)?;
        prompt(world)?;
    }
    let console = world.firewall()?.console_file();
    let seconds = progress::step("the firewall powers off on request", || {
        let name = world.plan.firewall.name.clone();
        lifecycle::shut_down_firewall(world, &name)
    })?;
    let text = String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).into_owned();
    summary(&text, image, seconds)
}

fn starts(world: &mut World) -> Result<String> {
    world.need_firewall(Some(0))?;
    let line = world.firewall()?.wait_console(
        &world.lab,
        "fw: qubes-rust-firewall",
        Duration::from_secs(10),
    )?;
    Ok(line.trim_start_matches("fw: ").to_owned())
}

/// What the firewall printed about itself, and the image's size.
fn summary(console: &str, image: &Image, off_seconds: f32) -> Result<()> {
    let find = |needle: &str| {
        let line = console.lines().map(str::trim_end).find(|line| line.contains(needle));
        line.ok_or_else(|| Error::Failed(format!("the firewall did not print {needle:?}")))
    };
    let ready = find("fw: ready")?;
    let first = find("fw: first packet forwarded")?;
    progress::say("measured in this run:");
    for (what, line) in [("readiness", ready), ("the first forwarded packet", first)] {
        progress::say(format!(
            "    from entry to {what}: {} ms of time, {} ms of the firewall's CPU",
            steps::decimal(line, "wall_ms")?,
            steps::decimal(line, "vcpu_ms")?
        ));
    }
    progress::say(format!(
        "    memory when ready: heap {} KiB, pages {} (free/total)",
        steps::field(ready, "heap_kib").unwrap_or("?"),
        steps::field(ready, "pages").unwrap_or("?")
    ));
    progress::say(format!("    image: {} bytes, SHA-256 {}", image.size, image.sha256));
    progress::say(format!("    powered off {off_seconds:.1} s after the request"));
    if let Some(stats) = console.lines().rev().find(|line| line.contains("fw: stats")) {
        progress::say(format!(
            "    counters at the end: {}",
            stats.trim_end().trim_start_matches("fw: ")
        ));
    }
    Ok(())
}

const PROMPT_HELP: &str = "\
The lab stays up. DOMAIN COMMAND runs a command there (dom0, or one of the Linux domains), for example
    dom0 xl list
    alice wget -q -O - http://192.0.2.1:443/
console DOMAIN shows a console; rules DOMAIN RULE ; RULE ... edits a client's rules; quit (or Ctrl-D) ends it.";

fn prompt(world: &mut World) -> Result<()> {
    progress::say(PROMPT_HELP);
    let stdin = std::io::stdin();
    loop {
        print!("lab> ");
        let _ = std::io::stdout().flush();
        let mut line = String::new();
        if stdin.lock().read_line(&mut line).unwrap_or(0) == 0 {
            return Ok(());
        }
        let (first, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let answer = match first {
            "" => Ok(()),
            "quit" | "exit" => return Ok(()),
            "console" => world.domain(rest.trim()).map(|domain| {
                println!("{}", command::last_lines(&domain.console(), 40));
            }),
            "rules" => edit(world, rest),
            domain => execute(world, domain, rest),
        };
        if let Err(error) = answer {
            println!("{error}");
        }
    }
}

fn edit(world: &mut World, words: &str) -> Result<()> {
    let (name, rules) = words.trim().split_once(' ').unwrap_or((words.trim(), ""));
    let Some(index) = world.plan.clients.iter().position(|client| client.name == name) else {
        fail!("no client {name:?}");
    };
    let rules: Vec<&str> =
        rules.split(';').map(str::trim).filter(|rule| !rule.is_empty()).collect();
    world.set_rules(index, &rules).map(drop)
}

fn execute(world: &World, domain: &str, line: &str) -> Result<()> {
    let timeout = Duration::from_secs(300);
    let output = match domain {
        "dom0" => world.lab.exec_for(line, timeout)?,
        name => world.domain(name)?.exec_for(&world.lab, line, timeout)?,
    };
    print!("{}", output.text);
    if !output.success() {
        println!("(exit status {})", output.status);
    }
    Ok(())
}
