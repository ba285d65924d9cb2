//! Descriptors that came with a request, by slot.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::failure::Failure;
use crate::plan::Slot;

/// The descriptors of one request.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    descriptors: Vec<OwnedFd>,
}

impl Slots {
    pub fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self { descriptors }
    }

    /// The descriptor of a slot; a slot that was not sent is the daemon's mistake.
    pub fn at(&self, slot: Slot) -> Result<BorrowedFd<'_>, Failure> {
        usize::try_from(slot).ok().and_then(|at| self.descriptors.get(at)).map(AsFd::as_fd).ok_or_else(|| {
            let message = format!("no descriptor in slot {slot} of {}", self.descriptors.len());
            Failure::refused("protocol", "", message)
        })
    }

    /// A descriptor that outlives the request.
    pub fn take(&self, slot: Slot) -> Result<OwnedFd, Failure> {
        let fd = self.at(slot)?;
        rustix::io::fcntl_dupfd_cloexec(fd, 3)
            .map_err(|errno| Failure::syscall("protocol", "fcntl", errno, "slot"))
    }

    pub fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd)
    }
}
