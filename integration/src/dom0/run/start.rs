//! A VM's start by a toolstack that is loaded already, as libvirtd, qubesd and their libraries are in Qubes: the program `dom0start`.
//!
//! It divides itself before the start: one process each for QubesDB, for qrexec, and for the device that a client gets once the VM
//! is up. Nothing is loaded any more when the start begins.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::args::Args;
use super::xenstore::Xenstore;
use super::{Attempt, Failure, Result, process, qrexec, qubesdb};
use crate::ffi::Toolstack;

pub(crate) const USAGE: &str = "\
usage: dom0start --domid N --socket PATH [--vm VM.json] [--log FILE] --gate FIFO --unpause 0
                 [--qrexec PATH]   (also the qrexec daemon, with that socket)
                 --done FILE --client DOMID --nic JSON [--node PATH]
                                   (attaches a device when the domain has written the node or qrexec has its hello)";

/// How often what is waited for is looked for: a file, and a node, which takes xenstored's time.
const LOOK: Duration = Duration::from_millis(10);
const NODE_LOOK: Duration = Duration::from_millis(20);

/// Entry point of `dom0start`.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    super::report(run(&words), USAGE)
}

fn run(words: &[String]) -> Result {
    let args = Args::parse(words)?;
    let (domid, socket) = (args.needed_number("domid")?, args.needed("socket")?);
    if let Some(own) = args.get("qrexec")
        && process::divide(own)?
    {
        wait_for(LOOK, || Path::new(socket).exists());
        return qrexec::serve(domid, own.to_owned(), &format!("{own}.log"), "user");
    }
    let done = args.needed("done")?;
    if process::divide(done)? {
        let said = match attach(&args, done) {
            Ok(()) => String::new(),
            Err(Failure::Usage(text) | Failure::Failed(text) | Failure::Code(_, text)) => text,
        };
        let new = format!("{done}.new");
        fs::write(&new, said).doing(&new)?;
        return fs::rename(&new, done).doing(done);
    }
    qubesdb::run(&args)
}

fn attach(args: &Args, done: &str) -> Result {
    let (client, nic) = (args.needed_number("client")?, args.needed("nic")?);
    let toolstack = Toolstack::open().doing("libxl")?;
    let xenstore = Xenstore::open()?;
    // Before that the domain does not run.
    let socket = Path::new(args.needed("socket")?);
    wait_for(LOOK, || socket.exists());
    match args.get("node") {
        Some(node) => wait_for(NODE_LOOK, || xenstore.exists(node).unwrap_or(false)),
        None => {
            let hello = Path::new(args.needed("qrexec")?);
            wait_for(LOOK, || hello.exists());
        }
    }
    let up = format!("{done}.up");
    fs::write(&up, "").doing(&up)?;
    toolstack.attach_nic(client, nic).doing("attach")
}

/// As long as it takes: who started this ends it.
fn wait_for(look: Duration, is_there: impl Fn() -> bool) {
    while !is_there() {
        std::thread::sleep(look);
    }
}
