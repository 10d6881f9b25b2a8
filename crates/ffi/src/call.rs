//! Calling.

use std::ffi::c_char;
use std::time::Duration;

use bytes::Bytes;
use middlecon::Context;

use crate::Node;
use crate::error::{Error, Outcome};
use crate::raw::{Out, free, lent, slice, text, told};

/// For mc_call: where all places are taken, wait for one within the budget; else that is MC_CAUSE_BUSY.
pub const MC_WAIT_FOR_PLACE: u32 = 1;

/// A service, to be called. Many threads may use one at once: each call has a connection for itself, and
/// idle connections wait for the next call.
pub struct Service(middlecon::Service);

/// What a callee replied.
pub struct Reply(Bytes);

/// A service by its name: a-z, 0-9 and -, at most 63, a letter first. Nothing is asked yet: the first
/// call opens a connection.
///
/// # Safety
/// `node` is null or a connection that is not freed meanwhile; `name` is null or ends with a NUL;
/// `service` may be written to; `error` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_service_open(
    node: *const Node,
    name: *const c_char,
    service: *mut *mut Service,
    error: *mut *mut Error,
) -> Outcome {
    let open = || {
        // SAFETY: by this function's contract.
        let out = unsafe { Out::new(service, "service") }?;
        // SAFETY: by this function's contract.
        let node = unsafe { lent(node, "node") }?;
        // SAFETY: by this function's contract.
        let name = unsafe { text(name, "name") }?;
        out.give(Service(node.0.service(&parsed(name, "service")?)));
        Ok(())
    };
    // SAFETY: by this function's contract.
    unsafe { told(error, Error::bug, open) }
}

/// Frees a service, and its connections. Null is allowed.
///
/// # Safety
/// `service` is null or was given by mc_service_open, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_service_free(service: *mut Service) {
    // SAFETY: by this function's contract.
    unsafe { free(service) };
}

/// Calls a method, and waits for its reply for `budget_ms`, a day at most.
///
/// With 0 for `budget_ms` it may take what is left of the budget of the call that this thread handles, or
/// 30 s where it handles none. What is left there is never exceeded. `flags` is 0 or MC_WAIT_FOR_PLACE.
/// `body` is `body_len` bytes, 1 GiB at most; null if there are none. It is not kept.
///
/// With MC_OUTCOME_DONE there is a reply, also if it is empty, and no error; else there is an error and no
/// reply. The error says whether trying again is safe.
///
/// # Safety
/// `service` is null or a service that is not freed meanwhile; `method` is null or ends with a NUL; `body`
/// is null or has `body_len` bytes; `reply` may be written to; `error` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_call(
    service: *const Service,
    method: *const c_char,
    body: *const u8,
    body_len: usize,
    budget_ms: u64,
    flags: u32,
    reply: *mut *mut Reply,
    error: *mut *mut Error,
) -> Outcome {
    let call = || {
        // SAFETY: by this function's contract.
        let out = unsafe { Out::new(reply, "reply") }?;
        // SAFETY: by this function's contract.
        let service = unsafe { lent(service, "service") }?;
        // SAFETY: by this function's contract.
        let method = unsafe { text(method, "method") }?;
        // SAFETY: by this function's contract.
        let body = unsafe { slice(body, body_len, "body") }?;
        out.give(Reply(service.call(method, body, budget_ms, flags)?));
        Ok(())
    };
    // SAFETY: by this function's contract.
    unsafe { told(error, Error::bug_in_a_call, call) }
}

impl Service {
    fn call(&self, method: &str, body: &[u8], budget_ms: u64, flags: u32) -> Result<Bytes, Error> {
        let method = parsed(method, "method")?;
        if flags & !MC_WAIT_FOR_PLACE != 0 {
            return Err(Error::usage("`flags` has a bit that this library does not know"));
        }
        let mut request = self.0.request(&method);
        if flags & MC_WAIT_FOR_PLACE != 0 {
            request = request.wait_for_place();
        }
        let budget = (budget_ms != 0).then(|| Duration::from_millis(budget_ms));
        let result = match (budget, Context::current()) {
            (Some(budget), Some(_)) => request.budget(budget).call(body),
            // The root that a call gets by itself has 30 s, and a call never exceeds what is above it.
            (Some(budget), None) => Context::root(budget).enter(|| request.call(body)),
            (None, _) => request.call(body),
        };
        Ok(result?)
    }
}

/// The bytes of a reply, which live as long as it does. Never null, but for null.
///
/// # Safety
/// `reply` is null or was given by mc_call and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_reply_data(reply: *const Reply) -> *const u8 {
    // SAFETY: by this function's contract.
    unsafe { lent(reply, "reply") }.map_or(std::ptr::null(), |reply| reply.0.as_ptr())
}

/// How many bytes a reply has; 0 for null.
///
/// # Safety
/// `reply` is null or was given by mc_call and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_reply_len(reply: *const Reply) -> usize {
    // SAFETY: by this function's contract.
    unsafe { lent(reply, "reply") }.map_or(0, |reply| reply.0.len())
}

/// Frees a reply. Null is allowed.
///
/// # Safety
/// `reply` is null or was given by mc_call, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_reply_free(reply: *mut Reply) {
    // SAFETY: by this function's contract.
    unsafe { free(reply) };
}

/// A name that C passed, of this kind of thing.
pub(crate) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    kind: &str,
) -> Result<T, Error> {
    let escaped = name.escape_debug();
    name.parse().map_err(|why| Error::usage(format!("`{escaped}` is no name of a {kind}: {why}")))
}
