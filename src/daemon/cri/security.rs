//! LinuxContainerSecurityContext to our own type.

use pinnace_cri_api::v1;

use super::sandbox_config::{absolute, mode, user_namespace};
use crate::container::request::{Profile, Security, UserRequest};
use crate::error::Error;
use crate::sandbox::record::NamespaceMode;
use crate::selinux::Options;

const FIELD: &str = "config.linux.security_context";

/// Reads it; identities are strict 32-bit numbers (rule R9, CVE-2024-40635).
pub fn parse(context: v1::LinuxContainerSecurityContext) -> Result<Security, Error> {
    let user = user(&context)?;
    let namespaces = context.namespace_options.unwrap_or_default();
    let user_namespace = user_namespace(namespaces.userns_options.as_ref())?;
    let of = |name: &str, value: i32| mode(&format!("{FIELD}.namespace_options.{name}"), value);
    let pid = of("pid", namespaces.pid)?;
    if pid == NamespaceMode::Target && namespaces.target_id.is_empty() {
        return Err(Error::invalid(format!("{FIELD}.namespace_options.target_id"), "is empty"));
    }
    for path in context.masked_paths.iter().chain(&context.readonly_paths) {
        absolute(&format!("{FIELD}.masked_paths or readonly_paths"), path)?;
    }
    let capabilities = context.capabilities.unwrap_or_default();
    #[allow(deprecated)]
    let (old_seccomp, old_apparmor) = (context.seccomp_profile_path, context.apparmor_profile);
    Ok(Security {
        privileged: context.privileged,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        add_ambient_capabilities: capabilities.add_ambient_capabilities,
        pid,
        target: namespaces.target_id,
        network: of("network", namespaces.network)?,
        ipc: of("ipc", namespaces.ipc)?,
        user_namespace,
        user,
        read_only_rootfs: context.readonly_rootfs,
        no_new_privileges: context.no_new_privs,
        masked_paths: context.masked_paths,
        read_only_paths: context.readonly_paths,
        seccomp: profile("seccomp", context.seccomp, &old_seccomp)?.unwrap_or(Profile::Unconfined),
        apparmor: profile("apparmor", context.apparmor, &old_apparmor)?,
        selinux: selinux(&format!("{FIELD}.selinux_options"), context.selinux_options)?,
    })
}

/// The parts of a label.
pub(super) fn selinux(field: &str, options: Option<v1::SeLinuxOption>) -> Result<Options, Error> {
    let v1::SeLinuxOption { user, role, r#type: kind, level } = options.unwrap_or_default();
    let options = Options { user, role, kind, level };
    options.check(field).map(|()| options)
}

fn user(context: &v1::LinuxContainerSecurityContext) -> Result<UserRequest, Error> {
    let id = |name: &str, value: i64| match u32::try_from(value) {
        // (uid_t)-1 means "no change" to setresuid(2) and is nobody's id.
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::invalid(format!("{FIELD}.{name}"), format!("{value} is no id"))),
    };
    let uid = context.run_as_user.as_ref().map(|value| id("run_as_user", value.value)).transpose()?;
    let gid = context.run_as_group.as_ref().map(|value| id("run_as_group", value.value)).transpose()?;
    let username = context.run_as_username.clone();
    if uid.is_some() && !username.is_empty() {
        return Err(Error::invalid(format!("{FIELD}.run_as_username"), "excludes run_as_user"));
    }
    if gid.is_some() && uid.is_none() && username.is_empty() {
        return Err(Error::invalid(format!("{FIELD}.run_as_group"), "needs run_as_user or run_as_username"));
    }
    let groups = context
        .supplemental_groups
        .iter()
        .map(|group| id("supplemental_groups", *group))
        .collect::<Result<_, _>>()?;
    let strict = i32::from(v1::SupplementalGroupsPolicy::Strict);
    let strict_groups = context.supplemental_groups_policy == strict;
    Ok(UserRequest { uid, username, gid, groups, strict_groups })
}

/// The typed field, else the deprecated string.
fn profile(name: &str, typed: Option<v1::SecurityProfile>, old: &str) -> Result<Option<Profile>, Error> {
    use v1::security_profile::ProfileType;
    let field = format!("{FIELD}.{name}");
    if let Some(typed) = typed {
        return match (ProfileType::try_from(typed.profile_type), typed.localhost_ref.as_str()) {
            (Ok(ProfileType::RuntimeDefault), "") => Ok(Some(Profile::RuntimeDefault)),
            (Ok(ProfileType::Unconfined), "") => Ok(Some(Profile::Unconfined)),
            (Ok(ProfileType::Localhost), "") => Err(Error::invalid(field, "Localhost needs localhost_ref")),
            (Ok(ProfileType::Localhost), reference) => Ok(Some(localhost(reference))),
            (Ok(other), reference) => {
                Err(Error::invalid(field, format!("localhost_ref {reference:?} with type {other:?}")))
            }
            (Err(_), _) => Err(Error::invalid(field, format!("{} is no profile type", typed.profile_type))),
        };
    }
    match old {
        "" => Ok(None),
        "unconfined" => Ok(Some(Profile::Unconfined)),
        "runtime/default" | "docker/default" => Ok(Some(Profile::RuntimeDefault)),
        reference if reference.starts_with("localhost/") => Ok(Some(localhost(reference))),
        other => Err(Error::invalid(field, format!("{other:?} is no profile"))),
    }
}

fn localhost(reference: &str) -> Profile {
    Profile::Localhost(reference.strip_prefix("localhost/").unwrap_or(reference).to_owned())
}
