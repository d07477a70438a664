//! First stage of the lab images: what comes from Debian packages alone. The hypervisor, the kernels as plain
//! ELF files, and dom0's root disk. No maintainer script is run and no privilege is needed: apt resolves and
//! downloads against an empty package status, the packages are unpacked side by side.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::kernel;
use crate::error::{Attempt, Result};
use crate::{apt, command, fail, progress};

/// Version of Xen in the distribution that the lab is built from.
pub const XEN_VERSION: &str = "4.17";

/// Programs of dom0; the guests borrow theirs from the same tree.
const PROGRAMS: &[&str] = &[
    "base-files",
    "bash",
    "dash",
    "coreutils",
    "grep",
    "sed",
    "gawk",
    "util-linux",
    "mount",
    "libc-bin",
    "procps",
    "iproute2",
    "iputils-ping",
    "iputils-arping",
    "ethtool",
    "nftables",
    "conntrack",
    "tcpdump",
    "iperf3",
    "socat",
    "dnsmasq-base",
    "strace",
    "dropbear-bin",
    "busybox-static",
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "xen-hypervisor-4.17-amd64",
];

/// Kernels: the generic one for dom0 (the cloud flavour lacks `CONFIG_XEN_DOM0`), two for guests.
const KERNELS: &[&str] =
    &["linux-image-amd64", "linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"];

/// Dependencies that matter to a configured system only.
const UNPACKED_NOT: &[&str] = &[
    "perl",
    "libperl",
    "python3",
    "libpython3",
    "initramfs-tools",
    "udev",
    "usrmerge",
    "linux-base",
    "cpio",
    "klibc-utils",
    "adduser",
    "debconf",
    "libfile-find-rule",
    "libtext-glob",
    "libnumber-compare",
    "xen-hypervisor-common",
    "grub",
    "shim",
    "efi",
    "libefi",
    "os-prober",
    "ucf",
];

/// The guest kernels of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKernel {
    /// Debian's stable kernel, cloud flavour.
    Stable,
    /// The newer long-term kernel of the same distribution.
    Newer,
}

/// Kernel modules and ELF of one kernel package.
pub struct Kernel {
    /// As `uname -r` says it.
    pub version: String,
    /// Directory with `lib/modules/VERSION`.
    pub tree: PathBuf,
    /// The plain ELF file.
    pub vmlinux: PathBuf,
}

/// A finished first stage.
pub struct Base {
    /// Its directory; the name ends with the hash of its inputs.
    pub dir: PathBuf,
}

impl Base {
    /// Root file system of dom0, unpacked.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// The hypervisor, unpacked.
    pub fn xen(&self) -> PathBuf {
        self.dir.join("xen")
    }

    /// dom0's disk: an ext4 file system without partitions.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("dom0.img")
    }

    /// dom0's kernel.
    ///
    /// # Errors
    /// When the package did not contain one.
    pub fn dom0_kernel(&self) -> Result<Kernel> {
        self.kernel("dom0", |version| !version.contains("cloud"))
    }

    /// A kernel for guests.
    ///
    /// # Errors
    /// When the package did not contain one.
    pub fn guest_kernel(&self, which: GuestKernel) -> Result<Kernel> {
        match which {
            GuestKernel::Stable => {
                self.kernel("stable", |v| v.contains("cloud") && !v.starts_with("6.12"))
            }
            GuestKernel::Newer => {
                self.kernel("newer", |v| v.contains("cloud") && v.starts_with("6.12"))
            }
        }
    }

    fn kernel(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Result<Kernel> {
        let tree = self.dir.join("kernels");
        let modules = tree.join("lib/modules");
        for entry in read_dir(&modules)? {
            let version = entry.to_string_lossy().into_owned();
            if wanted(&version) {
                return Ok(Kernel {
                    version,
                    vmlinux: self.dir.join(format!("vmlinux-{name}")),
                    tree,
                });
            }
        }
        fail!("no {name} kernel among {}", modules.display());
    }
}

/// Builds the first stage in `dir`, which does not exist yet; `debs` keeps the downloads.
///
/// # Errors
/// When a package cannot be had or a tool of the host fails.
pub fn build(dir: &Path, debs: &Path) -> Result<Base> {
    let fetch = || progress::step("lab: downloading Debian packages", || download(debs));
    // Lists that are missing or old do not know a package yet, or name files that no longer exist.
    let packages = fetch().or_else(|_| apt::update().and_then(|()| fetch()))?;
    let base = Base { dir: dir.to_path_buf() };
    progress::step("lab: unpacking packages", || unpack(&base, &packages))?;
    progress::step("lab: unpacking kernels", || kernels(&base))?;
    progress::step("lab: dom0's disk", || disk(&base))?;
    Ok(base)
}

fn download(debs: &Path) -> Result<Vec<PathBuf>> {
    // An earlier release of a package must not be unpacked beside a newer one.
    let archives = debs.join("archives");
    fs::create_dir_all(archives.join("partial"))
        .doing(|| format!("cannot create {}", debs.display()))?;
    let status = debs.join("status");
    fs::write(&status, "").doing(|| format!("cannot write {}", status.display()))?;
    let options = [
        "Debug::NoLocking=1".to_owned(),
        format!("Dir::State::status={}", status.display()),
        format!("Dir::Cache::archives={}", archives.display()),
        "Dir::Cache::pkgcache=".into(),
        "Dir::Cache::srcpkgcache=".into(),
        "APT::Install-Recommends=false".into(),
        "APT::Sandbox::User=".into(),
        "Acquire::Retries=3".into(),
    ];
    let mut apt = command::new("apt-get", &["-q", "-y"]);
    for option in &options {
        apt.args(["-o", option]);
    }
    apt.args(["--print-uris", "install"]).args(PROGRAMS).args(KERNELS);
    apt.env("LC_ALL", "C");
    // With nothing to fetch the list is empty, hence from an empty directory first.
    let wanted = command::output(apt.args(["-o", "Dir::Cache::archives=/nonexistent/"]))?;
    let names: BTreeSet<String> =
        wanted.lines().filter_map(file_of_uri).map(str::to_owned).collect();
    if names.is_empty() {
        fail!("apt-get names no package to download:\n{}", command::last_lines(&wanted, 10));
    }
    if names.iter().any(|name| !archives.join(name).exists()) {
        let mut apt = command::new("apt-get", &["-q", "-y"]);
        for option in &options {
            apt.args(["-o", option]);
        }
        apt.args(["--download-only", "install"]).args(PROGRAMS).args(KERNELS);
        command::output(&mut apt)?;
    }
    for entry in read_dir(&archives)? {
        let name = entry.to_string_lossy().into_owned();
        if name.ends_with(".deb") && !names.contains(&name) {
            let _ = fs::remove_file(archives.join(name));
        }
    }
    Ok(names.iter().map(|name| archives.join(name)).collect())
}

/// `'http://host/path.deb' name_version_arch.deb SIZE HASH` -> the second word.
fn file_of_uri(line: &str) -> Option<&str> {
    let mut words = line.split(' ');
    words.next().filter(|uri| uri.starts_with('\''))?;
    words.next().filter(|name| name.ends_with(".deb"))
}

fn unpack(base: &Base, packages: &[PathBuf]) -> Result<()> {
    let root = base.root();
    let mkdir = |path: &Path| {
        fs::create_dir_all(path).doing(|| format!("cannot create {}", path.display()))
    };
    for name in ["bin", "sbin", "lib", "lib64"] {
        mkdir(&root.join("usr").join(name))?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name))
            .doing(|| format!("cannot link {name}"))?;
    }
    mkdir(&base.dir.join("kernels"))?;
    mkdir(&base.dir.join("hypervisor"))?;
    for package in packages {
        let name = package.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let into = if name.starts_with("linux-image-") {
            base.dir.join("kernels")
        } else if name.starts_with("xen-hypervisor-") {
            base.dir.join("hypervisor")
        } else if UNPACKED_NOT.iter().any(|skip| name.starts_with(skip)) {
            continue;
        } else {
            root.clone()
        };
        // The tar file, not `dpkg-deb -x`, for links to directories to stay what they are (merged /usr).
        let line = format!(
            "dpkg-deb --fsys-tarfile '{}' | tar -x --keep-directory-symlink --no-same-owner -C '{}' \
             --exclude='./usr/share/doc*' --exclude='./usr/share/man*' --exclude='./usr/share/locale*' \
             --exclude='./usr/share/info*' --exclude='./usr/share/zoneinfo*' --exclude='./usr/lib/debug*'",
            package.display(),
            into.display()
        );
        command::output(&mut command::new("bash", &["-o", "pipefail", "-c", &line]))?;
    }
    Ok(())
}

fn kernels(base: &Base) -> Result<()> {
    let gz = base.dir.join(format!("hypervisor/boot/xen-{XEN_VERSION}-amd64.gz"));
    let xen = command::output_bytes(command::new("gzip", &["-dc"]).arg(&gz))?;
    fs::write(base.xen(), xen).doing(|| "cannot write the hypervisor")?;
    let busybox = base.root().join("usr/bin/busybox");
    let boot = base.dir.join("kernels/boot");
    for (kernel, guest) in [
        (base.dom0_kernel()?, false),
        (base.guest_kernel(GuestKernel::Stable)?, true),
        (base.guest_kernel(GuestKernel::Newer)?, true),
    ] {
        kernel::extract(&boot.join(format!("vmlinuz-{}", kernel.version)), &kernel.vmlinux, guest)?;
        let mut depmod = command::new(&busybox, &["depmod", "-b"]);
        command::output(depmod.arg(&kernel.tree).arg(&kernel.version))?;
    }
    Ok(())
}

/// Modules of dom0 that are loaded from the disk, after the initial RAM disk.
const DOM0_MODULES: &[&str] = &[
    "virtio_net",
    "9p",
    "9pnet_virtio",
    "xen_evtchn",
    "xen_gntdev",
    "xen_gntalloc",
    "xen_privcmd",
    "xenfs",
    "xen_netback",
    "dummy",
    "tun",
    "nf_tables",
    "nft_ct",
    "nft_masq",
    "nft_chain_nat",
    "crc32c_generic",
];

fn disk(base: &Base) -> Result<()> {
    let root = base.root();
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .doing(|| format!("cannot create {}", path.display()))?;
        fs::write(&path, text).doing(|| format!("cannot write {}", path.display()))
    };
    let link = |target: &str, path: &str| {
        let path = root.join(path);
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(target, &path)
            .doing(|| format!("cannot link {}", path.display()))
    };
    for dir in [
        "opt/bb",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "host",
        "images",
        "root",
        "lab",
        "var/lib/xen",
        "var/log/xen/console",
        "var/lib/xenstored",
        "etc/dropbear",
    ] {
        let path = root.join(dir);
        fs::create_dir_all(&path).doing(|| format!("cannot create {}", path.display()))?;
    }
    let modules = super::modules::closure(&base.dom0_kernel()?, DOM0_MODULES)?;
    for (path, data) in modules {
        let path = root.join(path);
        path.parent()
            .map_or(Ok(()), fs::create_dir_all)
            .doing(|| format!("cannot create {}", path.display()))?;
        fs::write(&path, data).doing(|| format!("cannot write {}", path.display()))?;
    }
    let applets = command::output(&mut command::new(root.join("usr/bin/busybox"), &["--list"]))?;
    for applet in applets.lines() {
        link("/bin/busybox", &format!("opt/bb/{applet}"))?;
    }
    // kmod's programs want binary indexes that nobody made here.
    for program in ["modprobe", "insmod", "rmmod", "lsmod"] {
        link("/bin/busybox", &format!("usr/sbin/{program}"))?;
    }
    let _ = fs::remove_dir_all(root.join("var/run"));
    link("/run", "var/run")?;
    link("gawk", "usr/bin/awk")?;
    link("dash", "usr/bin/sh")?;
    write(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n",
    )?;
    write("etc/shadow", "root:*:19000:0:99999:7:::\n")?;
    write("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    write("etc/hosts", "127.0.0.1 localhost\n")?;
    write("etc/shells", "/bin/sh\n/bin/bash\n")?;
    make_ext4(&root, &base.disk())
}

fn make_ext4(root: &Path, disk: &Path) -> Result<()> {
    let used = command::output(command::new("du", &["-sk"]).arg(root))?;
    let kib: u64 =
        used.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(512 * 1024);
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let mut mke2fs = command::new("mke2fs", &["-q", "-t", "ext4"]);
    mke2fs.env("PATH", path);
    mke2fs.args([
        "-O",
        "^has_journal,^metadata_csum,^64bit",
        "-E",
        "root_owner=0:0,lazy_itable_init=1",
        "-m",
        "0",
    ]);
    mke2fs.arg("-d").arg(root).arg(disk).arg(format!("{}k", kib * 5 / 4 + 64 * 1024));
    command::output(&mut mke2fs).map(drop)
}

pub(super) fn read_dir(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(dir).doing(|| format!("cannot list {}", dir.display()))?;
    let mut names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_name_is_the_second_word_of_a_uri_line() {
        let line = "'http://mirror.example/x/y_1%3a2_amd64.deb' y_1%3a2_amd64.deb 123 MD5Sum:0";
        assert_eq!(file_of_uri(line), Some("y_1%3a2_amd64.deb"));
        assert_eq!(file_of_uri("Reading package lists..."), None);
    }
}
