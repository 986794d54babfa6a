//! What a process takes: memory, CPU time, and the memory of the BPF maps it holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Where the kernel says it.
fn dir(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// Bytes of memory that are resident: all of them, and those that belong to no file and are shared with nobody.
pub(super) fn memory(pid: u32) -> Result<(u64, u64)> {
    let text = fs::read_to_string(dir(pid).join("status")).with_context(|| format!("process {pid}"))?;
    let field = |name| field(&text, name).with_context(|| format!("no {name} of process {pid}"));
    Ok((field("VmRSS")? * 1024, field("RssAnon")? * 1024))
}

/// CPU time of all its threads that live.
pub(super) fn cpu(pid: u32) -> Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(dir(pid).join("task")).with_context(|| format!("process {pid}"))?.flatten() {
        // A thread may have ended since it was listed.
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        total += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// Bytes of the BPF maps that it has open, each map once.
pub(super) fn maps(pid: u32) -> Result<u64> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(dir(pid).join("fdinfo")).with_context(|| format!("process {pid}"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if let (Some(id), Some(bytes)) = (field(&text, "map_id"), field(&text, "memlock")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps.values().sum())
}

/// The number at the start of the line `name:`.
fn field(text: &str, name: &str) -> Option<u64> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let value = lines.into_iter().find_map(|(key, value)| (key == name).then_some(value))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_takes_time() {
        let pid = std::process::id();
        let (all, own) = memory(pid).unwrap();
        assert!(all > own && own > 0);
        assert!(cpu(pid).unwrap() > Duration::ZERO);
        assert_eq!(maps(pid).unwrap(), 0);
    }

    #[test]
    fn a_field_is_the_number_behind_its_name() {
        let text = "map_type:\t1\nmap_id:\t17\nmemlock:\t4096\nVmRSS:\t  12 kB\n";
        assert_eq!(
            (field(text, "map_id"), field(text, "memlock"), field(text, "VmRSS")),
            (Some(17), Some(4096), Some(12))
        );
        assert_eq!(field(text, "map"), None);
    }
}
