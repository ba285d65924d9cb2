//! The RuntimeDefault profile: what a container may call, given its capabilities and the kernel.
//!
//! An allow list in the tradition of Docker and containerd; everything else fails with EPERM. What stays out, and
//! why:
//!
//! | out | because |
//! |---|---|
//! | keyctl, add_key, request_key | keyrings are not namespaced |
//! | bpf, perf_event_open, userfaultfd, io_uring_* | large kernel surface, a steady source of exploits |
//! | mount, fsopen, open_tree, setns, unshare, namespace flags of clone | need CAP_SYS_ADMIN, at least in a user namespace of one's own: CVE-2022-0185, CVE-2023-0386 |
//! | clone3 | its flags lie behind a pointer; ENOSYS makes C libraries fall back to clone |
//! | kexec_load, init_module, reboot, swapon, settimeofday, ioperm … | change the host |
//! | socket(AF_ALG), socket(AF_VSOCK) | CVE-2026-31431; the hypervisor's side |
//! | personality, other than the harmless values | READ_IMPLIES_EXEC and the like weaken exploit defences |
//!
//! On 32-bit x86 socketcall(2) hides the address family behind a pointer, so creating a socket that way fails,
//! and everything else that it multiplexes is allowed. Programs that were built for kernels before 4.3 and
//! know no other way need a Localhost profile.

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};

use crate::kernel::KernelVersion;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; linux/sched.h.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
/// Arguments that the kernel takes as `int`: whatever a program leaves in the upper half does not count.
const LOW_HALF: u64 = 0xffff_ffff;

/// Allowed to everyone.
const ALLOWED: &[&str] = &[
    // Files: open, read, write.
    "open openat openat2 creat close close_range read readv pread64 preadv preadv2 write writev pwrite64 \
     pwritev pwritev2 lseek _llseek sendfile sendfile64 splice tee vmsplice copy_file_range readahead \
     fadvise64 fadvise64_64 cachestat fallocate truncate truncate64 ftruncate ftruncate64 sync syncfs \
     fsync fdatasync sync_file_range dup dup2 dup3 fcntl fcntl64 flock ioctl pipe pipe2",
    // Files: names, metadata, extended attributes.
    "stat stat64 lstat lstat64 fstat fstat64 newfstatat fstatat64 statx statfs statfs64 fstatfs fstatfs64 \
     statmount listmount access faccessat faccessat2 chmod fchmod fchmodat fchmodat2 chown chown32 fchown \
     fchown32 fchownat lchown lchown32 link linkat symlink symlinkat readlink readlinkat unlink unlinkat \
     rename renameat renameat2 mkdir mkdirat rmdir mknod mknodat getdents getdents64 getcwd chdir fchdir \
     umask utime utimes utimensat utimensat_time64 futimesat name_to_handle_at getxattr getxattrat \
     lgetxattr fgetxattr setxattr setxattrat lsetxattr fsetxattr listxattr listxattrat llistxattr \
     flistxattr removexattr removexattrat lremovexattr fremovexattr inotify_init inotify_init1 \
     inotify_add_watch inotify_rm_watch fanotify_mark",
    // Waiting and asynchronous I/O.
    "select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create epoll_create1 \
     epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 signalfd \
     signalfd4 timerfd_create timerfd_settime timerfd_settime64 timerfd_gettime timerfd_gettime64 \
     io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64",
    // Memory.
    "brk mmap mmap2 munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock munlockall \
     mseal memfd_create memfd_secret map_shadow_stack membarrier pkey_alloc pkey_free pkey_mprotect \
     remap_file_pages",
    // Processes and threads.
    "fork vfork execve execveat exit exit_group wait4 waitid waitpid kill tkill tgkill pidfd_open \
     pidfd_send_signal process_mrelease getpid getppid gettid getpgid getpgrp setpgid getsid setsid \
     getpriority setpriority ioprio_get ioprio_set getrlimit ugetrlimit setrlimit prlimit64 getrusage \
     times prctl set_tid_address set_thread_area get_thread_area set_robust_list get_robust_list rseq \
     getcpu pause restart_syscall sched_yield sched_getaffinity sched_setaffinity sched_getattr \
     sched_setattr sched_getparam sched_setparam sched_getscheduler sched_setscheduler \
     sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_rr_get_interval_time64 \
     uname sysinfo futex futex_time64 futex_wait futex_wake futex_waitv futex_requeue",
    // Signals. The kernel itself makes a probed process call uprobe and uretprobe.
    "rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
     rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn alarm getitimer setitimer \
     uprobe uretprobe",
    // Identity. Capabilities decide what changes are possible.
    "getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32 getresgid \
     getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid \
     setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 \
     setgroups setgroups32 capget capset seccomp landlock_create_ruleset landlock_add_rule \
     landlock_restrict_self",
    // Time. Setting it takes a capability, but adjtimex also reads.
    "time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep \
     clock_nanosleep_time64 nanosleep adjtimex clock_adjtime clock_adjtime64 timer_create timer_delete \
     timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 getrandom",
    // Sockets, except socket(2) itself.
    "socketpair bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt send \
     sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64 shutdown",
    // System V IPC and POSIX message queues: namespaced.
    "ipc semget semctl semop semtimedop semtimedop_time64 shmget shmctl shmat shmdt msgget msgctl msgsnd \
     msgrcv mq_open mq_unlink mq_getsetattr mq_notify mq_timedreceive mq_timedreceive_time64 mq_timedsend \
     mq_timedsend_time64",
];

/// Calls of particular architectures; a name that an architecture lacks is ignored there.
const ALLOWED_X86: &str = "arch_prctl modify_ldt";
const ALLOWED_ARM: &str =
    "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";

/// Before this one a tracer could change a call after the filter had seen it (kernel 4.8, seccomp reordering).
const SAFE_PTRACE: KernelVersion = KernelVersion { major: 4, minor: 8 };
const PTRACE: &str = "ptrace process_vm_readv process_vm_writev";

/// What a capability opens.
const BY_CAPABILITY: &[(Capability, &str)] = &[
    (
        Capability::SysAdmin,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr \
         perf_event_open pivot_root quotactl quotactl_fd setdomainname sethostname setns syslog umount \
         umount2 unshare",
    ),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (Capability::SysPacct, "acct"),
    (Capability::SysPtrace, "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    (Capability::SysRawio, "ioperm iopl"),
    (Capability::SysTime, "clock_settime clock_settime64 settimeofday stime"),
    (Capability::SysTtyConfig, "vhangup"),
    (Capability::SysNice, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (Capability::Syslog, "syslog"),
    (Capability::Bpf, "bpf"),
    (Capability::Perfmon, "perf_event_open"),
];

/// Address families of socket(2) as (mask, value) over the low 32 bits: 0 to 47 without AF_ALG (38) and AF_VSOCK
/// (40). Masks rather than ranges, because the kernel does not look at the upper half of the argument.
const FAMILIES: &[(u64, u64)] = &[
    (LOW_HALF & !31, 0),
    (LOW_HALF & !3, 32),
    (LOW_HALF & !1, 36),
    (LOW_HALF, 39),
    (LOW_HALF, 41),
    (LOW_HALF & !1, 42),
    (LOW_HALF & !3, 44),
];

/// PER_LINUX, PER_LINUX32, UNAME26, both, and the query.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, LOW_HALF];

/// The capabilities that matter to the profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Relevant(u64);

impl Relevant {
    pub(crate) fn from_iter<'a>(capabilities: impl IntoIterator<Item = &'a Capability>) -> Self {
        let position =
            |capability: &Capability| BY_CAPABILITY.iter().position(|(relevant, _)| relevant == capability);
        Self(capabilities.into_iter().filter_map(position).fold(0, |bits, position| bits | 1 << position))
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    fn has(self, capability: Capability) -> bool {
        let own = Self::from_iter([&capability]);
        self.0 & own.0 != 0
    }
}

/// The profile for a container whose bounding set is `capabilities`.
pub fn profile<'a>(
    capabilities: impl IntoIterator<Item = &'a Capability>,
    kernel: KernelVersion,
) -> LinuxSeccomp {
    profile_for(Relevant::from_iter(capabilities), kernel)
}

pub(crate) fn profile_for(capabilities: Relevant, kernel: KernelVersion) -> LinuxSeccomp {
    let mut names: Vec<&str> = words(ALLOWED).collect();
    names.extend(words(&[if cfg!(target_arch = "aarch64") { ALLOWED_ARM } else { ALLOWED_X86 }]));
    if kernel >= SAFE_PTRACE {
        names.extend(words(&[PTRACE]));
    }
    for (capability, opened) in BY_CAPABILITY {
        if capabilities.has(*capability) {
            names.extend(opened.split(' '));
        }
    }
    names.sort_unstable();
    names.dedup();
    let mut syscalls = vec![entry(&names, LinuxSeccompAction::ScmpActAllow, Vec::new())];
    let mut allow_if = |name: &str, mask: u64, value: u64| {
        syscalls.push(entry(&[name], LinuxSeccompAction::ScmpActAllow, vec![masked(mask, value)]));
    };
    for &(mask, value) in FAMILIES {
        allow_if("socket", mask, value);
    }
    for &value in PERSONALITIES {
        allow_if("personality", LOW_HALF, value);
    }
    if !capabilities.has(Capability::SysAdmin) {
        allow_if("clone", NAMESPACE_FLAGS, 0);
        let mut clone3 = entry(&["clone3"], LinuxSeccompAction::ScmpActErrno, Vec::new());
        clone3.set_errno_ret(Some(ENOSYS));
        syscalls.push(clone3);
    }
    let architectures = if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    };
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_default_errno_ret(Some(EPERM));
    profile.set_architectures(Some(architectures));
    profile.set_syscalls(Some(syscalls));
    profile
}

fn words<'a>(groups: &[&'a str]) -> impl Iterator<Item = &'a str> {
    groups.iter().flat_map(|group| group.split(' '))
}

fn entry(names: &[&str], action: LinuxSeccompAction, args: Vec<LinuxSeccompArg>) -> LinuxSyscall {
    let mut entry = LinuxSyscall::default();
    entry.set_names(names.iter().map(|&name| name.to_owned()).collect());
    entry.set_action(action);
    entry.set_args((!args.is_empty()).then_some(args));
    entry
}

fn masked(mask: u64, value: u64) -> LinuxSeccompArg {
    LinuxSeccompArgBuilder::default()
        .index(0usize)
        .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
        .value(mask)
        .value_two(value)
        .build()
        .expect("every field has a default")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Architecture;

    #[test]
    fn every_name_is_a_system_call_somewhere() {
        let architectures = [
            Architecture::X86_64,
            Architecture::X86,
            Architecture::X32,
            Architecture::Aarch64,
            Architecture::Arm,
        ];
        let by_capability: Vec<&str> = BY_CAPABILITY.iter().map(|(_, names)| *names).collect();
        let others = [ALLOWED_X86, ALLOWED_ARM, PTRACE];
        for name in words(ALLOWED).chain(words(&others)).chain(words(&by_capability)) {
            let known = architectures
                .iter()
                .any(|arch| arch.number(name).is_some() || arch.multiplexed(name).is_some());
            assert!(known, "{name}");
        }
    }

    #[test]
    fn no_name_is_listed_twice() {
        let mut names: Vec<&str> = words(ALLOWED).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn families_are_all_but_two() {
        for family in 0..300u64 {
            let allowed = FAMILIES.iter().any(|(mask, value)| family & mask == *value);
            assert_eq!(allowed, family < 48 && family != 38 && family != 40, "{family}");
            let with_garbage = family | 0xdead_0000_0000;
            assert_eq!(FAMILIES.iter().any(|(mask, value)| with_garbage & mask == *value), allowed);
        }
    }

    #[test]
    fn capabilities_open_what_needs_them() {
        let kernel = KernelVersion { major: 6, minor: 12 };
        let has = |capabilities: &[Capability], name: &str| {
            let profile = profile(capabilities, kernel);
            let entries = profile.syscalls().as_ref().unwrap();
            entries.iter().any(|entry| {
                entry.action() == LinuxSeccompAction::ScmpActAllow
                    && entry.args().is_none()
                    && entry.names().iter().any(|own| own == name)
            })
        };
        for (capability, names) in BY_CAPABILITY {
            for name in names.split(' ') {
                assert!(has(&[*capability], name), "{capability:?} {name}");
            }
        }
        for name in [
            "mount",
            "bpf",
            "clone",
            "clone3",
            "unshare",
            "keyctl",
            "io_uring_setup",
            "userfaultfd",
            "socket",
        ] {
            assert!(!has(&[Capability::Chown, Capability::NetRaw], name), "{name}");
        }
        assert!(has(&[], "ptrace"));
        let old = profile(&[], KernelVersion { major: 4, minor: 7 });
        assert!(!old.syscalls().as_ref().unwrap()[0].names().iter().any(|name| name == "ptrace"));
    }
}
