//! Compiled profiles, loaded by `pinnace_sys::seccomp` and judged by the kernel: a child of this test program loads
//! one and tells what its system calls return.

#![allow(unsafe_code, clippy::unwrap_used, clippy::print_stdout)]
#![cfg(target_arch = "x86_64")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use pinnace_seccomp::{KernelVersion, compile, default, localhost};

const ROLE: &str = "PINNACE_SECCOMP_TEST";
const EPERM: i64 = 1;
const ENOSYS: i64 = 38;
const EFAULT: i64 = 14;
const EINVAL: i64 = 22;
const SIGSYS: i32 = 31;

/// Calls whose arguments are wrong in a way that makes them harmless if a filter lets them through.
const NATIVE: [(&str, i64, [u64; 2], i64); 31] = [
    ("keyctl", 250, [u64::MAX, 0], EPERM),
    ("add_key", 248, [0, 0], EPERM),
    ("request_key", 249, [0, 0], EPERM),
    ("bpf", 321, [u64::MAX, 0], EPERM),
    ("userfaultfd", 323, [u64::MAX, 0], EPERM),
    ("io_uring_setup", 425, [0, 0], EPERM),
    ("io_uring_enter", 426, [u64::MAX, 0], EPERM),
    ("perf_event_open", 298, [0, 0], EPERM),
    ("unshare(NEWUSER)", 272, [0x1000_0000, 0], EPERM),
    ("setns", 308, [u64::MAX, 0], EPERM),
    ("mount", 165, [1, 1], EPERM),
    ("umount2", 166, [1, 0], EPERM),
    ("pivot_root", 155, [1, 1], EPERM),
    ("fsopen", 430, [1, 0], EPERM),
    ("open_tree", 428, [u64::MAX, 1], EPERM),
    ("move_mount", 429, [u64::MAX, 1], EPERM),
    ("mount_setattr", 442, [u64::MAX, 1], EPERM),
    ("kexec_load", 246, [u64::MAX, u64::MAX], EPERM),
    ("init_module", 175, [1, 0], EPERM),
    ("swapon", 167, [1, 0], EPERM),
    ("reboot", 169, [0, 0], EPERM),
    ("personality(READ_IMPLIES_EXEC)", 135, [0x0040_0000, 0], EPERM),
    ("socket(AF_ALG)", 41, [38, 5], EPERM),
    ("socket(AF_VSOCK)", 41, [40, 1], EPERM),
    ("socket(AF_ALG, garbage above)", 41, [0x1_0000_0026, 5], EPERM),
    ("clone(NEWUSER)", 56, [0x1000_0000 | 0x1_0000, 0], EPERM),
    ("clone3", 435, [0, 0], ENOSYS),
    ("open_tree_attr", 467, [u64::MAX, 1], ENOSYS),
    ("a call of the future", 4000, [0, 0], ENOSYS),
    // Let through: the kernel's own complaint.
    ("read", 0, [u64::MAX, 0], 9),
    ("personality(query)", 135, [0xffff_ffff, 0], 0),
];

/// The same by 32-bit numbers, which a 64-bit program reaches with `int 0x80`.
const COMPAT: [(&str, u32, [u32; 2], i64); 8] = [
    ("socketcall(SOCKET)", 102, [1, 1], EPERM),
    ("socketcall(BIND)", 102, [2, 1], EFAULT),
    ("socket(AF_ALG)", 359, [38, 5], EPERM),
    ("socket(AF_UNIX, nonsense)", 359, [1, 99], EINVAL),
    ("keyctl", 288, [u32::MAX, 0], EPERM),
    ("mount", 21, [1, 1], EPERM),
    ("clone3", 435, [0, 0], ENOSYS),
    ("getpid", 20, [0, 0], 0),
];

/// What the child of a test does; as a test of its own it does nothing.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let kernel = KernelVersion::running().unwrap();
    let profile = match role.as_str() {
        "default" => default::profile(&[], kernel),
        json => localhost::parse(json.as_bytes(), &[], kernel).unwrap(),
    };
    let program = compile(&profile).unwrap();
    rustix::thread::set_no_new_privs(true).unwrap();
    pinnace_sys::seccomp::load(program.as_bytes(), program.flags()).unwrap();
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    assert!(status.lines().any(|line| line == "Seccomp:\t2"), "{status}");
    let mut told = String::new();
    for (name, number, [first, second], _) in NATIVE {
        // SAFETY: every call in the table fails on its arguments, changes nothing, or is refused by the filter.
        let returned = unsafe { libc::syscall(number, first, second, 0u64, 0u64, 0u64, 0u64) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap();
        told += &format!("native {name}={}\n", if returned == -1 { errno } else { 0 });
    }
    for (name, number, args, _) in COMPAT {
        // SAFETY: as above.
        let returned = unsafe { compat(number, args) };
        told += &format!("compat {name}={}\n", if returned < 0 { -returned } else { 0 });
    }
    println!("\n{told}end");
}

/// # Safety
/// The 32-bit call must be harmless.
unsafe fn compat(number: u32, [first, second]: [u32; 2]) -> i32 {
    let returned: i32;
    // SAFETY: `int 0x80` enters the kernel and comes back after it; rbx, which the compiler keeps for itself, is
    // saved around it, and the registers that the kernel may clear are declared.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, {first:e}",
            "int 0x80",
            "pop rbx",
            first = in(reg) first,
            inlateout("eax") number => returned,
            in("ecx") second,
            in("edx") 0,
            in("esi") 0,
            in("edi") 0,
            lateout("r8") _, lateout("r9") _, lateout("r10") _, lateout("r11") _,
        );
    }
    returned
}

fn run(role: &str) -> Output {
    let program = std::env::current_exe().unwrap();
    Command::new(program).args(["--exact", "child", "--nocapture"]).env(ROLE, role).output().unwrap()
}

#[test]
fn the_default_profile_refuses_what_it_should() {
    let output = run("default");
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    let native = NATIVE.iter().map(|(name, _, _, errno)| format!("native {name}={errno}"));
    let compat = COMPAT.iter().map(|(name, _, _, errno)| format!("compat {name}={errno}"));
    let missing: Vec<String> =
        native.chain(compat).filter(|line| !told.lines().any(|own| own == line)).collect();
    assert!(missing.is_empty(), "expected {missing:#?} in\n{told}");
    assert!(told.contains("\nend\n"));
}

#[test]
fn an_unlisted_architecture_dies() {
    let output = run(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"]}"#);
    assert_eq!(output.status.signal(), Some(SIGSYS), "{output:?}");
}

#[test]
fn a_profile_decides_by_arguments() {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"syscalls":[
        {"names":["keyctl"],"action":"SCMP_ACT_ERRNO","errnoRet":77},
        {"names":["personality"],"action":"SCMP_ACT_ERRNO","errnoRet":78,
         "args":[{"index":0,"value":4194304,"valueTwo":4194304,"op":"SCMP_CMP_MASKED_EQ"}]},
        {"names":["mount","unshare","clone","reboot","kexec_load","swapon","pivot_root"],"action":"SCMP_ACT_ERRNO"}]}"#;
    let output = run(json);
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    for line in [
        "native keyctl=77",
        "compat keyctl=77",
        "native personality(READ_IMPLIES_EXEC)=78",
        "native personality(query)=78",
        "native mount=1",
        "native read=9",
    ] {
        assert!(told.lines().any(|own| own == line), "expected {line} in\n{told}");
    }
}

/// Run with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_loading() {
    let program = compile(&default::profile(&[], KernelVersion::running().unwrap())).unwrap();
    rustix::thread::set_no_new_privs(true).unwrap();
    let mut times = Vec::new();
    for _ in 0..60 {
        let bytes = program.as_bytes().to_vec();
        let flags = program.flags();
        // Each thread takes one filter with it when it ends.
        let load = move || {
            let start = std::time::Instant::now();
            pinnace_sys::seccomp::load(&bytes, flags).unwrap();
            start.elapsed().as_micros()
        };
        times.push(std::thread::spawn(load).join().unwrap());
    }
    times.sort_unstable();
    println!("load: p50 {} us, min {} us ({} bytes)", times[30], times[0], program.as_bytes().len());
}
