//! Bytes of one stream on their way from a connection to whoever takes them: bounded, and lost with the client.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Bytes that may wait in one stream.
pub(crate) const LIMIT: usize = 128 * 1024;

/// The stream was reset, or its connection is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reset;

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    finished: bool,
    reset: bool,
    abandoned: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    readable: Notify,
    writable: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection's end. Dropping it before `finish` resets the stream.
#[derive(Debug)]
pub(crate) struct Sender(Arc<Shared>);

/// The taker's end. What comes after it was dropped is thrown away.
#[derive(Debug)]
pub(crate) struct Receiver(Arc<Shared>);

/// An empty queue.
pub(crate) fn queue() -> (Sender, Receiver) {
    let shared = Arc::new(Shared::default());
    (Sender(shared.clone()), Receiver(shared))
}

impl Sender {
    /// Puts in what there is room for, and says how much that was.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut state = self.0.lock();
        if state.abandoned || state.finished || state.reset {
            return bytes.len();
        }
        let taken = bytes.len().min(LIMIT.saturating_sub(state.bytes.len()));
        state.bytes.extend_from_slice(&bytes[..taken]);
        drop(state);
        self.0.readable.notify_one();
        taken
    }

    /// Waits until there may be room.
    pub async fn room(&self) {
        self.0.writable.notified().await;
    }

    /// No more will come.
    pub fn finish(&self) {
        self.0.lock().finished = true;
        self.0.readable.notify_one();
    }

    /// Ends the stream; what waits in it is thrown away.
    pub fn reset(&self) {
        {
            let mut state = self.0.lock();
            state.reset = true;
            state.bytes = Vec::new();
        }
        self.0.readable.notify_one();
    }

    /// Nobody takes from it and nothing comes any more.
    pub fn is_over(&self) -> bool {
        let state = self.0.lock();
        state.abandoned && (state.finished || state.reset)
    }

    /// Nobody takes from it.
    pub fn is_abandoned(&self) -> bool {
        self.0.lock().abandoned
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if !state.finished {
            state.reset = true;
        }
        drop(state);
        self.0.readable.notify_one();
    }
}

impl Receiver {
    /// Waits for bytes and swaps them for the contents of `chunk`; `false` after the last.
    pub async fn read(&mut self, chunk: &mut Vec<u8>) -> Result<bool, Reset> {
        loop {
            if let Some(outcome) = self.try_read(chunk) {
                return outcome;
            }
            self.0.readable.notified().await;
        }
    }

    /// Like [`Receiver::read`], `None` instead of waiting.
    pub fn try_read(&mut self, chunk: &mut Vec<u8>) -> Option<Result<bool, Reset>> {
        chunk.clear();
        let mut state = self.0.lock();
        if state.reset {
            return Some(Err(Reset));
        }
        if !state.bytes.is_empty() {
            mem::swap(&mut state.bytes, chunk);
            drop(state);
            self.0.writable.notify_one();
            return Some(Ok(true));
        }
        state.finished.then_some(Ok(false))
    }

    /// Waits until the stream is reset, which may be after its last byte.
    pub async fn until_reset(&self) {
        while !self.0.lock().reset {
            self.0.readable.notified().await;
        }
    }

    /// The peer has sent its last byte.
    pub fn is_finished(&self) -> bool {
        self.0.lock().finished
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        {
            let mut state = self.0.lock();
            state.abandoned = true;
            state.bytes = Vec::new();
        }
        self.0.writable.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_bounded_and_end() {
        let (sender, mut receiver) = queue();
        let bytes = vec![7; LIMIT + 5];
        assert_eq!(sender.push(&bytes), LIMIT);
        assert_eq!(sender.push(&bytes[LIMIT..]), 0);
        let mut chunk = vec![1, 2, 3];
        assert_eq!(receiver.read(&mut chunk).await, Ok(true));
        assert_eq!(chunk.len(), LIMIT);
        sender.room().await;
        assert_eq!(sender.push(&bytes[LIMIT..]), 5);
        sender.finish();
        drop(sender);
        assert_eq!(receiver.read(&mut chunk).await, Ok(true));
        assert_eq!(chunk, [7; 5]);
        assert_eq!(receiver.read(&mut chunk).await, Ok(false));
    }

    #[tokio::test]
    async fn a_lost_sender_resets_and_a_lost_receiver_takes_everything() {
        let (sender, mut receiver) = queue();
        sender.push(b"x");
        drop(sender);
        assert_eq!(receiver.read(&mut Vec::new()).await, Err(Reset));
        receiver.until_reset().await;
        let (sender, receiver) = queue();
        assert_eq!(sender.push(&vec![0; 2 * LIMIT]), LIMIT);
        drop(receiver);
        sender.room().await;
        assert_eq!(sender.push(&vec![0; 2 * LIMIT]), 2 * LIMIT);
        assert!(!sender.is_over());
        sender.finish();
        assert!(sender.is_over());
    }
}
