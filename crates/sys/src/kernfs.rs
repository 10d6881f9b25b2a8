//! Directories of the kernel's own file systems, by their ids.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct file_handle` of `open_by_handle_at(2)` with the handle that kernfs makes: an id.
#[repr(C)]
struct Handle {
    len_bytes: u32,
    kind: i32,
    id: u64,
}

/// `FILEID_KERNFS` of the kernel's `exportfs.h`.
const KERNFS: i32 = 0xfe;

/// Opens the directory (or file) with this id, such as a control group, below the file system that
/// `mount` is of. The descriptor names it, and reads nothing of it.
///
/// # Errors
/// It is gone, it never was, or we may not: it wants `CAP_DAC_READ_SEARCH`.
pub fn open_by_id(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    let mut handle = Handle { len_bytes: size_of::<u64>() as u32, kind: KERNFS, id };
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: `handle` has the layout of `struct file_handle`, whose last field is an array of bytes
    // behind two 32-bit numbers; its length says that 8 of them follow, which `id` is. The kernel
    // reads it during the call only. `mount` is open for as long as it is borrowed.
    let fd = unsafe { libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
