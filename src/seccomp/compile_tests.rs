//! Programs against a plain reading of the profile, by an interpreter of classic BPF.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};
use proptest::prelude::*;

use crate::arch::{Architecture, X32_BIT};
use crate::program::MOST_INSTRUCTIONS;
use crate::*;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;
const KILL_PROCESS: u32 = 0x8000_0000;
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const ARM64: u32 = 0xc000_00b7;

/// `struct seccomp_data`.
#[derive(Clone, Copy, Debug)]
struct Call {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap()
}

/// The kernel's interpreter, as far as seccomp allows instructions; panics on any other.
fn run(program: &Program, call: Call) -> u32 {
    let instructions: Vec<Instruction> = program.instructions().collect();
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let Instruction { code, jt, jf, k } = instructions[at];
        at += 1;
        let mut branch = |holds: bool| at += usize::from(if holds { jt } else { jf });
        match code {
            0x20 => {
                accumulator = match k {
                    0 => call.number,
                    4 => call.arch,
                    16..64 => {
                        let word = call.args[usize::try_from((k - 16) / 8).unwrap()];
                        assert_eq!(k % 4, 0);
                        if k % 8 == 0 { low(word) } else { low(word >> 32) }
                    }
                    _ => panic!("load from {k}"),
                }
            }
            0x54 => accumulator &= k,
            0x05 => at += usize::try_from(k).unwrap(),
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x06 => return k,
            _ => panic!("code {code:#x}"),
        }
    }
}

fn holds(arg: &LinuxSeccompArg, args: [u64; 6]) -> bool {
    let (actual, value) = (args[arg.index()], arg.value());
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => actual != value,
        LinuxSeccompOperator::ScmpCmpLt => actual < value,
        LinuxSeccompOperator::ScmpCmpLe => actual <= value,
        LinuxSeccompOperator::ScmpCmpEq => actual == value,
        LinuxSeccompOperator::ScmpCmpGe => actual >= value,
        LinuxSeccompOperator::ScmpCmpGt => actual > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => actual & value == arg.value_two().unwrap_or(0),
    }
}

/// What the profile says, entry by entry, for one of the architectures x86_64, x32 and arm64; the multiplexers of
/// x86 are tested by hand.
fn meaning(profile: &LinuxSeccomp, arch: Architecture, call: Call) -> u32 {
    let entries = profile.syscalls().as_deref().unwrap_or_default();
    let matching = || {
        entries.iter().filter(|entry| entry.names().iter().any(|name| arch.number(name) == Some(call.number)))
    };
    let conditional = matching().find(|entry| {
        let args = entry.args().as_deref().unwrap_or_default();
        let repeated = args
            .iter()
            .enumerate()
            .any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()));
        if repeated {
            args.iter().any(|arg| holds(arg, call.args))
        } else {
            !args.is_empty() && args.iter().all(|arg| holds(arg, call.args))
        }
    });
    let plain = || matching().find(|entry| entry.args().as_deref().unwrap_or_default().is_empty());
    if let Some(entry) = conditional.or_else(plain) {
        return entry.action().as_u32(entry.errno_ret());
    }
    let default = profile.default_action().as_u32(profile.default_errno_ret());
    let newest = entries
        .iter()
        .flat_map(|entry| entry.names())
        .filter_map(|name| arch.number(name))
        .filter(|&number| arch != Architecture::X32 || number & !X32_BIT < 512)
        .max();
    let permissive = [ALLOW, 0x7ffc_0000, 0x7ff0_0001].contains(&default);
    let own = arch == Architecture::X32 && (512..548).contains(&(call.number & !X32_BIT));
    match newest {
        Some(newest) if call.number > newest && call.number != u32::MAX && !permissive && !own => ENOSYS,
        _ => default,
    }
}

const NAMES: [&str; 14] = [
    "read",
    "write",
    "open",
    "close",
    "stat",
    "ioctl",
    "clone",
    "execve",
    "futex",
    "openat",
    "mseal",
    "statx",
    "no_such_call",
    "rt_sigaction",
];

fn an_action() -> impl Strategy<Value = (LinuxSeccompAction, Option<u32>)> {
    prop_oneof![
        Just((LinuxSeccompAction::ScmpActAllow, None)),
        Just((LinuxSeccompAction::ScmpActErrno, None)),
        (0u32..=4095).prop_map(|errno| (LinuxSeccompAction::ScmpActErrno, Some(errno))),
        Just((LinuxSeccompAction::ScmpActKillProcess, None)),
        Just((LinuxSeccompAction::ScmpActLog, None)),
        Just((LinuxSeccompAction::ScmpActTrap, None)),
    ]
}

/// Values near each other and near the middle of 64 bits, so that comparisons are decided in both halves.
fn a_value() -> impl Strategy<Value = u64> {
    prop_oneof![
        0u64..4,
        (0u64..4).prop_map(|value| value << 32),
        (0u64..4, 0u64..4).prop_map(|(high, low)| high << 32 | low),
        (0u64..3).prop_map(|value| u64::MAX - value),
        any::<u64>(),
    ]
}

fn argument(index: usize, value: u64, two: Option<u64>, op: LinuxSeccompOperator) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).value(value).op(op);
    let builder = match two {
        Some(two) => builder.value_two(two),
        None => builder,
    };
    builder.build().unwrap()
}

fn an_arg() -> impl Strategy<Value = LinuxSeccompArg> {
    use LinuxSeccompOperator::*;
    let op = prop::sample::select(vec![
        ScmpCmpNe,
        ScmpCmpLt,
        ScmpCmpLe,
        ScmpCmpEq,
        ScmpCmpGe,
        ScmpCmpGt,
        ScmpCmpMaskedEq,
    ]);
    (0usize..3, a_value(), prop::option::of(a_value()), op)
        .prop_map(|(index, value, two, op)| argument(index, value, two, op))
}

fn a_profile() -> impl Strategy<Value = LinuxSeccomp> {
    let names = prop::collection::vec(prop::sample::select(NAMES.map(str::to_owned).to_vec()), 1..4);
    let entry = (names, an_action(), prop::collection::vec(an_arg(), 0..4)).prop_map(
        |(names, (action, errno), args)| {
            let mut entry = LinuxSyscall::default();
            entry.set_names(names).set_action(action).set_errno_ret(errno);
            entry.set_args((!args.is_empty()).then_some(args));
            entry
        },
    );
    (an_action(), prop::collection::vec(entry, 0..10)).prop_map(|((action, errno), entries)| {
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(action).set_default_errno_ret(errno);
        profile.set_architectures(Some(vec![
            Arch::ScmpArchX86_64,
            Arch::ScmpArchX86,
            Arch::ScmpArchX32,
            Arch::ScmpArchAarch64,
        ]));
        profile.set_syscalls(Some(entries));
        profile
    })
}

fn a_number() -> impl Strategy<Value = (u32, Option<u32>)> {
    // Either a number as it is, or one of the names (by position).
    prop_oneof![
        (0u32..600).prop_map(|number| (number, None)),
        (0u32..14).prop_map(|name| (0, Some(name))),
        any::<u32>().prop_map(|number| (number & !X32_BIT, None)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_program_decides_as_its_profile_reads(
        profile in a_profile(),
        (number, name) in a_number(),
        args in prop::array::uniform6(a_value()),
        which in 0usize..3,
    ) {
        let program = compile(&profile).unwrap();
        let (arch, audit) = [
            (Architecture::X86_64, X86_64), (Architecture::X32, X86_64), (Architecture::Aarch64, ARM64),
        ][which];
        let named = name.and_then(|name| arch.number(NAMES[usize::try_from(name).unwrap()]));
        let number = match (named, arch) {
            (Some(number), _) => number,
            (None, Architecture::X32) => number | X32_BIT,
            (None, Architecture::X86_64) => number % X32_BIT,
            (None, _) => number,
        };
        let call = Call { arch: audit, number, args };
        let got = run(&program, call);
        let want = meaning(&profile, arch, call);
        prop_assert_eq!(got, want, "{:#x} instead of {:#x}", got, want);
    }
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).unwrap()
}

fn plain(arch: u32, number: u32, arg0: u64) -> Call {
    Call { arch, number, args: [arg0, 0, 0, 0, 0, 0] }
}

#[test]
fn unlisted_architectures_are_killed() {
    let program = compile(&profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)).unwrap();
    let native = Architecture::native().unwrap();
    assert_eq!(run(&program, plain(native.audit(), 1, 0)), ALLOW);
    assert_eq!(run(&program, plain(X86, 1, 0)), KILL_PROCESS);
    assert_eq!(run(&program, plain(0x1234, 1, 0)), KILL_PROCESS);
    if native == Architecture::X86_64 {
        assert_eq!(run(&program, plain(X86_64, X32_BIT | 1, 0)), KILL_PROCESS);
        // A tracer's "skip this call".
        assert_eq!(run(&program, plain(X86_64, u32::MAX, 0)), ALLOW);
    }
}

#[test]
fn newer_calls_do_not_exist() {
    let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],
        "syscalls":[{"names":["mseal"],"action":"SCMP_ACT_ALLOW"}]}"#;
    let program = compile(&profile(json)).unwrap();
    for (number, want) in [(461, EPERM), (462, ALLOW), (463, ENOSYS), (5000, ENOSYS), (u32::MAX, EPERM)] {
        assert_eq!(run(&program, plain(X86_64, number, 0)), want, "{number}");
    }
}

#[test]
fn multiplexers_follow_the_calls_they_stand_for() {
    let x86 =
        |json: &str, number: u32, arg0: u64| run(&compile(&profile(json)).unwrap(), plain(X86, number, arg0));
    const SOCKETCALL: u32 = 102;
    const IPC: u32 = 117;
    let allow_list = r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"syscalls":[
        {"names":["bind","shmat"],"action":"SCMP_ACT_ALLOW"},
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#;
    assert_eq!(x86(allow_list, SOCKETCALL, 2), ALLOW);
    assert_eq!(x86(allow_list, SOCKETCALL, 1), EPERM);
    assert_eq!(x86(allow_list, 359, 2), ALLOW);
    assert_eq!(x86(allow_list, 359, 38), EPERM);
    assert_eq!(x86(allow_list, IPC, 21), ALLOW);
    assert_eq!(x86(allow_list, IPC, 0x1_0015), ALLOW);
    assert_eq!(x86(allow_list, IPC, 22), EPERM);
    let deny_list = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"syscalls":[
        {"names":["connect","semget"],"action":"SCMP_ACT_ERRNO"},
        {"names":["socket"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":38,"op":"SCMP_CMP_EQ"}]}]}"#;
    assert_eq!(x86(deny_list, SOCKETCALL, 3), EPERM);
    assert_eq!(x86(deny_list, SOCKETCALL, 1), EPERM);
    assert_eq!(x86(deny_list, SOCKETCALL, 2), ALLOW);
    assert_eq!(x86(deny_list, IPC, 0xffff_0002), EPERM);
    let by_name = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"syscalls":[
        {"names":["socketcall"],"action":"SCMP_ACT_ERRNO"},{"names":["bind"],"action":"SCMP_ACT_ALLOW"}]}"#;
    assert_eq!(x86(by_name, SOCKETCALL, 2), EPERM);
}

#[test]
fn the_default_profile_holds_what_it_promises() {
    let kernel = KernelVersion { major: 6, minor: 12 };
    let program = compile(&default::profile(&[], kernel)).unwrap();
    let number = |name: &str| Architecture::X86_64.number(name).unwrap();
    let call = |name: &str, arg0: u64| run(&program, plain(X86_64, number(name), arg0));
    for (name, arg0, want) in [
        ("read", 0, ALLOW),
        ("execve", 0, ALLOW),
        ("keyctl", 0, EPERM),
        ("bpf", 0, EPERM),
        ("unshare", 0x1000_0000, EPERM),
        ("mount", 0, EPERM),
        ("clone3", 0, ENOSYS),
        ("clone", 0x3d0f00, ALLOW),
        ("clone", 0x1000_0000, EPERM),
        ("socket", 2, ALLOW),
        ("socket", 38, EPERM),
        ("socket", 40, EPERM),
        ("socket", 0x1_0000_0026, EPERM),
        ("socket", 0x1_0000_0002, ALLOW),
        ("personality", 0xffff_ffff, ALLOW),
        ("personality", 0x40_0000, EPERM),
        ("open_tree_attr", 0, ENOSYS),
    ] {
        assert_eq!(call(name, arg0), want, "{name}({arg0:#x})");
    }
    // 32-bit: socketcall(SYS_SOCKET) cannot be looked into, bind can do no harm.
    assert_eq!(run(&program, plain(X86, 102, 1)), EPERM);
    assert_eq!(run(&program, plain(X86, 102, 2)), ALLOW);
    assert_eq!(run(&program, plain(X86, 359, 38)), EPERM);
    assert_eq!(run(&program, plain(X86, 359, 1)), ALLOW);
    assert_eq!(run(&program, plain(X86_64, X32_BIT | 41, 38)), EPERM);
    assert_eq!(run(&program, plain(X86_64, X32_BIT | 520, 0)), ALLOW);
    let everything: Vec<_> =
        "CAP_SYS_ADMIN CAP_BPF".split(' ').map(|name| serde_json::from_value(name.into()).unwrap()).collect();
    let program = compile(&default::profile(&everything, kernel)).unwrap();
    for name in ["mount", "unshare", "clone3", "setns", "bpf"] {
        assert_eq!(run(&program, plain(X86_64, number(name), 0)), ALLOW, "{name}");
    }
}

#[test]
fn paths_through_the_default_program_are_short() {
    let program = compile(&default::profile(&[], KernelVersion { major: 6, minor: 12 })).unwrap();
    assert!(program.as_bytes().len() / 8 < 700, "{} instructions", program.as_bytes().len() / 8);
    assert_eq!(program.as_bytes().len() % 8, 0);
}

#[test]
fn impossible_profiles_are_refused() {
    for json in [
        r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["open"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x","syscalls":[{"names":["write"],"action":"SCMP_ACT_NOTIFY"}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["open"],"action":"SCMP_ACT_ERRNO","errnoRet":70000}]}"#,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["open"],"action":"SCMP_ACT_ERRNO",
            "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
    ] {
        assert!(compile(&profile(json)).is_err(), "{json}");
    }
    let notify = r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x","syscalls":[{"names":["open"],"action":"SCMP_ACT_NOTIFY"}]}"#;
    assert!(compile(&profile(notify)).unwrap().notifies());
}

#[test]
fn overlong_programs_are_refused_and_long_ones_work() {
    let args = |count: u64| {
        let entries: Vec<LinuxSyscall> = (0..count)
            .map(|value| {
                let arg = argument(1, value << 33 | value, None, LinuxSeccompOperator::ScmpCmpEq);
                let mut entry = LinuxSyscall::default();
                entry.set_names(vec!["ioctl".to_owned()]).set_action(LinuxSeccompAction::ScmpActAllow);
                entry.set_args(Some(vec![arg]));
                entry
            })
            .collect();
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(LinuxSeccompAction::ScmpActErrno).set_syscalls(Some(entries));
        profile.set_architectures(Some(vec![Arch::ScmpArchX86_64]));
        profile
    };
    assert!(matches!(compile(&args(2000)), Err(SeccompError::TooLong { most: MOST_INSTRUCTIONS, .. })));
    let long = compile(&args(900)).unwrap();
    let number = Architecture::X86_64.number("ioctl").unwrap();
    for value in [0u64, 1, 450, 899, 900] {
        let call = Call { arch: X86_64, number, args: [0, value << 33 | value, 0, 0, 0, 0] };
        assert_eq!(run(&long, call), if value < 900 { ALLOW } else { EPERM }, "{value}");
    }
}

#[test]
fn equal_profiles_share_a_program() {
    let cache = ProgramCache::new();
    let kernel = KernelVersion { major: 6, minor: 12 };
    let first = cache.compile(&default::profile(&[], kernel)).unwrap();
    let second = cache.compile(&default::profile(&[], kernel)).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &second));
    assert_eq!(*cache.runtime_default(&[], kernel).unwrap(), *first);
    let other = cache.compile(&profile(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)).unwrap();
    assert_ne!(*first, *other);
}

/// Run with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a check"]
fn cost_of_a_program() {
    let kernel = KernelVersion { major: 6, minor: 12 };
    let profile = default::profile(&[], kernel);
    let cache = ProgramCache::new();
    let time = |what: &str, run: &dyn Fn()| {
        run();
        let start = std::time::Instant::now();
        (0..200).for_each(|_| run());
        println!("{what}: {} us", start.elapsed().as_micros() / 200);
    };
    println!("{} instructions", compile(&profile).unwrap().instructions().len());
    time("build the default profile", &|| drop(default::profile(&[], kernel)));
    time("compile it", &|| drop(compile(&profile).unwrap()));
    time("cache hit by profile", &|| drop(cache.compile(&profile).unwrap()));
    time("cache hit by capabilities", &|| drop(cache.runtime_default(&[], kernel).unwrap()));
}
