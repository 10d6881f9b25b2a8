//! What nested calls inherit, taken to other threads.

use std::ffi::c_void;

use crate::raw::{free, lent};

/// The context of a call that is being handled: its budget, its trace, the way it came, who waits for it.
/// Calls that a handler makes on its own thread have it by themselves.
pub struct Context(middlecon::Context);

/// The context that this thread is in, to take it to another; null if it is in none.
#[unsafe(no_mangle)]
pub extern "C" fn mc_context_current() -> *mut Context {
    let current = middlecon::Context::current();
    current.map_or(std::ptr::null_mut(), |current| Box::into_raw(Box::new(Context(current))))
}

/// Runs a function on this thread, in a context: calls that it makes are made for the call above. Without a
/// context (null) it is just run. `run` must not throw, jump out or end its thread.
///
/// # Safety
/// `context` is null or a context that is not freed meanwhile; `run` is null or may be called once with
/// `user_data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_context_run(
    context: *const Context,
    run: Option<unsafe extern "C" fn(*mut c_void)>,
    user_data: *mut c_void,
) {
    let Some(run) = run else { return };
    // SAFETY: by this function's contract.
    let context = unsafe { lent(context, "context") };
    // SAFETY: by this function's contract; it is called once, below.
    let run = || unsafe { run(user_data) };
    match context {
        Ok(context) => context.0.enter(run),
        Err(_) => run(),
    }
}

/// Frees a context. Null is allowed.
///
/// # Safety
/// `context` is null or was given by mc_context_current, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_context_free(context: *mut Context) {
    // SAFETY: by this function's contract.
    unsafe { free(context) };
}
