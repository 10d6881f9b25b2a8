//! The signals that end a node, heard from before the first start to after the last stop.
//!
//! A node that reopens is gone for a moment. A signal of that moment must end the next one.

use std::io;
use std::thread;

use k2i::http::serve::StopSignals;
use tokio::runtime::Builder;
use tokio::sync::watch;

/// SIGINT and SIGTERM, which end the process no more.
#[derive(Debug)]
pub struct Signals {
    told: watch::Receiver<bool>,
}

impl Signals {
    /// Listens for them from now on.
    ///
    /// # Errors
    /// When the system lets us not.
    pub fn listen() -> io::Result<Signals> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _within = runtime.enter();
            StopSignals::listen()?
        };
        let (tell, told) = watch::channel(false);
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                // Not within the macro: it would wait only where the line is logged.
                let name = signals.next().await;
                tracing::info!("{name}: stopping");
                tell.send_replace(true);
                // Later ones change nothing, and the news stays.
                tell.closed().await;
            });
        })?;
        Ok(Signals { told })
    }

    /// Whether one has come.
    pub fn has_come(&self) -> bool {
        *self.told.borrow()
    }

    pub(crate) fn told(&self) -> watch::Receiver<bool> {
        self.told.clone()
    }
}
