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

/// Lets all threads share two areas of free memory, instead of up to eight for each CPU. A table that
/// one thread makes and another drops would else leave its room in each of them. Call it first.
pub fn share_areas() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: mallopt takes two numbers and sets a limit of the allocator under its own locks
        // (mallopt(3): MT-Safe once the allocator is set up, and it is before `main`). If it is
        // refused, everything works as before.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 2);
        }
    }
}
