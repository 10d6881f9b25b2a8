//! What the kernel offers, found out by asking for it.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// `KVM_CREATE_VM` of `linux/kvm.h`: `_IO(0xAE, 0x01)`.
const KVM_CREATE_VM: libc::Ioctl = 0xAE01;

/// Whether a virtual machine can be made: makes one and drops it again. That `/dev/kvm` opens is not
/// enough, as inside of a virtual machine the CPU may still refuse.
///
/// # Errors
/// What the system says to opening `/dev/kvm` or to making the machine.
pub fn kvm() -> io::Result<()> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let (fd, default_type) = (kvm.as_raw_fd(), 0);
    // SAFETY: the descriptor is open while `kvm` lives, and this request takes a number, not a
    // pointer, so no memory of ours is touched.
    let machine = unsafe { libc::ioctl(fd, KVM_CREATE_VM, default_type) };
    if machine < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows of it.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
    Ok(())
}

/// Whether `io_uring` may be used: asks for a ring that cannot be made and looks at the answer.
///
/// # Errors
/// `ENOSYS` without it, `EPERM` when it is switched off or filtered away.
pub fn io_uring() -> io::Result<()> {
    let no_params: *const u8 = std::ptr::null();
    // SAFETY: the kernel checks the pointer and answers EFAULT; a ring of no entries would be
    // refused in any case, so neither memory nor a descriptor comes of this.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0_u32, no_params) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EFAULT | libc::EINVAL) => Ok(()),
        _ if result >= 0 => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_in_the_kernels_words() {
        for error in [kvm(), io_uring()].into_iter().filter_map(Result::err) {
            assert!(error.raw_os_error().is_some(), "{error}");
        }
    }
}
