//! One program, from its hello to its end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kumo_abi::call::{Cause, Who};
use kumo_abi::control::{FromNode, ToNode, VERSION};
use kumo_abi::page::program::{LEN_BYTES, MAGIC, MAGIC_AT};
use kumo_sys::PeerPage;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{sleep, timeout};

use super::line::{Line, Unheard};
use super::rules::limits::{Bucket, MESSAGES_OF_PROGRAM};
use super::rules::{Program, Refusal};
use super::state::{Held, Watched};
use super::still::is_exiting;
use super::{Shared, now, readiness};

/// Longest wait for a hello.
const HELLO_WAIT_MAX: Duration = Duration::from_secs(5);

/// A process that is on its way out has closed its sockets and is a moment later seen as ended. Longer
/// than this it does not take, unless the kernel is in trouble.
const EXIT_WAIT_MAX: Duration = Duration::from_secs(5);

/// Serves a program until it ends.
pub(super) async fn serve(shared: Arc<Shared>, socket: OwnedFd) {
    let peer = match kumo_sys::peer(&socket) {
        Ok(peer) => peer,
        Err(error) => {
            tracing::debug!("a program was gone before it was heard: {error}");
            return;
        }
    };
    let (pid, uid) = (peer.pid, peer.uid);
    let watched = readiness(Watched(peer.process), Interest::READABLE);
    let (line, process) = match (Line::new(socket), watched) {
        (Ok(line), Ok(process)) => (Arc::new(line), process),
        (Err(error), _) | (_, Err(error)) => {
            tracing::warn!("a program cannot be served: {error}");
            return;
        }
    };
    let (program, connected) = {
        let (mut state, now) = (shared.state(), now());
        let program = state.next_program();
        (program, state.broker.connect(program, uid, pid, now))
    };
    if let Err(refusal) = connected {
        tracing::warn!("program {pid} of user {uid} was refused: {}", refusal.message);
        let _ = line.tell(&refusal.to_program(0), None);
        return;
    }
    let serving = Serving { shared, program, line, process, pid, uid };
    let cause = tokio::select! {
        biased;
        () = serving.ended() => Cause::Died,
        cause = serving.run() => cause,
    };
    serving.end(cause);
}

struct Serving {
    shared: Arc<Shared>,
    program: Program,
    line: Arc<Line>,
    process: AsyncFd<Watched>,
    pid: u32,
    uid: u32,
}

impl Serving {
    /// Until its process has ended.
    async fn ended(&self) {
        // An error is that the runtime stops.
        let _ = self.process.readable().await;
    }

    async fn run(&self) -> Cause {
        match timeout(HELLO_WAIT_MAX, self.hello()).await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => {
                let Serving { pid, uid, .. } = self;
                tracing::warn!("program {pid} of user {uid} was refused: {}", refusal.message);
                let _ = self.line.tell(&refusal.to_program(0), None);
                return Cause::Lost;
            }
            Err(_) => {
                tracing::debug!("program {} said nothing", self.pid);
                return Cause::Lost;
            }
        }
        self.shared.came.notify_waiters();
        let unheard = tokio::select! {
            unheard = self.hear() => unheard,
            () = self.line.given_up() => {
                tracing::warn!("program {} does not read what its node says; it is let go", self.pid);
                return Cause::Lost;
            }
        };
        if !matches!(unheard, Unheard::Closed) {
            tracing::warn!("program {} of user {} is let go: {unheard}", self.pid, self.uid);
            return Cause::Lost;
        }
        // The kernel closes a process's sockets before it says that it has ended.
        if is_exiting(self.pid) && timeout(EXIT_WAIT_MAX, self.ended()).await.is_ok() {
            return Cause::Died;
        }
        Cause::Lost
    }

    /// Takes its hello and welcomes it.
    async fn hello(&self) -> Result<(), Refusal> {
        let malformed = |message: &str| Refusal::new(Cause::Malformed, message);
        let mut messages = Vec::with_capacity(1);
        let heard = self.line.hear(&mut messages).await;
        heard.map_err(|unheard| malformed(&unheard.to_string()))?;
        let mut messages = messages.into_iter();
        let page = match messages.next() {
            Some((ToNode::Hello { version: VERSION }, Some(page))) => page,
            Some((ToNode::Hello { version: VERSION }, None)) => {
                return Err(malformed("the hello came without the program's page"));
            }
            Some((ToNode::Hello { version }, _)) => {
                let message = format!(
                    "the program speaks version {version} and its node version {VERSION}; install what fits"
                );
                return Err(Refusal::new(Cause::Malformed, message));
            }
            _ => return Err(malformed("a program says hello first")),
        };
        let page = PeerPage::new(&page, LEN_BYTES).map_err(|error| {
            let message = format!("the program's page is not sealed, or of another size: {error}");
            Refusal::new(Cause::Malformed, message)
        })?;
        if page.load(MAGIC_AT, Ordering::Acquire) != MAGIC {
            return Err(malformed("the program's page does not say that it is one"));
        }
        let exhausted = |error: io::Error| {
            tracing::warn!("no page for program {}: {error}", self.pid);
            Refusal::new(Cause::Exhausted, "the node has no memory or descriptors for the program")
        };
        let held = Held::new(Arc::clone(&self.line), page).map_err(exhausted)?;
        let notices = held.notices_fd().map_err(exhausted)?;
        let (cluster, host) = self.shared.who();
        let welcome = FromNode::Welcome { cluster, host, who: Who::User(self.uid) };
        self.shared.state().hold(self.program, held);
        let told = self.line.tell(&welcome, Some(&notices));
        told.map_err(|_| exhausted(io::ErrorKind::WouldBlock.into()))?;
        // What it said in one breath with its hello.
        messages.for_each(|(message, fd)| self.shared.hear(self.program, message, fd));
        Ok(())
    }

    /// Hears what it says, as long as it reads what it is told, and no faster than it may.
    async fn hear(&self) -> Unheard {
        let mut bucket = Bucket::new(MESSAGES_OF_PROGRAM, now().ms);
        loop {
            // What waits for it is sent before more of it is heard.
            while !self.line.is_read() {
                self.line.flush().await;
            }
            let mut messages = Vec::new();
            let heard = tokio::select! {
                heard = self.line.hear(&mut messages) => heard,
                () = self.line.more() => continue,
            };
            for (message, fd) in messages {
                while let Err(after_ms) = bucket.take(now().ms) {
                    sleep(Duration::from_millis(after_ms.into())).await;
                }
                self.shared.hear(self.program, message, fd);
            }
            if let Err(unheard) = heard {
                return unheard;
            }
        }
    }

    /// Tells those who had to do with it.
    fn end(&self, cause: Cause) {
        self.shared.act(|broker, now, fresh| broker.gone(self.program, cause, now, fresh));
        self.shared.state().let_go(self.program);
    }
}
