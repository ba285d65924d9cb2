//! System call tables of the architectures that a machine can run.

use oci_spec::runtime::Arch;

/// x32 calls have x86_64's audit architecture and this bit in their number.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

/// An architecture that filters are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Architecture {
    X86_64,
    X32,
    X86,
    Aarch64,
    Arm,
}

/// Where x32 differs from "x86_64 plus a bit": calls whose arguments need another layout. The x86_64 number of
/// these calls does not exist with the bit.
const X32: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];
const X32_OWN: std::ops::RangeInclusive<u32> = 512..=547;

/// Calls of 32-bit ARM above its table (`__ARM_NR_*`).
const ARM_PRIVATE: [(&str, u32); 6] = [
    ("breakpoint", 0x000f_0001),
    ("cacheflush", 0x000f_0002),
    ("usr26", 0x000f_0003),
    ("usr32", 0x000f_0004),
    ("set_tls", 0x000f_0005),
    ("get_tls", 0x000f_0006),
];

/// A call that is also reachable through a multiplexer: its name, and the multiplexer's first argument.
pub(crate) struct Multiplexed {
    pub(crate) by: &'static str,
    pub(crate) call: u64,
    /// Bits of the argument that the kernel looks at.
    pub(crate) mask: u64,
}

/// First argument of socketcall(2), include/uapi/linux/net.h.
const SOCKETCALL: [(&str, u64); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// First argument of ipc(2), include/uapi/linux/ipc.h; the upper 16 bits are a version.
const IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

impl Architecture {
    /// Of this program.
    pub(crate) fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// `None`: another machine's, which cannot run here.
    pub(crate) fn from_spec(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Self::native(),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    /// AUDIT_ARCH_*, as in `seccomp_data.arch`.
    pub(crate) fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// The number of a call, with x32's bit.
    pub(crate) fn number(self, name: &str) -> Option<u32> {
        let id = match self {
            Self::X86_64 => name.parse::<syscalls::x86_64::Sysno>().ok()?.id(),
            Self::X86 => name.parse::<syscalls::x86::Sysno>().ok()?.id(),
            Self::X32 => {
                let own = X32.iter().find(|(own, _)| *own == name).map(|&(_, number)| number);
                let number = own.or_else(|| Self::X86_64.number(name))?;
                return Some(number | X32_BIT);
            }
            Self::Aarch64 => {
                // The kernel's table calls it fstatat; profiles use the name of its entry point.
                let name = if name == "newfstatat" { "fstatat" } else { name };
                name.parse::<syscalls::aarch64::Sysno>().ok()?.id()
            }
            Self::Arm => {
                if let Some(&(_, number)) = ARM_PRIVATE.iter().find(|(private, _)| *private == name) {
                    return Some(number);
                }
                let name = if name == "sync_file_range2" { "arm_sync_file_range" } else { name };
                name.parse::<syscalls::arm::Sysno>().ok()?.id()
            }
        };
        u32::try_from(id).ok()
    }

    /// Number ranges in which future kernels will add calls, given the newest number that is known.
    pub(crate) fn future(self, newest: u32) -> Vec<(u32, u32)> {
        match self {
            Self::X86_64 => vec![(newest + 1, X32_BIT - 1)],
            Self::X32 => {
                vec![(newest + 1, X32_BIT + X32_OWN.start() - 1), (X32_BIT + X32_OWN.end() + 1, u32::MAX - 1)]
            }
            Self::X86 | Self::Aarch64 => vec![(newest + 1, u32::MAX - 1)],
            Self::Arm => vec![(newest + 1, 0x000e_ffff)],
        }
    }

    /// Whether a number belongs to the common table, which grows, and not to a private one.
    pub(crate) fn is_common(self, number: u32) -> bool {
        match self {
            Self::X32 => number & !X32_BIT < *X32_OWN.start(),
            Self::Arm => number < 0x000f_0000,
            Self::X86_64 | Self::X86 | Self::Aarch64 => true,
        }
    }

    /// The other way into a call.
    pub(crate) fn multiplexed(self, name: &str) -> Option<Multiplexed> {
        if self != Self::X86 {
            return None;
        }
        let find = |table: &[(&str, u64)]| table.iter().find(|(own, _)| *own == name).map(|&(_, call)| call);
        if let Some(call) = find(&SOCKETCALL) {
            return Some(Multiplexed { by: "socketcall", call, mask: 0xffff_ffff });
        }
        find(&IPC).map(|call| Multiplexed { by: "ipc", call, mask: 0xffff })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_each_architecture() {
        use Architecture::*;
        for (arch, name, number) in [
            (X86_64, "read", Some(0)),
            (X86_64, "newfstatat", Some(262)),
            (X86, "socketcall", Some(102)),
            (X86, "socket", Some(359)),
            (X32, "read", Some(X32_BIT)),
            (X32, "execve", Some(X32_BIT | 520)),
            (Aarch64, "newfstatat", Some(79)),
            (Aarch64, "open", None),
            (Arm, "set_tls", Some(0xf_0005)),
            (X86_64, "no_such_call", None),
        ] {
            assert_eq!(arch.number(name), number, "{arch:?} {name}");
        }
    }
}
