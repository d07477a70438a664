//! A start whose time is measured: dom0's programs are loaded when it begins, as those of Qubes are.

use super::Lab;
use super::dom0d::{Dom0d, STARTER};
use super::domain::{Domain, DomainSpec, Vif};
use crate::error::Result;

/// What dom0 did, and for how many seconds.
pub type Parts = Vec<(&'static str, f32)>;

/// What tells that a VM is up.
#[derive(Clone, Copy, Debug)]
pub enum Up {
    /// Its qrexec agent has said hello, as Qubes has it. Its QubesDB has the keys of the server's file.
    Qrexec,
    /// Its init has come to the end: a Linux guest of the lab.
    Init,
}

/// A VM's start that waits for its beginning.
#[derive(Debug)]
pub struct Start {
    spec: DomainSpec,
    then: [(&'static str, String); 3],
}

impl Start {
    /// Prepares the start of a paused domain, whose number will be that of `server`: a client gets the device `vif` when it is up.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn prepare(
        lab: &Lab,
        spec: DomainSpec,
        server: &Dom0d,
        up: Up,
        client: &Domain,
        vif: &Vif,
    ) -> Result<Self> {
        let (domid, socket) = (server.domid(), server.db_socket());
        let folder = "/run/lab";
        let (gate, done) = (format!("{folder}/gate.{domid}"), format!("{folder}/attached.{domid}"));
        let errors = format!("{folder}/start.{domid}.err");
        let of_kind = match up {
            Up::Qrexec => {
                format!("--vm {} --qrexec {}", server.state_file(), server.qrexec_socket())
            }
            Up::Init => format!("--node /local/domain/{domid}/data/lab"),
        };
        lab.sh(&format!(
            "rm -f {gate} {done} {done}.up && mkfifo {gate} && \
             {STARTER} --domid {domid} --socket {socket} --log /host/qubesdb-{domid}.log --gate {gate} --unpause 0 \
             {of_kind} --done {done} --client {} --nic '{}' >/dev/null 2>{errors} &",
            client.domid,
            vif.json()
        ))?;
        // The shell alone looks: a program for each look would take the processor from what is looked for.
        let wait = |file: &str| {
            format!(
                "n=0; until [ -e {file} ]; do read -r -t 0.01 -u 9 _; n=$((n + 1)); \
                 [ $n -lt 20000 ] || {{ cat {errors} {done}.err; exit 1; }}; done"
            )
        };
        let then = [
            (
                "QubesDB and unpause",
                format!("exec 9<> <(:); echo >{gate}; {}; true", wait(&socket)),
            ),
            ("until it is up", format!("{}; true", wait(&format!("{done}.up")))),
            (
                "device",
                format!("{}; [ ! -s {done} ] || {{ cat {done} {done}.err; false; }}", wait(&done)),
            ),
        ];
        Ok(Self { spec, then })
    }

    /// Makes the domain, and all that follows.
    ///
    /// # Errors
    /// When something of it fails.
    pub fn go(self, lab: &Lab) -> Result<(Domain, Parts)> {
        lab.create_and(&self.spec, &self.then)
    }
}
