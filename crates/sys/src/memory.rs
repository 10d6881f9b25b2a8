//! Memory of this process.

/// Gives freed memory back to the kernel. Worth its milliseconds after a large, short-lived use.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: malloc_trim takes no pointer and touches only free blocks, under the allocator's
        // own locks (malloc_trim(3): MT-Safe). Its answer, whether anything was given back, changes
        // nothing for us.
        #[allow(unsafe_code)]
        unsafe {
            libc::malloc_trim(0);
        }
    }
}
