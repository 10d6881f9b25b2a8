//! Whether this machine lets threads run when they want to.
//!
//! Nodes say that they live a few times a second. Where the machine keeps their processes waiting for
//! that long, they are as good as frozen, and what others say of them is right: a test that expects
//! them to be alive can judge nothing then. [`Pace`] notices.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often its thread wants to run.
const PERIOD: Duration = Duration::from_millis(100);

/// A machine that is never later than this keeps no process waiting for as long as a lease, 1.2 s,
/// even if two signs of life in a row are late.
pub const LATE_MAX: Duration = Duration::from_millis(400);

/// A thread that wants to run every 100 ms, and notes by how much it was late.
#[derive(Debug)]
pub struct Pace {
    /// Closed when it shall end.
    stop: Sender<()>,
    thread: JoinHandle<Duration>,
}

impl Pace {
    /// Starts to look.
    pub fn watch() -> Pace {
        let (stop, stopped) = channel::<()>();
        let look = move || {
            let mut latest = Duration::ZERO;
            loop {
                let began = Instant::now();
                let woken = stopped.recv_timeout(PERIOD);
                latest = latest.max(began.elapsed().saturating_sub(PERIOD));
                if woken == Err(RecvTimeoutError::Disconnected) {
                    return latest;
                }
            }
        };
        Pace { stop, thread: std::thread::spawn(look) }
    }

    /// Ends, and says by how much it was late at most.
    pub fn end(self) -> Duration {
        drop(self.stop);
        self.thread.join().expect("it only looks at clocks")
    }

    /// Ends, and says whether what was seen meanwhile can be judged; if not, it prints that.
    pub fn can_judge(self) -> bool {
        let late = self.end();
        if late > LATE_MAX {
            println!("this machine kept a thread waiting for {late:?}: what was seen says nothing");
        }
        late <= LATE_MAX
    }
}
