//! A disk that writes down what is done to it, and that can be set back to any moment.
//!
//! It is one file of a FUSE file system with a loop device on it; the server is a thread of this program. Nothing is
//! cached on the way: what the file system above submits arrives here as a write, what it flushes as a flush.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// The unit in which memory is kept.
pub const BLOCK: usize = 4096;
const MAX_WRITE: usize = 1 << 20;

/// What was done to the disk.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes were written at an offset; until the next flush the disk may still lose them.
    Write(u64, Arc<[u8]>),
    /// Everything written before is safe.
    Flush,
}

/// What the disk holds.
#[derive(Debug, Default)]
struct Content {
    base: Vec<u8>,
    changed: HashMap<u64, Box<[u8]>>,
    log: Vec<Event>,
}

impl Content {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut position = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (block, within) = (position / BLOCK as u64, position % BLOCK as u64);
            let within = usize::try_from(within).unwrap_or(0);
            let count = rest.len().min(BLOCK - within);
            let base = &self.base;
            let page = self.changed.entry(block).or_insert_with(|| base_block(base, block));
            page[within..within + count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            position += count as u64;
        }
    }

    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        let mut position = offset;
        while bytes.len() < length && position < self.base.len() as u64 {
            let (block, within) = (position / BLOCK as u64, position % BLOCK as u64);
            let within = usize::try_from(within).unwrap_or(0);
            let count = (length - bytes.len()).min(BLOCK - within);
            match self.changed.get(&block) {
                Some(page) => bytes.extend_from_slice(&page[within..within + count]),
                None => bytes.extend_from_slice(&base_block(&self.base, block)[within..within + count]),
            }
            position += count as u64;
        }
        bytes
    }
}

fn base_block(base: &[u8], block: u64) -> Box<[u8]> {
    let start = usize::try_from(block).unwrap_or(usize::MAX / BLOCK) * BLOCK;
    base.get(start..start + BLOCK).map_or_else(|| vec![0; BLOCK].into(), Into::into)
}

/// The server and its mount. Both end with this.
#[derive(Debug)]
pub struct Disk {
    content: Arc<Mutex<Content>>,
    file: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Disk {
    /// Serves a disk with that content on the file `at`, in the calling thread's mount namespace.
    pub fn serve(base: Vec<u8>, at: &Path) -> io::Result<Self> {
        let size = base.len() as u64;
        let content = Arc::new(Mutex::new(Content { base, ..Content::default() }));
        File::create(at)?;
        let channel = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", channel.as_raw_fd());
        let options = std::ffi::CString::new(options)?;
        mount("powercut", at, "fuse", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?;
        let shared = Arc::clone(&content);
        let server = std::thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || Server { channel, content: shared, size }.run())?;
        Ok(Self { content, file: at.to_owned(), server: Some(server) })
    }

    /// What was done since the last [`Disk::reset`]; the count grows while it is used.
    pub fn events(&self) -> usize {
        self.lock().log.len()
    }

    /// Takes the record.
    pub fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().log)
    }

    /// Forgets everything since the base, and applies these writes instead. Nothing must be mounted.
    pub fn reset<'a>(&self, writes: impl Iterator<Item = (u64, &'a [u8])>) {
        let mut content = self.lock();
        content.changed.clear();
        content.log.clear();
        for (offset, bytes) in writes {
            content.write(offset, bytes);
        }
    }

    /// Makes a write part of the base.
    pub fn settle(&self, offset: u64, bytes: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut content = self.lock();
        if let Some(place) = start.checked_add(bytes.len()).and_then(|end| content.base.get_mut(start..end)) {
            place.copy_from_slice(bytes);
        }
    }

    /// Mounts the file system on the disk.
    pub fn mount(&self, at: &Path) -> io::Result<Mounted> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&self.file).output()?;
        if !output.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        let device = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let mounted = Mounted { device, at: at.to_owned() };
        // Commits every second, so that much is only half-way committed when the power goes.
        mount(&mounted.device, at, "ext4", MountFlags::NOATIME, c"commit=1")?;
        Ok(mounted)
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _: Result<(), _> = unmount(&self.file, UnmountFlags::DETACH);
        if let Some(server) = self.server.take() {
            let _: Result<(), _> = server.join();
        }
    }
}

/// A mounted file system on a loop device. Both go with this.
#[derive(Debug)]
pub struct Mounted {
    device: PathBuf,
    at: PathBuf,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..200 {
            match unmount(&self.at, UnmountFlags::empty()) {
                Err(rustix::io::Errno::BUSY) => std::thread::sleep(std::time::Duration::from_millis(5)),
                _ => break,
            }
        }
        let _: io::Result<_> = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

struct Server {
    channel: OwnedFd,
    content: Arc<Mutex<Content>>,
    size: u64,
}

/// Operations and layouts: Linux `include/uapi/linux/fuse.h`.
mod op {
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
}
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
const BIG_WRITES: u32 = 1 << 5;
const MAX_PAGES: u32 = 1 << 22;
const DIRECT_IO: u32 = 1;
const ENOSYS: i32 = 38;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

impl Server {
    /// Answers until the file system is unmounted.
    fn run(self) {
        let mut buffer = vec![0; MAX_WRITE + 2 * BLOCK];
        loop {
            let count = match rustix::io::read(&self.channel, &mut buffer) {
                Ok(count) => count,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT) => continue,
                Err(_) => return,
            };
            let request = buffer.get(..count).unwrap_or_default();
            let (opcode, unique) = (u32_at(request, 4), u64_at(request, 8));
            let body = request.get(IN_HEADER..).unwrap_or_default();
            let (error, answer) = match self.answer(opcode, body) {
                Some(Ok(answer)) => (0, answer),
                Some(Err(error)) => (-error, Vec::new()),
                None => continue,
            };
            let length = u32::try_from(OUT_HEADER + answer.len()).unwrap_or(u32::MAX);
            let mut reply = Vec::with_capacity(OUT_HEADER + answer.len());
            reply.extend(length.to_ne_bytes());
            reply.extend(error.to_ne_bytes());
            reply.extend(unique.to_ne_bytes());
            reply.extend(answer);
            // Who asked may have gone meanwhile.
            let _: Result<usize, _> = rustix::io::write(&self.channel, &reply);
        }
    }

    fn answer(&self, opcode: u32, body: &[u8]) -> Option<Result<Vec<u8>, i32>> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Ok(match opcode {
            op::INIT => {
                let mut answer = Vec::new();
                for word in [7_u32, 31, 128 << 10, BIG_WRITES | MAX_PAGES] {
                    answer.extend(word.to_ne_bytes());
                }
                answer.extend([16_u16, 12].iter().flat_map(|half| half.to_ne_bytes()));
                answer.extend(u32::try_from(MAX_WRITE).unwrap_or(0).to_ne_bytes());
                answer.extend(1_u32.to_ne_bytes());
                answer.extend(u16::try_from(MAX_WRITE / BLOCK).unwrap_or(0).to_ne_bytes());
                answer.resize(64, 0);
                answer
            }
            op::GETATTR | op::SETATTR => {
                let mut answer = vec![0; 16];
                for word in [1, self.size, self.size / 512, 0, 0, 0] {
                    answer.extend(word.to_ne_bytes());
                }
                for word in [0_u32, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0] {
                    answer.extend(word.to_ne_bytes());
                }
                answer
            }
            op::OPEN => [&0_u64.to_ne_bytes()[..], &DIRECT_IO.to_ne_bytes(), &[0; 4]].concat(),
            op::READ => content.read(u64_at(body, 8), usize::try_from(u32_at(body, 16)).unwrap_or(0)),
            op::WRITE => {
                let (offset, size) = (u64_at(body, 8), u32_at(body, 16));
                let bytes = body.get(40..).unwrap_or_default();
                content.write(offset, bytes);
                content.log.push(Event::Write(offset, bytes.into()));
                [size.to_ne_bytes(), [0; 4]].concat()
            }
            op::FSYNC => {
                content.log.push(Event::Flush);
                Vec::new()
            }
            op::STATFS => vec![0; 80],
            op::RELEASE | op::FLUSH | op::DESTROY => Vec::new(),
            op::FORGET | op::BATCH_FORGET | op::INTERRUPT => return None,
            _ => return Some(Err(ENOSYS)),
        }))
    }
}
