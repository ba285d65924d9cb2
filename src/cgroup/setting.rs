//! [`Setting`]: one value for one interface file; lists of them are written all or nothing.
//!
//! The kernel checks each file against its siblings (`memory.limit` against `memory.memsw.limit`, a quota
//! against its period and its parent), so the order that is right for growing is wrong for shrinking. Instead
//! of knowing every such pair, a list is written in passes: what is refused with EINVAL is tried again after
//! the others, until a pass makes no progress. On failure the old values are written back the same way.

use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::io::Errno;

use crate::error::{CgroupError, Result};
use crate::file;

/// What to do when the interface file does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absent {
    /// The limit would silently not hold: an error.
    Refuse,
    /// The limit is vacuous here, or a hint.
    Skip,
}

/// One value for one interface file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) controller: &'static str,
    pub(crate) file: String,
    pub(crate) value: String,
    pub(crate) absent: Absent,
    /// For files with a line per device: the line's key, and the value that means "no limit".
    pub(crate) line: Option<(String, &'static str)>,
}

impl Setting {
    pub(crate) fn new(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Self {
        Self { controller, file: file.into(), value: value.to_string(), absent: Absent::Refuse, line: None }
    }

    pub(crate) fn or_skip(self) -> Self {
        Self { absent: Absent::Skip, ..self }
    }

    /// A value of one device: `8:0 1048576`.
    pub(crate) fn per_device(self, key: String, unlimited: &'static str) -> Self {
        Self { line: Some((key, unlimited)), ..self }
    }

    /// What to write to get from now back to `before`, the file's contents.
    fn undo(&self, before: &str) -> Setting {
        let value = match &self.line {
            None => before.trim_end().to_owned(),
            Some((key, unlimited)) => {
                let prefix = format!("{key} ");
                let line = before.lines().find(|line| line.starts_with(&prefix));
                line.map_or_else(|| format!("{prefix}{unlimited}"), str::to_owned)
            }
        };
        // An empty write(2) does not reach the file; a newline clears a list.
        let value = if value.is_empty() { "\n".to_owned() } else { value };
        Setting { value, ..self.clone() }
    }
}

/// Where a controller's files of one cgroup are: the mount's descriptor and path, and the path below it.
pub(crate) struct Place<'a> {
    pub(crate) dir: BorrowedFd<'a>,
    pub(crate) relative: &'a str,
    pub(crate) base: &'a Path,
}

impl Place<'_> {
    fn below(&self, file: &str) -> String {
        format!("{}/{file}", self.relative)
    }
}

/// Whether old values must be kept: a fresh cgroup is removed when its limits fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Undo {
    Never,
    OnFailure,
}

/// Writes the list; `place` finds the directory of a controller, `None` when it is not mounted or enabled. Returns what
/// takes it back, in order, if old values are kept.
pub(crate) fn write_all<'a>(
    settings: &[Setting],
    undo: Undo,
    place: impl Fn(&'static str) -> Option<Place<'a>>,
) -> Result<Vec<Setting>> {
    let mut done: Vec<Setting> = Vec::new();
    let outcome = write_passes(
        settings,
        &place,
        |setting, before| {
            if undo == Undo::OnFailure {
                done.push(setting.undo(before));
            }
        },
        undo,
    );
    done.reverse();
    if outcome.is_err()
        && !done.is_empty()
        && let Err(error) = write_passes(&done, &place, |_, _| {}, Undo::Never)
    {
        tracing::warn!(%error, "old cgroup values could not be written back");
    }
    outcome.map(|()| done)
}

fn write_passes<'a>(
    settings: &[Setting],
    place: &impl Fn(&'static str) -> Option<Place<'a>>,
    mut written: impl FnMut(&Setting, &str),
    undo: Undo,
) -> Result<()> {
    let mut waiting: Vec<&Setting> = settings.iter().collect();
    loop {
        let before_pass = waiting.len();
        let mut refused: Vec<&Setting> = Vec::new();
        let mut first_refusal = None;
        for setting in waiting {
            let Some(place) = place(setting.controller) else {
                absent(setting, Path::new(setting.controller))?;
                continue;
            };
            let path = place.below(&setting.file);
            let before = if undo == Undo::OnFailure {
                file::read_text(place.dir, &path).unwrap_or_default()
            } else {
                String::new()
            };
            match file::write_text(place.dir, &path, &setting.value) {
                Ok(()) => written(setting, &before),
                Err(Errno::NOENT) => absent(setting, &place.base.join(place.relative))?,
                Err(errno) => {
                    let error = CgroupError::Write {
                        controller: setting.controller.to_owned(),
                        path: place.base.join(&path),
                        value: setting.value.clone(),
                        errno,
                    };
                    // EINVAL: perhaps only not yet. Anything else is final.
                    if errno != Errno::INVAL {
                        return Err(error);
                    }
                    first_refusal.get_or_insert(error);
                    refused.push(setting);
                }
            }
        }
        let Some(error) = first_refusal else { return Ok(()) };
        if refused.len() == before_pass {
            return Err(error);
        }
        waiting = refused;
    }
}

fn absent(setting: &Setting, directory: &Path) -> Result<()> {
    if setting.absent == Absent::Skip {
        tracing::debug!(
            controller = setting.controller,
            file = setting.file,
            "no such cgroup file, limit skipped"
        );
        return Ok(());
    }
    Err(CgroupError::ControllerUnavailable {
        controller: setting.controller.to_owned(),
        path: directory.join(&setting.file),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undo_restores_values_and_single_lines() {
        let plain = Setting::new("memory", "memory.max", 5);
        assert_eq!(plain.undo("max\n").value, "max");
        assert_eq!(plain.undo("").value, "\n");
        let device =
            Setting::new("blkio", "blkio.throttle.read_bps_device", "8:0 5").per_device("8:0".into(), "0");
        assert_eq!(device.undo("8:16 7\n8:0 9\n").value, "8:0 9");
        assert_eq!(device.undo("8:00 7\n").value, "8:0 0");
    }
}
