//! Kernel modules with all they depend on, and the index files that busybox' `modprobe` reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::base::Kernel;
use crate::error::{Attempt, Result};
use crate::fail;

/// The files of `modules` and their dependencies: path from the root of a file system, and content.
/// Modules are named as `modprobe` takes them; `-` and `_` are the same.
///
/// # Errors
/// When a name is unknown to this kernel and not built in.
pub fn closure(kernel: &Kernel, modules: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
    let dir = kernel.tree.join("lib/modules").join(&kernel.version);
    let dep = read(&dir.join("modules.dep"))?;
    let builtin = read(&dir.join("modules.builtin"))?;
    let lines: BTreeMap<String, &str> =
        dep.lines().filter_map(|line| Some((name(line.split_once(':')?.0), line))).collect();
    let built_in: BTreeSet<String> = builtin.lines().map(name).collect();

    let mut wanted: Vec<String> = modules.iter().map(|module| name(module)).collect();
    let mut kept: BTreeMap<String, &str> = BTreeMap::new();
    while let Some(module) = wanted.pop() {
        if kept.contains_key(&module) || built_in.contains(&module) {
            continue;
        }
        let Some((module, line)) = lines.get_key_value(&module) else {
            fail!("kernel {} has no module {module}", kernel.version);
        };
        kept.insert(module.clone(), line);
        wanted.extend(
            line.split_once(':').map_or("", |(_, needs)| needs).split_whitespace().map(name),
        );
    }

    let target = format!("lib/modules/{}", kernel.version);
    let mut files = Vec::new();
    let mut index = String::new();
    for line in kept.values() {
        let path = line.split_once(':').map_or(*line, |(path, _)| path);
        let data = fs::read(dir.join(path)).doing(|| format!("cannot read module {path}"))?;
        files.push((format!("{target}/{path}"), data));
        index.push_str(line);
        index.push('\n');
    }
    let aliases: String = read(&dir.join("modules.alias"))?
        .lines()
        .filter(|line| {
            line.split_whitespace().nth(2).is_some_and(|module| kept.contains_key(module))
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    files.push((format!("{target}/modules.dep"), index.into_bytes()));
    files.push((format!("{target}/modules.alias"), aliases.into_bytes()));
    files.push((format!("{target}/modules.symbols"), Vec::new()));
    Ok(files)
}

/// `kernel/net/xen-netback.ko` -> `xen_netback`.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let file = file.split(".ko").next().unwrap_or(file);
    file.replace('-', "_")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).doing(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_are_normalised() {
        assert_eq!(name("kernel/drivers/net/xen-netback/xen-netback.ko"), "xen_netback");
        assert_eq!(name("kernel/x/a_b.ko.xz"), "a_b");
        assert_eq!(name("xen-evtchn"), "xen_evtchn");
    }
}
