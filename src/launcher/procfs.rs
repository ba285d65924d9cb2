//! The trusted procfs (rule R3): an instance of our own, detached, that no mount of anybody can shadow.
//!
//! It belongs to the monitor's PID namespace. A child in a nested PID namespace has a number there too, so that the one
//! instance serves every child; `sys/` shows the namespaces of whoever opens it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, fstat, fstatfs, openat2, readlinkat};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::failure::{At, Failure};
use crate::plan::Sysctl;

const PROC_ROOT_INO: u64 = 1;

/// A procfs that only we can reach.
#[derive(Debug)]
pub(crate) struct Procfs {
    root: OwnedFd,
}

impl AsFd for Procfs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Procfs {
    /// Mounts one, attached nowhere.
    pub fn new() -> Result<Self, Failure> {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC).at("procfs", "fsopen", "proc")?;
        fsconfig_create(context.as_fd()).at("procfs", "fsconfig", "proc")?;
        let root = fsmount(
            context.as_fd(),
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV
                | MountAttrFlags::MOUNT_ATTR_NOEXEC,
        )
        .at("procfs", "fsmount", "proc")?;
        let magic = fstatfs(&root).at("procfs", "fstatfs", "proc")?.f_type;
        let ino = fstat(&root).at("procfs", "fstat", "proc")?.st_ino;
        if magic != PROC_SUPER_MAGIC || ino != PROC_ROOT_INO {
            return Err(Failure::refused("procfs", "proc", "not the root of a procfs"));
        }
        Ok(Self { root })
    }

    fn open(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat2(
            &self.root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
        )
    }

    /// Path of a file of the calling process. `self` is a symbolic link, which nothing here follows.
    fn own(&self, file: &str) -> Result<String, Errno> {
        Ok(format!("{}/{file}", self.number()?))
    }

    /// This process's number in the monitor's PID namespace.
    pub fn number(&self) -> Result<String, Errno> {
        Ok(readlinkat(&self.root, "self", Vec::new())?.to_string_lossy().into_owned())
    }

    /// What a file of the calling process says.
    pub fn read_own(&self, file: &str) -> Result<Vec<u8>, Errno> {
        self.read(&self.own(file)?)
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let file = self.open(path, OFlags::RDONLY)?;
        let mut bytes = vec![0u8; 4096];
        let length = rustix::io::read(&file, &mut bytes[..])?;
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Writes a file of the calling process in one write(2).
    pub fn write_own(&self, file: &str, value: &[u8]) -> Result<(), Errno> {
        self.write(&self.own(file)?, value)
    }

    fn write(&self, path: &str, value: &[u8]) -> Result<(), Errno> {
        let file = self.open(path, OFlags::WRONLY)?;
        if rustix::io::write(&file, value)? == value.len() { Ok(()) } else { Err(Errno::IO) }
    }

    /// Sets the calling process's `oom_score_adj`, unless it already has that value: lowering it takes CAP_SYS_RESOURCE.
    pub fn set_oom_score_adj(&self, value: i32) -> Result<(), Failure> {
        let path = "oom_score_adj";
        let wanted = value.to_string();
        let is = self.read_own(path).at("oom_score_adj", "read", path)?;
        if is.trim_ascii() == wanted.as_bytes() {
            return Ok(());
        }
        self.write_own(path, wanted.as_bytes()).at("oom_score_adj", "write", &wanted)
    }

    /// Writes sysctls of namespaces in `owned` (`CLONE_NEW*`); a key of any other is refused before anything is written
    /// (rule R17).
    pub fn set_sysctls(&self, sysctls: &[Sysctl], owned: u64) -> Result<(), Failure> {
        for sysctl in sysctls {
            if owned & sysctl_namespace(&sysctl.key) == 0 {
                let why = "not a sysctl of a namespace of its own";
                return Err(Failure::refused("sysctl", &sysctl.key, why));
            }
        }
        for sysctl in sysctls {
            // The files of these two stay the host's root's, whoever owns the namespace.
            let value = sysctl.value.as_bytes();
            match sysctl.key.as_str() {
                "kernel.hostname" => rustix::system::sethostname(value),
                "kernel.domainname" => rustix::system::setdomainname(value),
                key => self.write(&sysctl_path(key), value),
            }
            .at("sysctl", "write", &sysctl.key)?;
        }
        Ok(())
    }
}

/// The namespace type that a key belongs to, 0 for the host's.
fn sysctl_namespace(key: &str) -> u64 {
    use pinnace_sys::clone::{NEWIPC, NEWNET, NEWUTS};
    let path = sysctl_path(key);
    if path.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return 0;
    }
    let Some(key) = path.strip_prefix("sys/") else { return 0 };
    match key {
        "kernel/domainname" | "kernel/hostname" => NEWUTS,
        "kernel/sem"
        | "kernel/shmall"
        | "kernel/shmmax"
        | "kernel/shmmni"
        | "kernel/shm_rmid_forced"
        | "kernel/msgmax"
        | "kernel/msgmnb"
        | "kernel/msgmni"
        | "kernel/auto_msgmni" => NEWIPC,
        key if key.starts_with("fs/mqueue/") => NEWIPC,
        key if key.starts_with("net/") => NEWNET,
        _ => 0,
    }
}

/// As sysctl(8): whichever of `.` and `/` comes first separates; with `.` first, the two change roles, so that
/// `net.ipv4.conf.eth0/1.forwarding` is about the interface `eth0.1`.
fn sysctl_path(key: &str) -> String {
    let swap = key.find(['.', '/']).is_some_and(|at| key.as_bytes().get(at) == Some(&b'.'));
    let path: String = key
        .chars()
        .map(|sign| match sign {
            '.' if swap => '/',
            '/' if swap => '.',
            sign => sign,
        })
        .collect();
    format!("sys/{path}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinnace_sys::clone::{NEWIPC, NEWNET, NEWUTS};

    #[test]
    fn keys_name_their_namespace() {
        assert_eq!(sysctl_namespace("net.ipv4.ip_forward"), NEWNET);
        assert_eq!(sysctl_namespace("net/ipv4/conf/eth0.1/forwarding"), NEWNET);
        assert_eq!(sysctl_path("net.ipv4.conf.eth0/1.forwarding"), "sys/net/ipv4/conf/eth0.1/forwarding");
        assert_eq!(sysctl_namespace("kernel.shmmax"), NEWIPC);
        assert_eq!(sysctl_namespace("fs.mqueue.msg_max"), NEWIPC);
        assert_eq!(sysctl_namespace("kernel.hostname"), NEWUTS);
        for host in ["kernel.core_pattern", "vm.swappiness", "kernel.shmmax_", "fs.file-max", "", ".", "net"]
        {
            assert_eq!(sysctl_namespace(host), 0, "{host}");
        }
        for escape in ["net/../kernel/core_pattern", "net.//.kernel.core_pattern", "net..x", "net.ipv4."] {
            assert_eq!(sysctl_namespace(escape), 0, "{escape}");
        }
    }

    #[test]
    fn reads_and_writes_our_own_files_only() {
        let procfs = Procfs::new().unwrap();
        let status = procfs.read_own("status").unwrap();
        let pid = format!("Pid:\t{}\n", std::process::id());
        assert!(String::from_utf8(status).unwrap().contains(&pid));
        assert_eq!(procfs.read("self/status").err(), Some(Errno::LOOP));
        assert_eq!(procfs.read("../etc/passwd").err(), Some(Errno::XDEV));
        let foreign = Sysctl { key: "kernel.core_pattern".to_owned(), value: "x".to_owned() };
        let failure = procfs.set_sysctls(&[foreign], NEWNET | NEWIPC | NEWUTS).unwrap_err();
        assert_eq!(failure.stage, "sysctl");
    }
}
