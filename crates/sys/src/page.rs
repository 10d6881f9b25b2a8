//! Memory that one process writes and others read, with nobody trusting anybody.
//!
//! An [`OwnPage`] is a sealed memfd: its writer has the only writable mapping there will ever be, and
//! nobody can shrink it under a reader, who would die of it. A [`PeerPage`] is the read-only side. The
//! peer may write at any time, so both move whole words atomically, copy bytes in and out, and never
//! lend a slice.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::thread::futex;
use rustix::time::Timespec;

const WORD_BYTES: usize = size_of::<AtomicU64>();

/// What a reader insists on: nobody maps it writable any more, and its size is what it is.
const SEALS: SealFlags =
    SealFlags::FUTURE_WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// A shared mapping of whole words, unmapped on drop.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: the mapping is owned by this value alone and reached only through atomic words.
unsafe impl Send for Mapping {}
// SAFETY: as above; atomic words may be used from many threads.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len_bytes` of `memory`, which must be sealed against shrinking and have that size.
    fn new(memory: &OwnedFd, len_bytes: usize, access: ProtFlags) -> io::Result<Mapping> {
        // SAFETY: the address is null, so the kernel picks a range that no reference covers. `memory` is
        // a memfd of `len_bytes`, sealed against shrinking by now or by its only holder before anybody
        // else has it, so all bytes stay backed. They are reached by atomic words only.
        let base = unsafe { mmap(null_mut(), len_bytes, access, MapFlags::SHARED, memory, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Mapping { base, len_bytes })
    }

    /// The word at `at_bytes`. Outside of the mapping, or not at a multiple of 8, is a bug of ours.
    #[inline]
    fn word(&self, at_bytes: usize) -> &AtomicU64 {
        assert!(at_bytes.is_multiple_of(WORD_BYTES) && at_bytes < self.len_bytes);
        // SAFETY: `at_bytes` is below the length, a multiple of the page size, so the sum is inside of the
        // mapping.
        let at = unsafe { self.base.add(at_bytes) };
        // SAFETY: `at` is 8-byte aligned (the mapping is page-aligned), within the mapping for all of its 8
        // bytes, and lives as long as `self`. Everybody, here and in the peer, reaches it as an atomic
        // word. In a read-only mapping it is only ever loaded: `PeerPage` has no other way.
        unsafe { at.cast::<AtomicU64>().as_ref() }
    }

    /// The words that hold `len_bytes` from `at_bytes` on, the last perhaps in part. Looked at once for all of
    /// them: this is what copies of large frames spend their time in.
    #[inline]
    fn words(&self, at_bytes: usize, len_bytes: usize) -> &[AtomicU64] {
        assert!(at_bytes.is_multiple_of(WORD_BYTES) && at_bytes <= self.len_bytes);
        assert!(len_bytes <= self.len_bytes - at_bytes);
        // SAFETY: `at_bytes` is at most the length of the mapping, so the sum is inside of it or at its end.
        let first = unsafe { self.base.add(at_bytes) };
        // SAFETY: as for `word`, for as many words as begin before `at_bytes + len_bytes`, which is within the
        // mapping; its length is a multiple of a word, so the last one is whole.
        unsafe { std::slice::from_raw_parts(first.cast().as_ptr(), len_bytes.div_ceil(WORD_BYTES)) }
    }

    /// The lower half of the word at `at_bytes`, for the kernel's futexes, which look at 32 bits.
    fn half(&self, at_bytes: usize) -> &AtomicU32 {
        let word: *const AtomicU64 = self.word(at_bytes);
        // SAFETY: a word is aligned and mapped as `word` says, so its first half is, too; on machines whose
        // first half is not the lower one nothing else of this crate's pages works. Only the kernel loads it.
        unsafe { &*word.cast::<AtomicU32>() }
    }

    fn copy_out(&self, at_bytes: usize, out: &mut [u8]) {
        let words = self.words(at_bytes, out.len());
        for (word, chunk) in words.iter().zip(out.chunks_mut(WORD_BYTES)) {
            let bytes = word.load(Ordering::Relaxed).to_le_bytes();
            match <&mut [u8; WORD_BYTES]>::try_from(&mut *chunk) {
                Ok(whole) => *whole = bytes,
                Err(_) => chunk.copy_from_slice(&bytes[..chunk.len()]),
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of `mmap`, nothing borrows from `self` any more, and nobody
        // unmaps it twice. The result is of no use: a mapping of ours is always there.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}

/// A page that this process writes and gives to others to read.
#[derive(Debug)]
pub struct OwnPage {
    mapping: Mapping,
    memory: OwnedFd,
}

impl OwnPage {
    /// A page of zeroes, sealed. `name` is what `/proc/PID/maps` shows. Memory is taken as it is written.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM`, or `EINVAL` from a kernel before 5.1, which has no such seal.
    pub fn new(name: &str, len_bytes: usize) -> io::Result<OwnPage> {
        let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&memory, len_bytes as u64)?;
        let mapping = Mapping::new(&memory, len_bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        fcntl_add_seals(&memory, SEALS)?;
        Ok(OwnPage { mapping, memory })
    }

    /// Bytes of the page.
    pub fn len_bytes(&self) -> usize {
        self.mapping.len_bytes
    }

    /// Reads the word at `at_bytes`, a multiple of 8 inside of the page.
    #[inline]
    pub fn load(&self, at_bytes: usize, ordering: Ordering) -> u64 {
        self.mapping.word(at_bytes).load(ordering)
    }

    /// Writes the word at `at_bytes`, a multiple of 8 inside of the page.
    #[inline]
    pub fn store(&self, at_bytes: usize, value: u64, ordering: Ordering) {
        self.mapping.word(at_bytes).store(value, ordering);
    }

    /// Adds to the word at `at_bytes` and says what it was.
    #[inline]
    pub fn add(&self, at_bytes: usize, value: u64) -> u64 {
        self.mapping.word(at_bytes).fetch_add(value, Ordering::Relaxed)
    }

    /// Copies bytes in, word by word; the last word is filled up with zeroes. `at_bytes` is a multiple of 8.
    pub fn copy_in(&self, at_bytes: usize, bytes: &[u8]) {
        let words = self.mapping.words(at_bytes, bytes.len());
        let (whole, rest) = bytes.as_chunks::<WORD_BYTES>();
        for (word, chunk) in words.iter().zip(whole) {
            word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
        }
        if let (Some(word), false) = (words.last(), rest.is_empty()) {
            let mut last = [0; WORD_BYTES];
            last[..rest.len()].copy_from_slice(rest);
            word.store(u64::from_le_bytes(last), Ordering::Relaxed);
        }
    }

    /// Wakes who sleeps in [`PeerPage::sleep`] on the word at `at_bytes`.
    ///
    /// # Errors
    /// None that a word of this page gives.
    pub fn wake(&self, at_bytes: usize) -> io::Result<()> {
        futex::wake(self.mapping.half(at_bytes), futex::Flags::empty(), u32::MAX)?;
        Ok(())
    }
}

impl AsFd for OwnPage {
    /// What others get: through it nobody can write any more.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

/// A page that another process writes.
#[derive(Debug)]
pub struct PeerPage {
    mapping: Mapping,
}

impl PeerPage {
    /// Maps a page that a peer has passed, after a look at its seals and its size. The descriptor is
    /// closed; the mapping needs it no more.
    ///
    /// # Errors
    /// `EINVAL` if it is no memfd, `EPERM` if a seal is missing, `EMSGSIZE` if it is not of `len_bytes`.
    pub fn new(memory: &OwnedFd, len_bytes: usize) -> io::Result<PeerPage> {
        if !fcntl_get_seals(memory)?.contains(SEALS) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        if fstat(memory)?.st_size as u64 != len_bytes as u64 {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        Ok(PeerPage { mapping: Mapping::new(memory, len_bytes, ProtFlags::READ)? })
    }

    /// Bytes of the page.
    pub fn len_bytes(&self) -> usize {
        self.mapping.len_bytes
    }

    /// Reads the word at `at_bytes`, a multiple of 8 inside of the page.
    #[inline]
    pub fn load(&self, at_bytes: usize, ordering: Ordering) -> u64 {
        self.mapping.word(at_bytes).load(ordering)
    }

    /// Sleeps until the peer wakes who sleeps here ([`OwnPage::wake`]), at most `wait`; not at all if the lower
    /// half of the word at `at_bytes` is not `value`. May wake for nothing: who does looks again.
    ///
    /// # Errors
    /// None that a word of this page gives.
    pub fn sleep(&self, at_bytes: usize, value: u32, wait: Duration) -> io::Result<()> {
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let half = self.mapping.half(at_bytes);
        match futex::wait(half, futex::Flags::empty(), value, Some(&wait)) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Copies `len_bytes` from `at_bytes` on, a multiple of 8, in place of what `bytes` holds, into memory that
    /// nobody clears for it.
    pub fn copy_into(&self, at_bytes: usize, len_bytes: usize, bytes: &mut Vec<u8>) {
        let words = self.mapping.words(at_bytes, len_bytes);
        bytes.clear();
        bytes.reserve(len_bytes.next_multiple_of(WORD_BYTES));
        for word in words {
            // There is room for all of them: this only writes.
            bytes.extend_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        bytes.truncate(len_bytes);
    }

    /// Copies bytes out, word by word. `at_bytes` is a multiple of 8.
    pub fn copy_out(&self, at_bytes: usize, out: &mut [u8]) {
        self.mapping.copy_out(at_bytes, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::write;

    fn dup(page: &OwnPage) -> OwnedFd {
        page.as_fd().try_clone_to_owned().expect("a descriptor")
    }

    #[test]
    fn what_one_writes_the_other_reads() {
        let own = OwnPage::new("test", 8192).expect("a page");
        let peer = PeerPage::new(&dup(&own), 8192).expect("sealed");
        own.store(8184, 7, Ordering::Release);
        assert_eq!(peer.load(8184, Ordering::Acquire), 7);
        for len_bytes in [0, 1, 7, 8, 9, 63, 64, 100] {
            let bytes: Vec<u8> = (1..=len_bytes).collect();
            own.copy_in(16, &bytes);
            let mut copy = vec![0; bytes.len()];
            peer.copy_out(16, &mut copy);
            assert_eq!(copy, bytes);
            let mut used = vec![9; 50];
            peer.copy_into(16, bytes.len(), &mut used);
            assert_eq!(used, bytes);
        }
        assert_eq!((own.add(0, 2), own.add(0, 1), peer.load(0, Ordering::Relaxed)), (0, 2, 3));
    }

    #[test]
    fn who_sleeps_is_woken_and_nobody_sleeps_on_what_has_changed() {
        let own = OwnPage::new("test", 4096).expect("a page");
        let peer = PeerPage::new(&dup(&own), 4096).expect("sealed");
        let long = Duration::from_secs(60);
        own.store(8, 1, Ordering::Release);
        peer.sleep(8, 0, long).expect("it has changed");
        peer.sleep(8, 1, Duration::from_millis(1)).expect("nobody wakes it in time");
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                while peer.load(8, Ordering::Acquire) == 1 {
                    peer.sleep(8, 1, long).expect("a page has futexes");
                }
            });
            own.store(8, 2, Ordering::Release);
            own.wake(8).expect("a page has futexes");
            sleeper.join().expect("no panic");
        });
    }

    #[test]
    fn nobody_else_writes_or_shrinks_it() {
        let own = OwnPage::new("test", 4096).expect("a page");
        let other = dup(&own);
        assert_eq!(ftruncate(&other, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(&other, 8192), Err(Errno::PERM));
        assert_eq!(write(&other, b"x"), Err(Errno::PERM));
        let map = Mapping::new(&other, 4096, ProtFlags::READ | ProtFlags::WRITE);
        assert_eq!(map.expect_err("sealed").raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn a_page_that_could_shrink_or_has_another_size_is_refused() {
        let plain = memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("a memfd");
        ftruncate(&plain, 4096).expect("it is ours");
        let error = PeerPage::new(&plain, 4096).expect_err("no seals");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        fcntl_add_seals(&plain, SealFlags::SHRINK | SealFlags::GROW).expect("it is ours");
        assert!(PeerPage::new(&plain, 4096).is_err(), "its owner could write it through others");
        let own = OwnPage::new("test", 4096).expect("a page");
        let error = PeerPage::new(&dup(&own), 8192).expect_err("too short");
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
        let file = std::fs::File::open("/dev/null").expect("it is always there");
        assert!(PeerPage::new(&file.into(), 4096).is_err());
    }

    #[test]
    #[should_panic(expected = "at_bytes")]
    fn no_word_outside_is_reached() {
        OwnPage::new("test", 4096).expect("a page").load(4096, Ordering::Relaxed);
    }
}
