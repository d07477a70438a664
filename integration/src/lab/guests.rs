//! Second stage of the lab images: the initial RAM disks of dom0 and of the Linux guests, made from the first
//! stage and the scripts in `integration/lab`. Takes seconds, so editing a script costs little.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::base::{Base, GuestKernel, XEN_VERSION, read_dir};
use super::cpio::Tree;
use super::modules;
use crate::error::{Attempt, Result};
use crate::{command, fail};

/// What a Linux guest of the lab is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A qube behind the firewall.
    Client,
    /// The qube in front of it, with the outside world in it.
    NetVm,
    /// A Linux firewall VM in the firewall's place: the reference to compare with.
    LinuxFirewall,
}

impl Role {
    /// As the guest's init and the image's file name have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::NetVm => "netvm",
            Self::LinuxFirewall => "fw",
        }
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Client => &["iperf3", "ping", "tcpdump", "ip", "arping", "socat", "ethtool"],
            Self::NetVm => &["dnsmasq", "iperf3", "ping", "tcpdump", "ip", "socat", "ethtool"],
            Self::LinuxFirewall => &["nft", "conntrack", "ip"],
        }
    }

    fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Client => &["xen-netfront", "pktgen"],
            Self::NetVm => &["xen-netfront", "xen-netback", "dummy"],
            Self::LinuxFirewall => &[
                "xen-netfront",
                "xen-netback",
                "nf_tables",
                "nft_ct",
                "nft_masq",
                "nft_chain_nat",
                "nft_reject_ipv4",
                "nft_reject_ipv6",
                "nft_reject_inet",
                "nf_conntrack_netlink",
                "nft_limit",
            ],
        }
    }
}

const XENSTORE_TOOLS: &[&str] = &["read", "write", "ls", "rm", "watch", "list", "chmod"];

/// File name of the RAM disk for a role on a kernel.
pub fn ramdisk_name(role: Role, kernel: GuestKernel) -> String {
    format!("{}-{}-initrd", role.name(), kernel_name(kernel))
}

/// File name of a guest kernel among the images.
pub fn kernel_file_name(kernel: GuestKernel) -> String {
    format!("vmlinux-{}", kernel_name(kernel))
}

fn kernel_name(kernel: GuestKernel) -> &'static str {
    match kernel {
        GuestKernel::Stable => "stable",
        GuestKernel::Newer => "newer",
    }
}

/// Builds all RAM disks into `dir`, beside the guest kernels.
///
/// # Errors
/// When a program or module that the lab needs is missing from the first stage.
pub fn build(dir: &Path, base: &Base, scripts: &Path) -> Result<()> {
    dom0(dir, base, scripts)?;
    for kernel in [GuestKernel::Stable, GuestKernel::Newer] {
        let file = dir.join(kernel_file_name(kernel));
        let vmlinux = base.guest_kernel(kernel)?.vmlinux;
        fs::hard_link(&vmlinux, &file).doing(|| format!("cannot link {}", vmlinux.display()))?;
        for role in [Role::Client, Role::NetVm, Role::LinuxFirewall] {
            let tree = guest(base, scripts, role, kernel)?;
            write(&dir.join(ramdisk_name(role, kernel)), &tree)?;
        }
    }
    Ok(())
}

fn dom0(dir: &Path, base: &Base, scripts: &Path) -> Result<()> {
    let mut tree = busybox_tree(base)?;
    let modules = ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"];
    for (path, data) in modules::closure(&base.dom0_kernel()?, &modules)? {
        tree.data(&path, data);
    }
    add_scripts(&mut tree, &scripts.join("dom0"))?;
    tree.program("init", &scripts.join("dom0/initramfs-init"))?;
    write(&dir.join("dom0-initrd"), &tree)
}

fn guest(base: &Base, scripts: &Path, role: Role, kernel: GuestKernel) -> Result<Tree> {
    let mut tree = busybox_tree(base)?;
    let mut libraries = Libraries::new(base);
    // busybox' own shell takes its applets before what is in PATH (ip, ping), so the guests have dash.
    libraries.add_program(&mut tree, "dash")?;
    tree.link("bin/sh", "dash");
    for tool in XENSTORE_TOOLS {
        libraries.add_program(&mut tree, &format!("xenstore-{tool}"))?;
    }
    for program in role.programs() {
        libraries.add_program(&mut tree, program)?;
    }
    for (path, data) in modules::closure(&base.guest_kernel(kernel)?, role.modules())? {
        tree.data(&path, data);
    }
    add_scripts(&mut tree, &scripts.join("guest"))?;
    tree.link("init", "lab/init");
    tree.data("etc/passwd", "root:x:0:0:root:/:/bin/sh\n");
    tree.data("etc/group", "root:x:0:\n");
    tree.link("bin/poweroff", "../lab/poweroff");
    if role == Role::NetVm {
        tree.data("lab/seed", seed_block());
    }
    Ok(tree)
}

fn busybox_tree(base: &Base) -> Result<Tree> {
    let mut tree = Tree::new();
    for dir in ["bin", "proc", "sys", "dev", "run", "tmp", "etc", "lab"] {
        tree.dir(dir);
    }
    tree.link("sbin", "bin");
    let busybox = base.root().join("usr/bin/busybox");
    let applets = command::output(&mut command::new(&busybox, &["--list"]))?;
    for applet in applets.lines() {
        tree.link(&format!("bin/{applet}"), "busybox");
    }
    tree.program("bin/busybox", &busybox)?;
    Ok(tree)
}

fn add_scripts(tree: &mut Tree, dir: &Path) -> Result<()> {
    for name in read_dir(dir)? {
        tree.program(&format!("lab/{}", name.to_string_lossy()), &dir.join(&name))?;
    }
    Ok(())
}

fn write(path: &Path, tree: &Tree) -> Result<()> {
    fs::write(path, tree.pack()).doing(|| format!("cannot write {}", path.display()))
}

/// Shared libraries of programs, found in dom0's tree.
struct Libraries {
    root: PathBuf,
    done: BTreeSet<String>,
}

impl Libraries {
    fn new(base: &Base) -> Self {
        Self { root: base.root(), done: BTreeSet::new() }
    }

    fn add_program(&mut self, tree: &mut Tree, name: &str) -> Result<()> {
        let found = ["usr/bin", "usr/sbin"]
            .iter()
            .map(|dir| self.root.join(dir).join(name))
            .find(|p| p.exists());
        let Some(source) = found else { fail!("no program {name} in dom0's tree") };
        let source = source.canonicalize().doing(|| format!("cannot resolve {name}"))?;
        tree.program(&format!("bin/{name}"), &source)?;
        tree.program(
            "lib64/ld-linux-x86-64.so.2",
            &self.root.join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
        )?;
        self.add_needed(tree, &source)
    }

    fn add_needed(&mut self, tree: &mut Tree, binary: &Path) -> Result<()> {
        let dump = command::output(command::new("objdump", &["-p"]).arg(binary))?;
        let needed = dump.lines().filter_map(|line| line.trim().strip_prefix("NEEDED"));
        for library in needed.map(str::trim) {
            if !self.done.insert(library.to_owned()) {
                continue;
            }
            let source = self.find(library)?;
            tree.program(&format!("lib/{library}"), &source)?;
            self.add_needed(tree, &source)?;
        }
        Ok(())
    }

    fn find(&self, library: &str) -> Result<PathBuf> {
        let dirs = [
            "usr/lib/x86_64-linux-gnu".to_owned(),
            "usr/lib64".into(),
            format!("usr/lib/xen-{XEN_VERSION}/lib/x86_64-linux-gnu"),
        ];
        for dir in &dirs {
            let path = self.root.join(dir).join(library);
            if path.exists() {
                return path.canonicalize().doing(|| format!("cannot resolve {library}"));
            }
        }
        fail!("no library {library} in dom0's tree")
    }
}

/// A file that the NetVM serves over HTTP (`integration/lab/guest/netvm-setup` writes it).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its name below the server's root.
    pub name: &'static str,
    /// How many numbered blocks of a MiB it has.
    blocks: usize,
}

/// 20 MB.
pub const BIG: Served = Served { name: "big", blocks: 20 };

/// 4 MB, for transfers that go on beside something else.
pub const PART: Served = Served { name: "part", blocks: 4 };

/// One MiB of fixed pseudo-random bytes (xorshift64*): incompressible, the same in every build.
fn seed_block() -> Vec<u8> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut out = Vec::with_capacity(1 << 20);
    while out.len() < 1 << 20 {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        out.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out
}

impl Served {
    /// Size in bytes and SHA-256 (hexadecimal).
    pub fn content(self) -> (usize, String) {
        let seed = seed_block();
        let mut hash = Sha256::new();
        let mut size = 0;
        for block in 0..self.blocks {
            let head = format!("block {block:08}\n");
            hash.update(&head);
            hash.update(&seed);
            size += head.len() + seed.len();
        }
        (size, super::cache::hex(&hash.finalize()))
    }

    /// Its size, for people.
    pub fn megabytes(self) -> usize {
        self.blocks
    }
}
