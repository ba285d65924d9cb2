//! Profiles from files: the OCI form, and Docker's superset of it with entries that depend on capabilities,
//! architecture and kernel.
//!
//! The caller has read the file; an empty or damaged one is an error and never means "unconfined" (CVE-2023-2431).

use std::path::PathBuf;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

use crate::arch::Architecture;
use crate::error::SeccompError;
use crate::kernel::KernelVersion;

/// Largest file. Docker's whole default profile is 17 KiB.
pub const MOST_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: Arch,
    #[serde(default)]
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// The form before Docker 17.
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// Reads a profile for a container whose bounding set is `capabilities`.
pub fn parse<'a>(
    bytes: &[u8],
    capabilities: impl IntoIterator<Item = &'a Capability>,
    kernel: KernelVersion,
) -> Result<LinuxSeccomp, SeccompError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(SeccompError::Document { reason: "the file is empty" });
    }
    if bytes.len() > MOST_BYTES {
        return Err(SeccompError::Document { reason: "the file is larger than 1 MiB" });
    }
    let document: Document = serde_json::from_slice(bytes)?;
    let held: Vec<String> = capabilities.into_iter().map(Capability::to_string).collect();
    let mut syscalls = Vec::new();
    for entry in document.syscalls.into_iter().flatten() {
        if entry.applies(&held, kernel)? {
            syscalls.push(entry.into_spec()?);
        }
    }
    let architectures = match (document.architectures, document.arch_map) {
        (Some(architectures), Some(map)) if !architectures.is_empty() && !map.is_empty() => {
            return Err(SeccompError::Document { reason: "architectures and archMap exclude each other" });
        }
        (_, Some(map)) if !map.is_empty() => map
            .into_iter()
            .filter(|one| Architecture::from_spec(one.architecture) == Architecture::native())
            .flat_map(|one| [one.architecture].into_iter().chain(one.sub_architectures.into_iter().flatten()))
            .collect(),
        (architectures, _) => architectures.unwrap_or_default(),
    };
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(document.default_action);
    profile.set_default_errno_ret(document.default_errno_ret);
    profile.set_architectures((!architectures.is_empty()).then_some(architectures));
    profile.set_flags(document.flags);
    profile.set_listener_path(document.listener_path);
    profile.set_listener_metadata(document.listener_metadata);
    profile.set_syscalls(Some(syscalls));
    Ok(profile)
}

impl Entry {
    fn applies(&self, held: &[String], kernel: KernelVersion) -> Result<bool, SeccompError> {
        if let Some(includes) = &self.includes {
            // All of its capabilities, any of its architectures, at least its kernel.
            let caps = includes.caps.iter().flatten().all(|cap| holds(held, cap));
            let arches =
                includes.arches.as_ref().is_none_or(|arches| arches.is_empty() || any_native(arches));
            if !caps || !arches || !includes.kernel_reached(kernel)?.unwrap_or(true) {
                return Ok(false);
            }
        }
        if let Some(excludes) = &self.excludes {
            // Any of its capabilities or architectures, or its kernel.
            let caps = excludes.caps.iter().flatten().any(|cap| holds(held, cap));
            let arches = excludes.arches.as_deref().is_some_and(any_native);
            if caps || arches || excludes.kernel_reached(kernel)?.unwrap_or(false) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn into_spec(self) -> Result<LinuxSyscall, SeccompError> {
        let names = match (self.name, self.names) {
            (Some(name), None) => vec![name],
            (None, Some(names)) => names,
            (Some(_), Some(_)) => {
                return Err(SeccompError::Document { reason: "name and names exclude each other" });
            }
            (None, None) => return Err(SeccompError::Document { reason: "an entry has no names" }),
        };
        let mut syscall = LinuxSyscall::default();
        syscall.set_names(names);
        syscall.set_action(self.action);
        syscall.set_errno_ret(self.errno_ret);
        syscall.set_args(self.args.filter(|args| !args.is_empty()));
        Ok(syscall)
    }
}

impl Filter {
    fn kernel_reached(&self, kernel: KernelVersion) -> Result<Option<bool>, SeccompError> {
        let Some(least) = self.min_kernel.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        Ok(Some(kernel >= least.parse()?))
    }
}

/// `SYS_ADMIN` and `CAP_SYS_ADMIN` are the same.
fn holds(held: &[String], capability: &str) -> bool {
    let bare = |name: &str| name.strip_prefix("CAP_").unwrap_or(name).to_owned();
    let wanted = bare(capability);
    held.iter().any(|own| bare(own) == wanted)
}

/// Docker's names of architectures are Go's.
fn any_native(arches: &[String]) -> bool {
    let native = match Architecture::native() {
        Some(Architecture::X86_64) => "amd64",
        Some(Architecture::Aarch64) => "arm64",
        _ => return false,
    };
    arches.iter().any(|arch| arch == native)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: KernelVersion = KernelVersion { major: 6, minor: 1 };

    fn names(json: &str, capabilities: &[Capability]) -> Vec<String> {
        let profile = parse(json.as_bytes(), capabilities, KERNEL).unwrap();
        profile.syscalls().iter().flatten().flat_map(|entry| entry.names().clone()).collect()
    }

    #[test]
    fn the_oci_form_is_read_as_it_is() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64"],
            "flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW",
            "args":[{"index":0,"value":1,"valueTwo":0,"op":"SCMP_CMP_EQ"}]}]}"#;
        let profile = parse(json.as_bytes(), &[], KERNEL).unwrap();
        let direct: LinuxSeccomp = serde_json::from_str(json).unwrap();
        assert_eq!(profile, direct);
    }

    #[test]
    fn docker_conditions_choose_entries() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO",
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]},
                       {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],
            "syscalls":[
            {"name":"old","action":"SCMP_ACT_ALLOW","args":null},
            {"names":["admin"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]},"excludes":{}},
            {"names":["noadmin"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["SYS_ADMIN"]},"comment":"x"},
            {"names":["new"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"6.2"}},
            {"names":["kernel"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
            {"names":["s390"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["s390x"]}},
            {"names":["here"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64","arm64"]}},
            {"names":["elsewhere"],"action":"SCMP_ACT_ALLOW","excludes":{"arches":["amd64","arm64"]}}]}"#;
        assert_eq!(names(json, &[]), ["old", "noadmin", "kernel", "here"]);
        assert_eq!(names(json, &[Capability::SysAdmin]), ["old", "admin", "kernel", "here"]);
        let profile = parse(json.as_bytes(), &[], KERNEL).unwrap();
        assert_eq!(profile.architectures().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn what_is_not_a_profile_is_an_error() {
        for json in [
            "",
            " \n",
            "null",
            "[]",
            "{}",
            r#"{"defaultAction":"SCMP_ACT_NONSENSE"}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"action":"SCMP_ACT_ALLOW"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"]}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"x"}}]}"#,
        ] {
            assert!(parse(json.as_bytes(), &[], KERNEL).is_err(), "{json}");
        }
        assert!(parse(&vec![b' '; MOST_BYTES + 1], &[], KERNEL).is_err());
    }
}
