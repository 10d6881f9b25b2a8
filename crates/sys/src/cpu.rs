//! Which CPU a thread runs on.

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::io;

/// The CPU that this thread runs on now; it may run on another by the time you look.
#[inline]
pub fn current() -> usize {
    sched_getcpu()
}

/// The CPUs that this thread may run on.
///
/// # Errors
/// None that a kernel with fewer CPUs than `CpuSet::MAX_CPU` gives.
pub fn allowed() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Keeps this thread, and those it will start, to these CPUs.
///
/// # Errors
/// `EINVAL` if none of them is there or allowed; the thread is as it was.
pub fn keep_to(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_kept_where_it_shall_be() {
        std::thread::spawn(|| {
            let all = allowed().expect("it says");
            let last = *all.last().expect("one at least");
            keep_to(&[last]).expect("it may run there");
            assert_eq!((current(), allowed().expect("it says")), (last, vec![last]));
            assert!(keep_to(&[]).is_err());
        })
        .join()
        .expect("no panic");
    }
}
