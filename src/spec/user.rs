//! Who the program runs as: the image's `USER` and a request, resolved against the image's own account files.
//!
//! Rules, each the lesson of an advisory:
//! * A string of digits is a number, never a name (CVE-2016-3697).
//! * A number is digits only and at most 2147483647: nothing wraps to 0 and nothing too large turns into a name
//!   (CVE-2024-40635, CVE-2026-30892).
//! * The files are read inside the image's root by descriptor, regular files only, bounded (CVE-2025-4437).
//! * The primary group is one of the supplementary groups (CVE-2022-2995).

mod accounts;

use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::{Code, validate};
use accounts::{Account, File, is_digits};

/// Largest user or group id: what every tool that keeps ids in a signed int can hold.
pub const ID_MAX: u32 = 2_147_483_647;

/// A resolved user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, the primary one among them, sorted.
    pub additional_gids: Vec<u32>,
    /// Home directory of the account; `/` without one.
    pub home: PathBuf,
    /// Name of the account, when the image has one for the id.
    pub username: Option<String>,
}

impl User {
    /// As a field of the OCI process.
    pub fn to_oci(&self) -> oci_spec::runtime::User {
        let mut user = oci_spec::runtime::User::default();
        user.set_uid(self.uid);
        user.set_gid(self.gid);
        user.set_additional_gids(Some(self.additional_gids.clone()));
        user
    }
}

/// What is known about the user before the image's files are read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// The image's `USER`: empty, `uid`, `uid:gid`, `name`, `name:group` or a mixture.
    pub image_user: &'a str,
    /// CRI `run_as_user`.
    pub run_as_user: Option<i64>,
    /// CRI `run_as_username`: a name, or digits, which are an id.
    pub run_as_username: &'a str,
    /// CRI `run_as_group`; needs one of the two above.
    pub run_as_group: Option<i64>,
    /// CRI `supplemental_groups`.
    pub supplemental_groups: &'a [i64],
    /// Whether the image's `/etc/group` adds to them.
    pub policy: GroupPolicy,
}

/// CRI `supplemental_groups_policy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GroupPolicy {
    /// The groups of which the image says that the user is a member, and those requested.
    #[default]
    Merge,
    /// Those requested alone.
    Strict,
}

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is neither an id nor a name nor a pair of them.
    #[error("user {text:?}: {reason}")]
    Malformed {
        /// What was given.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A number that no user or group has.
    #[error("{kind} id {text} is not between 0 and 2147483647")]
    OutOfRange {
        /// `user` or `group`.
        kind: &'static str,
        /// What was given.
        text: String,
    },
    /// The request contradicts itself.
    #[error("{0}")]
    Contradiction(&'static str),
    /// More groups than a process can have.
    #[error("more than 65536 supplementary groups")]
    TooManyGroups,
    /// The image has no such user.
    #[error("user {name:?} is not in the image's /etc/passwd")]
    UnknownUser {
        /// Its name.
        name: String,
    },
    /// The image has no such group.
    #[error("group {name:?} is not in the image's /etc/group")]
    UnknownGroup {
        /// Its name.
        name: String,
    },
    /// The file is a directory, device, fifo or socket.
    #[error("the image's {path} is not a regular file")]
    NotRegular {
        /// Path in the image.
        path: &'static str,
    },
    /// The file is larger than anyone needs.
    #[error("the image's {path} is larger than 10 MiB")]
    TooLarge {
        /// Path in the image.
        path: &'static str,
    },
    /// A line is longer than anyone needs.
    #[error("the image's {path} has a line longer than 1 MiB")]
    LongLine {
        /// Path in the image.
        path: &'static str,
    },
    /// The file cannot be read.
    #[error("read the image's {path}")]
    Read {
        /// Path in the image.
        path: &'static str,
        /// Why.
        #[source]
        errno: Errno,
    },
}

impl Error {
    /// Class of this error.
    pub fn code(&self) -> Code {
        match self {
            Self::UnknownUser { .. } | Self::UnknownGroup { .. } => Code::NotFound,
            Self::Read { errno, .. } if *errno != Errno::LOOP => Code::Internal,
            _ => Code::InvalidArgument,
        }
    }
}

/// Resolves a request inside an image's root.
pub fn resolve(rootfs: BorrowedFd<'_>, request: &Request<'_>) -> Result<User, Error> {
    let wanted = Wanted::of(request)?;
    let supplemental = ids("group", request.supplemental_groups)?;

    let passwd = accounts::read(rootfs, File::Passwd)?.unwrap_or_default();
    let (uid, account) = match &wanted.user {
        Id::Number(uid) => (*uid, accounts::accounts(&passwd).find(|account| account.uid == *uid)),
        Id::Name(name) => {
            let account = accounts::accounts(&passwd).find(|account| account.name == *name);
            let account = account.ok_or_else(|| Error::UnknownUser { name: name.clone() })?;
            (account.uid, Some(account))
        }
    };

    let named_group = matches!(wanted.group, Some(Id::Name(_)));
    let merges = request.policy == GroupPolicy::Merge && account.is_some();
    let group = if named_group || merges {
        accounts::read(rootfs, File::Group)?.unwrap_or_default()
    } else {
        Vec::new()
    };
    let gid = match &wanted.group {
        None => account.as_ref().map_or(0, |account| account.gid),
        Some(Id::Number(gid)) => *gid,
        Some(Id::Name(name)) => {
            let found = accounts::groups(&group).find(|group| group.name == *name);
            found.ok_or_else(|| Error::UnknownGroup { name: name.clone() })?.gid
        }
    };

    let mut additional_gids = supplemental;
    additional_gids.push(gid);
    if let Some(account) = account.as_ref().filter(|_| merges) {
        additional_gids
            .extend(accounts::groups(&group).filter(|group| group.has(&account.name)).map(|group| group.gid));
    }
    additional_gids.sort_unstable();
    additional_gids.dedup();
    if additional_gids.len() > validate::GROUPS {
        return Err(Error::TooManyGroups);
    }
    let home = account.as_ref().map(home).unwrap_or_else(|| PathBuf::from("/"));
    Ok(User { uid, gid, additional_gids, home, username: account.map(|account| account.name) })
}

/// User and group, each an id or a name.
struct Wanted {
    user: Id,
    group: Option<Id>,
}

enum Id {
    Number(u32),
    Name(String),
}

impl Wanted {
    fn of(request: &Request<'_>) -> Result<Self, Error> {
        let user = match (request.run_as_user, request.run_as_username) {
            (Some(_), name) if !name.is_empty() => {
                return Err(Error::Contradiction("run_as_user and run_as_username are both given"));
            }
            (Some(uid), _) => Id::Number(number("user", uid)?),
            (None, "") if request.run_as_group.is_some() => {
                return Err(Error::Contradiction("run_as_group is given without a user"));
            }
            (None, "") => return Self::parse(request.image_user),
            (None, name) => Id::parse("user", name, name)?,
        };
        let group = request.run_as_group.map(|gid| number("group", gid)).transpose()?;
        Ok(Self { user, group: group.map(Id::Number) })
    }

    /// The image's `USER`.
    fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self { user: Id::Number(0), group: None });
        }
        match text.split_once(':') {
            None => Ok(Self { user: Id::parse("user", text, text)?, group: None }),
            Some((user, group)) => Ok(Self {
                user: Id::parse("user", user, text)?,
                group: Some(Id::parse("group", group, text)?),
            }),
        }
    }
}

impl Id {
    /// `part` of `text`.
    fn parse(kind: &'static str, part: &str, text: &str) -> Result<Self, Error> {
        let malformed = |reason| Error::Malformed { text: shortened(text), reason };
        if is_digits(part) {
            let id = part.parse().ok().filter(|id| *id <= ID_MAX);
            return id.map(Self::Number).ok_or_else(|| Error::OutOfRange { kind, text: shortened(part) });
        }
        if part.is_empty() {
            return Err(malformed("user or group is empty"));
        }
        if part.starts_with(['-', '+']) {
            return Err(malformed("an id has digits only and a name begins otherwise"));
        }
        if part.len() > 256 {
            return Err(malformed("a name is longer than 256 bytes"));
        }
        if part.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/')) {
            return Err(malformed("a name has a character that no name has"));
        }
        Ok(Self::Name(part.to_owned()))
    }
}

fn ids(kind: &'static str, list: &[i64]) -> Result<Vec<u32>, Error> {
    list.iter().map(|id| number(kind, *id)).collect()
}

fn number(kind: &'static str, id: i64) -> Result<u32, Error> {
    let id_ = u32::try_from(id).ok().filter(|id| *id <= ID_MAX);
    id_.ok_or_else(|| Error::OutOfRange { kind, text: id.to_string() })
}

/// An absolute path without what would break a line or a list; anything else is nobody's home.
fn home(account: &Account) -> PathBuf {
    let sound =
        account.home.starts_with(b"/") && !account.home.iter().any(|byte| *byte < 0x20 || *byte == 0x7f);
    if sound { std::ffi::OsString::from_vec(account.home.clone()).into() } else { PathBuf::from("/") }
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
