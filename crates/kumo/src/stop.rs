//! SIGINT and SIGTERM, for commands that end with care: heard by a thread instead of ending the process.

use std::io;
use std::process;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

/// How a shell sees a command that a signal has ended: 128 and the number of the signal.
const ENDED_BY_SIGNAL: i32 = 128;

/// Runs `first` when the first of these signals comes. The second ends the process at once, whatever it
/// waits for. To be called before other threads are started, which then do not hear them either.
///
/// # Errors
/// There is no thread to be had.
pub fn on_first(first: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.wait().is_ok() {
            first();
        }
        if let Ok(second) = signals.wait() {
            process::exit(ENDED_BY_SIGNAL + second as i32);
        }
    })?;
    Ok(())
}
