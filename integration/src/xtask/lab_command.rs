//! `cargo xtask lab ...`: the lab by hand.

use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::lab::domain::DomainSpec;
use crate::lab::plan::Plan;
use crate::lab::qemu::MachineOptions;
use crate::lab::{Lab, cache};
use crate::{apt, command, fail, progress};

const USAGE: &str = "\
usage: cargo xtask lab build [--fresh]      the images (--fresh: from newly downloaded package lists)
       cargo xtask lab up                   boot Xen and dom0, and leave them running
       cargo xtask lab exec DOMAIN CMD...   a command in dom0 or in a Linux guest
       cargo xtask lab console DOMAIN       what a domain wrote to its console, and what it writes
       cargo xtask lab boot IMAGE           boot IMAGE as a PVH domain without devices and show its console
       cargo xtask lab scenario [--repeat N] [PART]
                                            the scenarios whose name contains PART (or of that group; several
                                            with | between), N times, each time on a fresh boot; the report counts
       cargo xtask lab prove [unusual]      the lab alone, with a Linux firewall in the place of ours
       cargo xtask lab down                 end it";

/// Instance of the lab that `up` leaves running.
pub const NAME: &str = "hand";

/// Runs one `lab` command.
///
/// # Errors
/// When it is unknown or does not succeed.
pub fn run(args: &[&str]) -> Result<()> {
    match args {
        ["build"] => build(false),
        ["build", "--fresh"] => build(true),
        ["up"] => up(),
        ["down"] => {
            Lab::attach(NAME)?.stop();
            progress::say("lab: ended");
            Ok(())
        }
        ["exec", domain, line @ ..] if !line.is_empty() => exec(domain, &line.join(" ")),
        ["console", domain] => console(domain),
        ["scenario", "--repeat", times, filter @ ..] => scenario(times, &filter.join(" ")),
        ["scenario", filter @ ..] => scenario("1", &filter.join(" ")),
        ["prove"] => super::prove::run(Plan::usual()),
        ["prove", "unusual"] => super::prove::run(Plan::unusual()),
        ["boot", image] => boot(Path::new(image)),
        _ => fail!("{USAGE}"),
    }
}

fn scenario(times: &str, filter: &str) -> Result<()> {
    let Some(times) = times.parse().ok().filter(|times| *times > 0) else {
        fail!("--repeat wants a number, not {times:?}");
    };
    apt::ensure(apt::LAB)?;
    let image = super::image::build()?;
    super::scenarios::repeat_matching(&super::scenarios::prepare()?, &image, filter, times)
}

fn build(fresh: bool) -> Result<()> {
    apt::ensure(apt::LAB)?;
    let images = cache::images(fresh)?;
    progress::say(format!(
        "lab: images in {} and {}",
        images.base.dir.display(),
        images.dir.display()
    ));
    Ok(())
}

fn up() -> Result<()> {
    apt::ensure(apt::LAB)?;
    let images = cache::images(false)?;
    let options = MachineOptions { name: NAME.into(), detached: true, ..Default::default() };
    let lab = Lab::boot(&images, &options)?;
    progress::say(format!(
        "lab: up. cargo xtask lab exec dom0 'xl list'; files in {} are dom0's /host",
        lab.share().display()
    ));
    Ok(())
}

fn exec(domain: &str, line: &str) -> Result<()> {
    let lab = Lab::attach(NAME)?;
    let timeout = Duration::from_secs(600);
    let output = match domain {
        "dom0" | "Domain-0" => lab.exec_for(line, timeout)?,
        name => lab.domain(name)?.exec_for(&lab, line, timeout)?,
    };
    print!("{}", output.text);
    match output.status {
        0 => Ok(()),
        status => fail!("exit status {status}"),
    }
}

fn console(domain: &str) -> Result<()> {
    let lab = Lab::attach(NAME)?;
    let file = match domain {
        "dom0" | "Domain-0" | "xen" => lab.share().join("../console.log"),
        name => lab.console_dir().join(format!("guest-{name}.log")),
    };
    if !file.exists() {
        fail!("no domain {domain} has been started");
    }
    command::status(command::new("tail", &["-n", "+1", "-f"]).arg(file))
}

fn boot(image: &Path) -> Result<()> {
    let lab = match Lab::attach(NAME) {
        Ok(lab) => lab,
        Err(_) => {
            up()?;
            Lab::attach(NAME)?
        }
    };
    let kernel = lab.put_kernel(image)?;
    let mut spec = DomainSpec::unikernel("boot", &kernel, 32, "");
    spec.driver_domain = false;
    let _ = lab.destroy("boot");
    let domain = lab.create(&spec)?;
    progress::say(format!(
        "domain boot, number {}, made in {:.1} s; its console:",
        domain.domid, domain.create_seconds
    ));
    console("boot")
}
