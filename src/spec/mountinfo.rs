//! `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)): one line per mount of the calling thread's mount namespace.
//!
//! ```text
//! 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue
//! id parent dev root point options   optional fields...  type source  super options
//! ```

use std::io;

/// The calling thread's: another thread may live in another mount namespace.
const FILE: &str = "/proc/thread-self/mountinfo";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountLine {
    pub(crate) id: u64,
    pub(crate) mount_point: String,
    pub(crate) shared: bool,
    pub(crate) slave: bool,
    pub(crate) fstype: String,
    pub(crate) super_options: Vec<String>,
}

pub(crate) fn read() -> io::Result<Vec<MountLine>> {
    Ok(parse(&String::from_utf8_lossy(&std::fs::read(FILE)?)))
}

/// Lines that do not have this form are left out.
pub(crate) fn parse(text: &str) -> Vec<MountLine> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<MountLine> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ');
    let id = mount.next()?.parse().ok()?;
    let mount_point = unescape(mount.nth(3)?);
    let optional: Vec<&str> = mount.skip(1).collect();
    let mut filesystem = filesystem.split(' ');
    let fstype = filesystem.next()?.to_owned();
    let super_options = filesystem.nth(1).unwrap_or("").split(',').map(str::to_owned).collect();
    Some(MountLine {
        id,
        mount_point,
        shared: optional.iter().any(|field| field.starts_with("shared:")),
        slave: optional.iter().any(|field| field.starts_with("master:")),
        fstype,
        super_options,
    })
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let byte = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_shape() {
        let text = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n\
                    23 1 0:21 / /proc rw,relatime - proc proc rw\n\
                    29 23 0:26 / /a\\040b\\134c rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
                    nonsense\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!((mounts[0].id, mounts[0].shared, mounts[0].slave), (36, true, true));
        assert_eq!(
            (mounts[1].mount_point.as_str(), mounts[1].shared, mounts[1].slave),
            ("/proc", false, false)
        );
        assert_eq!(mounts[2].mount_point, "/a b\\c");
        assert_eq!(mounts[2].super_options, ["rw", "cpu", "cpuacct"]);
    }

    #[test]
    fn this_machine_has_a_root_mount() {
        assert!(read().unwrap().iter().any(|mount| mount.mount_point == "/"));
    }
}
