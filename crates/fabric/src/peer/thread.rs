//! The thread that serves peer links: one for all of a process, with a raised priority.
//!
//! What runs on it is short: frames of links, and beats. A busy host must not keep it from answering, or
//! others would take the host for lost.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;

use rustix::process::setpriority_process;
use tokio::runtime::{Builder, Handle};

/// Its niceness where the system lets us: before what programs do, behind what the kernel does.
const NICE: i32 = -15;

static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);

/// The runtime of that thread, which is started by who asks first and lives as long as the process.
///
/// # Errors
/// The system lets us start no threads or open no descriptors.
pub(super) fn runtime() -> io::Result<Handle> {
    let mut started = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*started {
        return Ok(handle.clone());
    }
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let handle = runtime.handle().clone();
    thread::Builder::new().name("kumo-peers".to_owned()).spawn(move || {
        // In Linux this is about the calling thread alone.
        if let Err(error) = setpriority_process(None, NICE) {
            tracing::debug!("the links of calls run with the usual priority: {error}");
        }
        runtime.block_on(std::future::pending::<()>());
    })?;
    *started = Some(handle.clone());
    Ok(handle)
}
