//! Waiting for a descriptor to become readable, for types that tokio has no own type for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Something with a descriptor, under the raw number that tokio asks for.
#[derive(Debug)]
pub struct Watched<T>(pub T);

impl<T: AsFd> AsRawFd for Watched<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers `inner`, which must keep one and the same descriptor for life, for readability.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that swap their descriptor; ours own one OwnedFd"
)]
pub fn readable<T: AsFd>(inner: T, what: &'static str) -> Result<AsyncFd<Watched<T>>, crate::error::Error> {
    let registered: io::Result<_> = AsyncFd::with_interest(Watched(inner), Interest::READABLE);
    registered.map_err(crate::error::Error::io("register", what))
}
