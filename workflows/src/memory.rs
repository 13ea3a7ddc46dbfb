//! How much memory this process may still take: of the machine, and of the control groups that containers and services
//! run in.

use std::fs;
use std::path::Path;

use crate::value::MemoryLimit;

/// Share of the memory that is left which [`MemoryLimit::Auto`] takes: others need memory too.
const SHARE: f64 = 0.9;

impl MemoryLimit {
    /// The limit in bytes; `None` for [`MemoryLimit::Auto`] where the system does not tell what is left.
    pub fn bytes(self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Auto => available().map(|bytes| (bytes as f64 * SHARE) as u64),
        }
    }
}

/// Memory that can still be taken without swapping and without being killed for it, in bytes: the smallest of what the
/// machine has available and what each control group around this process leaves. Caches of files count as free, because
/// the kernel drops them first. `None` where the system does not tell.
pub fn available() -> Option<u64> {
    available_below(Path::new("/"))
}

/// The same with `/proc` and `/sys` under another `root`.
fn available_below(root: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok();
    let machine = meminfo.and_then(|text| entry(&text, "MemAvailable:")).map(|kibibytes| kibibytes * 1024);
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let groups = groups.lines().filter_map(|line| left_by_groups(root, line));
    groups.chain(machine).min()
}

/// Names of the files of a control group that tell about memory.
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`, for the group and all below it: pages of files that nobody has touched lately.
    idle_cache: &'static str,
}

const VERSION_1: Files =
    Files { limit: "memory.limit_in_bytes", usage: "memory.usage_in_bytes", idle_cache: "total_inactive_file " };
const VERSION_2: Files = Files { limit: "memory.max", usage: "memory.current", idle_cache: "inactive_file " };

/// What the group in a line of `/proc/self/cgroup` (`man 7 cgroups`) leaves, and the groups that it is part of.
fn left_by_groups(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (mount, files) = match controllers {
        "" => ("sys/fs/cgroup", VERSION_2),
        _ if controllers.split(',').any(|controller| controller == "memory") => ("sys/fs/cgroup/memory", VERSION_1),
        _ => return None,
    };
    let mount = root.join(mount);
    let group = mount.join(path.trim_start_matches('/'));
    // In a container the path may be the one outside, and then only the mount itself is there.
    let around = group.ancestors().take_while(|folder| folder.starts_with(&mount));
    around.filter_map(|folder| left_by_group(folder, &files)).min()
}

/// `None` for a group without a limit.
fn left_by_group(folder: &Path, files: &Files) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(files.limit)?, number(files.usage)?);
    let cache = fs::read_to_string(folder.join("memory.stat")).ok().and_then(|text| entry(&text, files.idle_cache));
    Some(limit.saturating_sub(usage.saturating_sub(cache.unwrap_or(0))))
}

/// The number after `key` at the beginning of a line.
fn entry(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const MIB: u64 = 1 << 20;
    const MACHINE: &str = "MemTotal:  16384 kB\nMemFree:  1024 kB\nMemAvailable:    8192 kB\n";

    /// A root with these files.
    #[expect(clippy::disallowed_methods, reason = "files of a test")]
    fn root(files: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn without_limits_it_is_what_the_machine_has() {
        let unlimited = [
            ("proc/meminfo", MACHINE),
            ("proc/self/cgroup", "0::/user.slice\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.current", "4096\n"),
        ];
        assert_eq!(available_below(root(&unlimited).path()), Some(8 * MIB));
        assert_eq!(available_below(root(&unlimited[..1]).path()), Some(8 * MIB));
    }

    #[test]
    fn the_tightest_group_around_the_process_counts_and_its_idle_cache_is_free() {
        let limited = [
            ("proc/meminfo", MACHINE),
            ("proc/self/cgroup", "0::/jobs/one\n"),
            ("sys/fs/cgroup/jobs/memory.max", "6291456\n"),
            ("sys/fs/cgroup/jobs/memory.current", "4194304\n"),
            ("sys/fs/cgroup/jobs/memory.stat", "anon 3145728\ninactive_file 1048576\n"),
            ("sys/fs/cgroup/jobs/one/memory.max", "5242880\n"),
            ("sys/fs/cgroup/jobs/one/memory.current", "1048576\n"),
        ];
        assert_eq!(available_below(root(&limited).path()), Some(3 * MIB));
    }

    #[test]
    fn the_first_version_is_read_at_its_mount_when_the_path_is_that_of_the_world_outside() {
        let limited = [
            ("proc/meminfo", MACHINE),
            ("proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/docker/0123\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2097152\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1048576\n"),
        ];
        assert_eq!(available_below(root(&limited).path()), Some(MIB));
    }

    #[test]
    fn a_group_over_its_limit_leaves_nothing_and_an_unknown_system_tells_nothing() {
        let over = [
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "1048576\n"),
            ("sys/fs/cgroup/memory.current", "1052672\n"),
        ];
        assert_eq!(available_below(root(&over).path()), Some(0));
        assert_eq!(available_below(root(&[]).path()), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_some() {
        assert!(available().unwrap() > 0);
    }
}
