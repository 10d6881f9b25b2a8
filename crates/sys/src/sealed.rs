//! Bytes that nobody can change any more, passed by descriptor: large bodies without a copy in sockets.
#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// With these nothing about it changes.
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Puts bytes into sealed memory, to be passed to others.
///
/// # Errors
/// `EMFILE`, `ENOMEM`: nothing is left behind.
pub fn seal(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&memory, rest)?;
        rest = &rest[written..];
    }
    fcntl_add_seals(&memory, SEALS)?;
    Ok(memory)
}

/// Bytes in sealed memory that somebody passed. They are there, and the same, as long as this lives.
#[derive(Debug)]
pub struct Sealed {
    base: NonNull<u8>,
    len_bytes: usize,
    memory: OwnedFd,
}

// SAFETY: nobody can write to the bytes, here or elsewhere, so they may be read from any thread.
unsafe impl Send for Sealed {}
// SAFETY: as above.
unsafe impl Sync for Sealed {}

impl Sealed {
    /// Maps `len_bytes` that a peer says are in `memory`, after a look at its seals and its size.
    ///
    /// # Errors
    /// `EINVAL` if it is no memfd or `len_bytes` is 0, `EPERM` if a seal is missing, `EMSGSIZE` if it has
    /// another size.
    pub fn new(memory: OwnedFd, len_bytes: usize) -> io::Result<Sealed> {
        if !fcntl_get_seals(&memory)?.contains(SEALS) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        if fstat(&memory)?.st_size as u64 != len_bytes as u64 {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let (access, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: the address is null, so the kernel picks a range that no reference covers. The memory has
        // `len_bytes`, and its seals keep everybody, us too, from changing its size or its contents.
        let base = unsafe { mmap(null_mut(), len_bytes, access, flags, &memory, 0) }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Sealed { base, len_bytes, memory })
    }
}

impl Deref for Sealed {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has `len_bytes` readable bytes (`isize::MAX` is far: the kernel gave them), is
        // unmapped only on drop, and is sealed against writing, so no one changes what is borrowed here.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len_bytes) }
    }
}

impl AsRef<[u8]> for Sealed {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsFd for Sealed {
    /// To pass it on without a copy.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        // SAFETY: base and length are those of `mmap`; what was borrowed from `self` has ended.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn bytes_arrive_and_stay() {
        let bytes = vec![5; 100_001];
        let memory = seal("test", &bytes).expect("memory");
        assert_eq!(rustix::io::pwrite(&memory, b"x", 0), Err(Errno::PERM));
        let sealed = Sealed::new(memory, bytes.len()).expect("sealed");
        assert_eq!(*sealed, *bytes);
    }

    #[test]
    fn what_could_change_or_has_another_size_is_refused() {
        let plain = memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("a memfd");
        rustix::io::write(&plain, b"abc").expect("it is ours");
        let error = Sealed::new(plain, 3).expect_err("no seals");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        for len_bytes in [0, 2, 4, usize::MAX] {
            assert!(Sealed::new(seal("test", b"abc").expect("memory"), len_bytes).is_err());
        }
        assert!(Sealed::new(seal("test", b"").expect("memory"), 0).is_err(), "nothing to map");
    }
}
