//! Serving: C's functions as handlers.

use std::cell::OnceCell;
use std::ffi::{CString, c_char, c_void};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{CREDIT_MAX, ERROR_CODE_MAX, Peer, Reentrancy, SLOTS_MAX, Who};
use middlecon::{Call, Failure};

use crate::Node;
use crate::call::parsed;
use crate::error::{Error, Outcome};
use crate::raw::{Out, c_string, free, lent, slice, text, told};

/// For mc_serve_options: a call that came through this instance before is MC_CAUSE_CYCLE.
pub const MC_REENTRANCY_REJECT: u32 = 0;

/// For mc_serve_options: a call that came through this instance before runs at once, in the place of the
/// call above, which waits for it.
pub const MC_REENTRANCY_REENTER: u32 = 1;

/// For mc_serve_options: a call that came through this instance before is a call as any other.
pub const MC_REENTRANCY_ALLOW: u32 = 2;

/// For mc_answer_fail: the handler could not do its work because a call of its own did not succeed.
pub const MC_CODE_NESTED: u32 = 0xff_fffe;

/// The longest time to drain, as the longest budget: what `Instant` can add on any machine.
const DRAIN_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

const _: () = assert!(MC_CODE_NESTED == middlecon::CODE_NESTED);

/// What a server is set to. All 0 is the default.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ServeOptions {
    /// Handlers that run at once, 4,096 at most; one more for each hop of a chain is reserved. 0 is 64.
    pub slots: u16,
    /// Calls that may wait for a slot, 4,096 at most; more are MC_CAUSE_BUSY. 0 is 64.
    pub credit: u16,
    /// One of MC_REENTRANCY_*.
    pub reentrancy: u32,
}

/// A call that is handled. Good until its handler returns, on the handler's thread.
pub struct Request<'a> {
    body: Bytes,
    peer: &'a Peer,
    method: &'a str,
    context: &'a middlecon::Context,
    texts: Texts,
}

/// What C wants as texts is made when it asks.
#[derive(Default)]
struct Texts {
    method: OnceCell<CString>,
    peer: OnceCell<CString>,
    trace: OnceCell<CString>,
}

/// Where a handler puts its answer. If it puts none, the reply is empty; of several the last counts.
pub struct Answer(Said);

enum Said {
    Reply(Bytes),
    No(Failure),
    Crashed(String),
}

type Handler = unsafe extern "C" fn(*mut c_void, *const Request<'_>, *mut Answer);
type Release = unsafe extern "C" fn(*mut c_void);

/// A method of a server.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Method {
    /// Its name: a-z, 0-9, -, _ and ., at most 63, a letter first. Null is every method without a handler
    /// of its own.
    pub name: *const c_char,
    /// Called for each call, from many threads at once. It must not throw, jump out or end its thread.
    pub handler: Option<unsafe extern "C" fn(*mut c_void, *const Request<'_>, *mut Answer)>,
    /// Passed to the handler.
    pub user_data: *mut c_void,
    /// Called once with `user_data`, from any thread, when the handler will not be called any more; also if
    /// mc_serve fails, unless `methods` itself is null. May be null. After mc_server_free, handlers that
    /// were not over in time still run: this says when `user_data` may be freed.
    pub release: Option<unsafe extern "C" fn(*mut c_void)>,
}

/// A handler of C's with what belongs to it.
struct Handled {
    handler: Handler,
    owned: Owned,
}

/// What C is told to release when it is of no use any more.
struct Owned {
    user_data: *mut c_void,
    release: Option<Release>,
}

// SAFETY: the pointer is only passed to C's own functions, which by `mc_serve`'s contract may be called with
// it from any thread.
unsafe impl Send for Owned {}
// SAFETY: as above; by the same contract from many threads at once.
unsafe impl Sync for Owned {}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(release) = self.release {
            // SAFETY: by the contract of `mc_serve` it may be called once with this, from any thread, and a
            // value is dropped once. No handler can be called any more: each holds this value.
            unsafe { release(self.user_data) };
        }
    }
}

impl Handled {
    fn call(&self, call: &Call<'_>) -> Result<Bytes, Failure> {
        let request = Request {
            body: call.body.clone(),
            peer: call.peer,
            method: call.method,
            context: call.context,
            texts: Texts::default(),
        };
        let mut answer = Answer(Said::Reply(Bytes::new()));
        // SAFETY: by the contract of `mc_serve` it may be called with its user data from any thread. Both
        // handles are of values of ours that live until it returns, and as the header says it keeps none.
        unsafe { (self.handler)(self.owned.user_data, &raw const request, &raw mut answer) };
        match answer.0 {
            Said::Reply(body) => Ok(body),
            Said::No(failure) => Err(failure),
            // Caught where a panic of a handler is, and told in the same way; no message is printed here.
            Said::Crashed(message) => resume_unwind(Box::new(message)),
        }
    }
}

/// A server at work.
pub struct Server(middlecon::Server);

/// Serves a service, from now on, with these handlers. Each connection has a thread; `options` may be null.
///
/// MC_OUTCOME_NOT_EXECUTED if the node refuses or does not answer, with its cause.
///
/// # Safety
/// `node` is null or a connection that is not freed meanwhile; `service` is null or ends with a NUL;
/// `options` is null or good to read; `methods` is null or has `methods_len` methods, whose names are null or
/// end with a NUL, and whose functions may be called as their comments say; `server` may be written to;
/// `error` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_serve(
    node: *const Node,
    service: *const c_char,
    options: *const ServeOptions,
    methods: *const Method,
    methods_len: usize,
    server: *mut *mut Server,
    error: *mut *mut Error,
) -> Outcome {
    let serve = || {
        // SAFETY: by this function's contract.
        let methods = unsafe { slice(methods, methods_len, "methods") }?;
        // From here on each has an owner that releases it, whatever goes wrong.
        let owned: Vec<Owned> = methods
            .iter()
            .map(|&Method { user_data, release, .. }| Owned { user_data, release })
            .collect();
        // SAFETY: by this function's contract.
        let out = unsafe { Out::new(server, "server") }?;
        // SAFETY: by this function's contract.
        let node = unsafe { lent(node, "node") }?;
        // SAFETY: by this function's contract.
        let service = unsafe { text(service, "service") }?;
        let options = if options.is_null() {
            ServeOptions::default()
        } else {
            // SAFETY: by this function's contract.
            *unsafe { lent(options, "options") }?
        };
        let mut named = Vec::with_capacity(methods.len());
        for (method, owned) in methods.iter().zip(owned) {
            let handler = method.handler.ok_or_else(|| Error::usage("a `handler` is null"))?;
            let name = if method.name.is_null() {
                None
            } else {
                // SAFETY: by this function's contract.
                Some(unsafe { text(method.name, "name") }?)
            };
            named.push((name, Handled { handler, owned }));
        }
        out.give(Server(start(node, service, options, named)?));
        Ok(())
    };
    // SAFETY: by this function's contract.
    unsafe { told(error, Error::bug, serve) }
}

fn start(
    node: &Node,
    service: &str,
    options: ServeOptions,
    methods: Vec<(Option<&str>, Handled)>,
) -> Result<middlecon::Server, Error> {
    let reentrancy = match options.reentrancy {
        MC_REENTRANCY_REJECT => Reentrancy::Reject,
        MC_REENTRANCY_REENTER => Reentrancy::Reenter,
        MC_REENTRANCY_ALLOW => Reentrancy::Allow,
        _ => return Err(Error::usage("`reentrancy` is none of MC_REENTRANCY_*")),
    };
    if options.slots > SLOTS_MAX || options.credit > CREDIT_MAX {
        let what = format!("`slots` is at most {SLOTS_MAX}, `credit` at most {CREDIT_MAX}");
        return Err(Error::usage(what));
    }
    if methods.is_empty() {
        return Err(Error::usage("a server without a method serves nobody"));
    }
    let mut builder = node.0.serve(&parsed(service, "service")?).reentrancy(reentrancy);
    if options.slots != 0 {
        builder = builder.slots(options.slots);
    }
    if options.credit != 0 {
        builder = builder.credit(options.credit);
    }
    let mut seen: Vec<Option<kumo_abi::call::Method>> = Vec::with_capacity(methods.len());
    for (name, handled) in methods {
        let name = name.map(|name| parsed::<kumo_abi::call::Method>(name, "method")).transpose()?;
        let number = name.as_ref().map(kumo_abi::call::Method::number);
        if let Some(former) =
            seen.iter().find(|former| former.as_ref().map(kumo_abi::call::Method::number) == number)
        {
            return Err(twice(former.as_ref(), name.as_ref()));
        }
        seen.push(name.clone());
        let handled = Arc::new(handled);
        builder = match name {
            Some(name) => builder.method(&name, move |call| handled.call(call)),
            None => builder.any(move |call| handled.call(call)),
        };
    }
    Ok(builder.start()?)
}

fn twice(former: Option<&kumo_abi::call::Method>, name: Option<&kumo_abi::call::Method>) -> Error {
    match (former, name) {
        (Some(former), Some(name)) if former != name => {
            Error::usage(format!("`{former}` and `{name}` have one number; rename one"))
        }
        (_, Some(name)) => Error::usage(format!("`{name}` has two handlers")),
        (_, None) => Error::usage("there are two handlers for all other methods"),
    }
}

/// Takes no new calls, finishes those at work, and ends. False if some were not over within `within_ms`:
/// their connections are ended, so that their callers learn of it. The server is still to be freed. A
/// handler that drains its own server waits for itself until the time is over.
///
/// # Safety
/// `server` is null or a server that is not freed meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_drain(server: *const Server, within_ms: u64) -> bool {
    // SAFETY: by this function's contract.
    let server = unsafe { lent(server, "server") };
    let within = Duration::from_millis(within_ms.min(DRAIN_MS_MAX));
    let drain = || server.is_ok_and(|server| server.0.drain(within));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(drain)).unwrap_or(false)
}

/// Frees a server. If it was not drained, it is, for a second at most. Null is allowed.
///
/// # Safety
/// `server` is null or was given by mc_serve, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_server_free(server: *mut Server) {
    // SAFETY: by this function's contract.
    unsafe { free(server) };
}

/// Which method is called; empty for null. It lives as long as the request.
///
/// # Safety
/// `request` is null or that of the handler which runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_request_method(request: *const Request<'_>) -> *const c_char {
    // SAFETY: by this function's contract.
    let request = unsafe { lent(request, "request") };
    request.map_or(c"".as_ptr(), |it| it.texts.method.get_or_init(|| c_string(it.method)).as_ptr())
}

/// Who calls, as the nodes say: `tokyo/web-1/user/1000` or `tokyo/web-1/service/web`; empty for null. It
/// lives as long as the request.
///
/// # Safety
/// `request` is null or that of the handler which runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_request_peer(request: *const Request<'_>) -> *const c_char {
    // SAFETY: by this function's contract.
    let request = unsafe { lent(request, "request") };
    request.map_or(c"".as_ptr(), |it| {
        it.texts.peer.get_or_init(|| c_string(&peer_text(it.peer))).as_ptr()
    })
}

/// The trace that the call is part of, 32 hexadecimal digits; empty for null. It lives as long as the
/// request.
///
/// # Safety
/// `request` is null or that of the handler which runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_request_trace(request: *const Request<'_>) -> *const c_char {
    // SAFETY: by this function's contract.
    let request = unsafe { lent(request, "request") };
    request.map_or(c"".as_ptr(), |it| {
        it.texts.trace.get_or_init(|| c_string(&it.context.trace().to_string())).as_ptr()
    })
}

/// What was sent, as many bytes as mc_request_len says. They live as long as the request.
///
/// # Safety
/// `request` is null or that of the handler which runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_request_data(request: *const Request<'_>) -> *const u8 {
    // SAFETY: by this function's contract.
    let request = unsafe { lent(request, "request") };
    request.map_or(std::ptr::null(), |request| request.body.as_ptr())
}

/// How many bytes were sent; 0 for null.
///
/// # Safety
/// `request` is null or that of the handler which runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_request_len(request: *const Request<'_>) -> usize {
    // SAFETY: by this function's contract.
    unsafe { lent(request, "request") }.map_or(0, |request| request.body.len())
}

/// For how many milliseconds the caller still waits; 0 for null.
///
/// # Safety
/// `request` is null or that of the handler which runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_request_left_ms(request: *const Request<'_>) -> u64 {
    // SAFETY: by this function's contract.
    let request = unsafe { lent(request, "request") };
    request.map_or(0, |it| u64::try_from(it.context.left().as_millis()).unwrap_or(u64::MAX))
}

/// Whether nobody waits any more: the caller has gone or given up, or the budget is spent. For handlers that
/// work for long without a call of their own. True for null.
///
/// # Safety
/// `request` is null or that of the handler which runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_request_is_over(request: *const Request<'_>) -> bool {
    // SAFETY: by this function's contract.
    unsafe { lent(request, "request") }.map_or(true, |request| request.context.is_over())
}

/// Replies with a copy of these bytes; null if there are none.
///
/// # Safety
/// `answer` is null or that of the handler which runs; `body` is null or has `body_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_answer_reply(
    answer: *mut Answer,
    body: *const u8,
    body_len: usize,
) -> Outcome {
    let reply = || {
        // SAFETY: by this function's contract.
        let body = unsafe { slice(body, body_len, "body") }?;
        Ok(Said::Reply(Bytes::copy_from_slice(body)))
    };
    // SAFETY: by this function's contract.
    unsafe { put(answer, reply) }
}

/// Says no, with a code of the callee's own, below 2^24, and words for people, of which 4 KiB travel.
///
/// # Safety
/// `answer` is null or that of the handler which runs; `message` is null or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_answer_fail(
    answer: *mut Answer,
    code: u32,
    message: *const c_char,
) -> Outcome {
    let fail = || {
        if code > ERROR_CODE_MAX {
            return Err(Error::usage(format!("`code` is at most {ERROR_CODE_MAX}")));
        }
        // SAFETY: by this function's contract.
        let message = unsafe { text(message, "message") }?;
        Ok(Said::No(Failure::new(code, message)))
    };
    // SAFETY: by this function's contract.
    unsafe { put(answer, fail) }
}

/// Says that the handler crashed, if its language can say so: the caller is told MC_OUTCOME_UNKNOWN with
/// MC_CAUSE_PANIC, for nobody knows what it had done by then.
///
/// # Safety
/// `answer` is null or that of the handler which runs; `message` is null or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_answer_crash(answer: *mut Answer, message: *const c_char) -> Outcome {
    let crash = || {
        // SAFETY: by this function's contract.
        Ok(Said::Crashed(unsafe { text(message, "message") }?.to_owned()))
    };
    // SAFETY: by this function's contract.
    unsafe { put(answer, crash) }
}

/// Puts an answer, if it is one.
///
/// # Safety
/// `answer` is null or that of a handler which runs on this thread.
unsafe fn put(answer: *mut Answer, said: impl FnOnce() -> Result<Said, Error>) -> Outcome {
    let put = || {
        let said = said()?;
        // SAFETY: by this function's contract it is null, or of `Handled::call` above us on this thread,
        // which does not touch it before the handler returns.
        let answer = unsafe { answer.as_mut() };
        answer.ok_or_else(|| Error::usage("`answer` is null"))?.0 = said;
        Ok(())
    };
    // SAFETY: null is allowed.
    unsafe { told(std::ptr::null_mut(), Error::bug, put) }
}

fn peer_text(peer: &Peer) -> String {
    match &peer.who {
        Who::Service(service) => format!("{}/service/{service}", peer.host),
        Who::User(uid) => format!("{}/user/{uid}", peer.host),
    }
}
