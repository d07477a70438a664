//! Installing what is missing on the host, after saying what: Debian packages through apt.

use std::collections::BTreeMap;
use std::fs;

use crate::error::Result;
use crate::{command, fail, progress};

/// What the lab needs on the host.
pub const LAB: &[&str] = &[
    "qemu-system-x86",
    "openssh-client",
    "e2fsprogs",
    "binutils",
    "xz-utils",
    "lz4",
    "zstd",
    "gcc",
    "libxen-dev",
    "python3",
];

/// What the tests of dom0's command need.
pub const PYTHON: &[&str] = &["python3"];

/// What the smoke boot without Xen needs.
pub const QEMU: &[&str] = &["qemu-system-x86"];

/// Packages of QEMU that must be of one version. Newer ones than the distribution's come from backports; with
/// QEMU 10 every PVH guest of the emulated Xen dies at once, 7.2 works.
const QEMU_FAMILY: &[&str] = &[
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "qemu-utils",
    "qemu-block-extra",
];
const QEMU_WANTED: &str = "1:7.2";

/// Makes sure that `packages` are installed.
///
/// # Errors
/// When the system is not Debian 12, or apt cannot install them; the message says what to do.
pub fn ensure(packages: &[&str]) -> Result<()> {
    let asked: Vec<&str> = packages.iter().chain(QEMU_FAMILY).copied().collect();
    let installed = installed(&asked)?;
    let mut missing: Vec<String> = packages
        .iter()
        .filter(|name| !installed.contains_key(**name))
        .map(|name| (*name).to_owned())
        .collect();
    let newer: Vec<&str> = QEMU_FAMILY
        .iter()
        .filter(|name| {
            installed.get(**name).is_some_and(|version| !version.starts_with(QEMU_WANTED))
        })
        .copied()
        .collect();
    let wants_qemu = packages.contains(&"qemu-system-x86");
    if missing.is_empty() && (newer.is_empty() || !wants_qemu) {
        return Ok(());
    }
    check_release()?;
    let mut options = vec!["-y", "-q", "--no-install-recommends"];
    if wants_qemu && !newer.is_empty() {
        let version = qemu_version()?;
        progress::say(format!(
            "QEMU: {} replaced by version {version}, newer ones cannot run the lab",
            newer.join(", ")
        ));
        options.push("--allow-downgrades");
        missing.retain(|name| name != "qemu-system-x86");
        missing.push(format!("qemu-system-x86={version}"));
        missing.extend(
            newer
                .iter()
                .filter(|name| **name != "qemu-system-x86")
                .map(|name| format!("{name}={version}")),
        );
    }
    progress::say(format!("installing Debian packages: {}", missing.join(" ")));
    install(&options, &missing)
}

fn install(options: &[&str], packages: &[String]) -> Result<()> {
    let words: Vec<&str> = packages.iter().map(String::as_str).collect();
    let try_install = || {
        let args = [&["install"], options, words.as_slice()].concat();
        progress::step("apt-get install", || apt_get(&args))
    };
    // Package lists that are missing or old name files that no longer exist. Without a list apt takes `g++` for a
    // pattern, finds nothing to do and reports success.
    if try_install().is_ok() && absent(packages)?.is_empty() {
        return Ok(());
    }
    update()?;
    try_install()?;
    match absent(packages)?.as_slice() {
        [] => Ok(()),
        absent => fail!("apt-get install succeeded without installing {}", absent.join(" ")),
    }
}

/// Those of `packages` (`name` or `name=version`) that are not installed.
fn absent(packages: &[String]) -> Result<Vec<&str>> {
    let names: Vec<&str> = packages.iter().filter_map(|one| one.split('=').next()).collect();
    let installed = installed(&names)?;
    Ok(names.into_iter().filter(|name| !installed.contains_key(*name)).collect())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let root = command::output(&mut command::new("id", &["-u"]))?.trim() == "0";
    let mut line = if root {
        command::new("apt-get", args)
    } else if command::exists("sudo") {
        // sudo asks on the terminal itself.
        command::new(
            "sudo",
            &[&["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"], args].concat(),
        )
    } else {
        fail!("not root and no sudo: as root, run: apt-get {}", args.join(" "));
    };
    line.env("DEBIAN_FRONTEND", "noninteractive");
    command::output(&mut line).map(drop)
}

/// Fetches the package lists anew.
///
/// # Errors
/// When apt cannot reach an archive.
pub fn update() -> Result<()> {
    progress::step("apt-get update", || apt_get(&["update", "-q"]))
}

/// Name and version of those of `packages` that are installed.
fn installed(packages: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut query =
        command::new("dpkg-query", &["-W", "-f=${Package} ${db:Status-Status} ${Version}\n"]);
    // It fails when it does not know one of the names, and lists the others.
    let out = match query.args(packages).output() {
        Ok(out) => String::from_utf8_lossy(&out.stdout).into_owned(),
        Err(error) => fail!("cannot run dpkg-query ({error}): the lab needs Debian 12"),
    };
    Ok(parse_installed(&out))
}

fn parse_installed(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        if let [name, "installed", version] = line.split_whitespace().collect::<Vec<_>>().as_slice()
        {
            found.insert((*name).to_owned(), (*version).to_owned());
        }
    }
    found
}

fn check_release() -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if release.lines().any(|line| line == "VERSION_CODENAME=bookworm") {
        return Ok(());
    }
    fail!(
        "packages are missing, and they are known for Debian 12 (bookworm) only; this system is another"
    )
}

fn qemu_version() -> Result<String> {
    let find = || -> Result<Option<String>> {
        let out = command::output(&mut command::new("apt-cache", &["madison", "qemu-system-x86"]))?;
        let versions = out.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
        Ok(versions.filter(|version| version.starts_with(QEMU_WANTED)).map(str::to_owned).next())
    };
    if let Some(version) = find()? {
        return Ok(version);
    }
    update()?;
    match find()? {
        Some(version) => Ok(version),
        None => fail!(
            "apt offers no QEMU {QEMU_WANTED}; is Debian 12's main archive among its sources?"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removed_package_is_not_installed() {
        let found = parse_installed("a installed 1:7.2+x\nb config-files 2\nc not-installed\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found["a"], "1:7.2+x");
    }
}
