//! What comes over the boundary: pointers become references, texts and slices here, or errors.
//!
//! Every function is unsafe for what it believes: that a pointer which is not null is what the header
//! says. What can be looked at (null, lengths, UTF-8) is looked at.

use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Outcome};

/// The value behind a handle that C lends.
///
/// # Safety
/// `handle` is null, or points to a `T` that stays, and that nobody changes, for `'a`.
pub(crate) unsafe fn lent<'a, T>(handle: *const T, what: &str) -> Result<&'a T, Error> {
    // SAFETY: by this function's contract it is null or points to a `T` that is good for `'a`.
    unsafe { handle.as_ref() }.ok_or_else(|| is_null(what))
}

/// The text that C lends.
///
/// # Safety
/// `text` is null, or ends with a NUL, and stays as it is for `'a`.
pub(crate) unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Error> {
    if text.is_null() {
        return Err(is_null(what));
    }
    // SAFETY: not null, and by this function's contract it ends with a NUL and stays for `'a`.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Error::usage(format!("`{what}` is not UTF-8")))
}

/// The values that C lends; null is none, if their number is 0.
///
/// # Safety
/// `first` is null, or the first of `len` values that stay as they are for `'a`.
pub(crate) unsafe fn slice<'a, T>(
    first: *const T,
    len: usize,
    what: &str,
) -> Result<&'a [T], Error> {
    if len == 0 {
        return Ok(&[]);
    }
    if first.is_null() || !first.is_aligned() {
        return Err(Error::usage(format!("`{what}` is null or not aligned, and its length not 0")));
    }
    if len.checked_mul(size_of::<T>().max(1)).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(Error::usage(format!("`{what}` is longer than memory can be")));
    }
    // SAFETY: not null, aligned, not above isize::MAX bytes; by this function's contract there are `len`
    // values that stay as they are for `'a`.
    Ok(unsafe { std::slice::from_raw_parts(first, len) })
}

/// Where a handle is to be written.
pub(crate) struct Out<'a, T>(&'a mut *mut T);

impl<'a, T> Out<'a, T> {
    /// Writes null there, for the case that there will be nothing.
    ///
    /// # Safety
    /// `at` is null, or may be written to and is used by nobody else for `'a`.
    pub(crate) unsafe fn new(at: *mut *mut T, what: &str) -> Result<Out<'a, T>, Error> {
        // SAFETY: by this function's contract.
        unsafe { Out::maybe(at) }.ok_or_else(|| is_null(what))
    }

    /// The same, where null means that nobody wants it.
    ///
    /// # Safety
    /// As for [`Out::new`].
    pub(crate) unsafe fn maybe(at: *mut *mut T) -> Option<Out<'a, T>> {
        if at.is_null() {
            return None;
        }
        // SAFETY: not null, and by this function's contract it may be written to. What stands there is not
        // read: C need not have set it.
        unsafe { at.write(std::ptr::null_mut()) };
        // SAFETY: not null, set just now, and nobody else's for `'a`.
        unsafe { at.as_mut() }.map(Out)
    }

    /// Gives the value away; [`free`] takes it back.
    pub(crate) fn give(self, value: T) {
        *self.0 = Box::into_raw(Box::new(value));
    }
}

/// Ends what was given away. Whatever its end panics with is lost: nobody could act on it.
///
/// # Safety
/// `handle` is null, or was given by [`Out::give`] or `Box::into_raw`, and nobody uses it any more.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if handle.is_null() {
        return;
    }
    // SAFETY: not null, so by this function's contract it was a box, and is one nobody's else.
    let value = unsafe { Box::from_raw(handle) };
    let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
}

/// Runs what a function of the interface does, and tells how it went. No panic passes.
///
/// # Safety
/// `error` is as for [`Out::new`].
pub(crate) unsafe fn told(
    error: *mut *mut Error,
    panicked: fn() -> Error,
    run: impl FnOnce() -> Result<(), Error>,
) -> Outcome {
    // SAFETY: by this function's contract.
    let out = unsafe { Out::maybe(error) };
    match catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(panicked())) {
        Ok(()) => Outcome::Done,
        Err(error) => {
            let outcome = error.outcome;
            if let Some(out) = out {
                out.give(error);
            }
            outcome
        }
    }
}

/// A text as C has it. A NUL inside would cut it, so another character stands for it.
pub(crate) fn c_string(text: &str) -> CString {
    let text = if text.contains('\0') { text.replace('\0', "\u{fffd}") } else { text.to_owned() };
    CString::new(text).unwrap_or_default()
}

fn is_null(what: &str) -> Error {
    Error::usage(format!("`{what}` is null"))
}
