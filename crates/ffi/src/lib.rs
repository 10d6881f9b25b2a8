//! middlecon for C, and for what can call C: the library `libmiddlecon` and its header.
//!
//! A thin shell: it turns handles, texts and lengths into values, calls the crate `middlecon`, and tells
//! how it went as an outcome and, for who wants it, an error. It decides nothing about calls. No panic
//! leaves it, and null, bad UTF-8 and bad names are errors. What the header cannot check is that a
//! pointer which is not null is good.
//!
//! `include/middlecon.h` is made of this crate's comments by cbindgen; a test compares. Like `sys`, this
//! crate has `unsafe` blocks: what a C program passes can only be believed. They are in functions of the
//! interface, and in `raw`, which turns pointers into what cannot be misused.
#![allow(unsafe_code, reason = "what C passes can only be believed; see above")]
#![allow(clippy::doc_markdown, reason = "the comments are those of a C header")]

pub mod call;
pub mod context;
pub mod error;
mod here;
mod raw;
pub mod serve;

use std::ffi::c_char;
use std::path::Path;
use std::sync::Arc;

pub use call::{Reply, Service};
pub use context::Context;
pub use error::{Cause, Error, Outcome};
use raw::{Out, free, text, told};
pub use serve::{Answer, Method, Request, ServeOptions, Server};

/// The version of this interface. Programs are linked to the library of one version, libmiddlecon.so.1;
/// within it, functions and constants are added and none is changed.
pub const MC_ABI_VERSION: u32 = 1;

/// A connection to the node of this host.
pub struct Node(middlecon::Node);

/// What handles are used for from several threads at once must allow it.
const fn for_many_threads<T: Send + Sync>() {}
const _: () = {
    for_many_threads::<Node>();
    for_many_threads::<Service>();
    for_many_threads::<Server>();
    for_many_threads::<Context>();
    for_many_threads::<Reply>();
    for_many_threads::<Error>();
};

/// The version of the library that is loaded; compare it with MC_ABI_VERSION where it is loaded by hand.
#[unsafe(no_mangle)]
pub extern "C" fn mc_abi_version() -> u32 {
    MC_ABI_VERSION
}

/// Connects to the node with this run directory; to that of the own user, else that of root, if it is
/// null. The connection outlives restarts of the node. One for a program is enough. Connect after fork(),
/// never before: threads are not copied.
///
/// MC_OUTCOME_NOT_EXECUTED with MC_CAUSE_NO_NODE if none answers.
///
/// # Safety
/// `run_dir` is null or ends with a NUL; `node` may be written to; `error` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_connect(
    run_dir: *const c_char,
    node: *mut *mut Node,
    error: *mut *mut Error,
) -> Outcome {
    let connect = || {
        // SAFETY: by this function's contract.
        let out = unsafe { Out::new(node, "node") }?;
        let connected = if run_dir.is_null() {
            here::connect()?
        } else {
            // SAFETY: by this function's contract.
            let dir = unsafe { text(run_dir, "run_dir") }?;
            middlecon::Node::connect(Path::new(dir))?
        };
        connected.secure_with(Arc::new(middlecon::OfCluster));
        out.give(Node(connected));
        Ok(())
    };
    // SAFETY: by this function's contract.
    unsafe { told(error, Error::bug, connect) }
}

/// Frees a connection. Null is allowed. What was made with it stays good, and keeps the connection until
/// it is freed, too.
///
/// # Safety
/// `node` is null or was given by mc_connect, and is not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mc_node_free(node: *mut Node) {
    // SAFETY: by this function's contract.
    unsafe { free(node) };
}
