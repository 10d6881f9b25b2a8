//! One peer link, from its handshake to its end.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kumo_abi::HostId;
use kumo_abi::cluster::Role;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::wire::{FRAME_BYTES_MAX, Failure, Frame, Way, What, decode, encode};
use super::{PEER_LINKS_MAX, PeerEvent, Shared, relay};
use crate::link::socket::{Held, Tcp};
use crate::link::{How, Welcome, expiry, lock};
use crate::pki::Peer;

/// Frames that wait to be written; who has more waits.
const QUEUE_MAX: usize = 256;

/// Questions of the other side that are worked on at once; more are refused.
const ASKS_MAX: usize = 512;

/// Notes that wait to be taken. Who does not take them loses the link rather than a note.
const NOTES_MAX: usize = 1_024;

/// An answer waits so long for a place in the queue. TCP gives up by then.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);

/// So long a good-bye may take.
const BYE_MAX: Duration = Duration::from_millis(500);

/// What is said to another host.
#[derive(Clone, Debug)]
pub(super) enum Saying {
    /// It is to answer.
    Ask(What),
    /// It is not.
    Note(Vec<u8>),
}

type Pending = HashMap<u64, oneshot::Sender<Result<Vec<u8>, Failure>>>;

/// An open link.
pub(super) struct Link {
    pub(super) number: u64,
    pub(super) peer: Peer,
    pub(super) dialed: bool,
    pub(super) tcp: Held,
    shared: std::sync::Weak<Shared>,
    out: mpsc::Sender<Vec<u8>>,
    /// Beats, and answers to them: written before all else.
    urgent: mpsc::Sender<Vec<u8>>,
    /// Who waits for answers; `None` once the link has ended.
    pending: Mutex<Option<Pending>>,
    next: AtomicU64,
    used_ms: AtomicU64,
    asks: Arc<Semaphore>,
    cut: watch::Sender<Option<How>>,
}

/// What a link is run with.
pub(super) struct Running {
    link: Arc<Link>,
    queued: mpsc::Receiver<Vec<u8>>,
    urgent: mpsc::Receiver<Vec<u8>>,
}

/// A question whose answer is waited for, until this is dropped.
struct Waiting<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(pending) = &mut *lock(&self.link.pending) {
            pending.remove(&self.id);
        }
    }
}

impl Link {
    /// Ends it, for this reason if it is the first.
    pub(super) fn cut(&self, how: How) {
        self.cut.send_if_modified(|cut| cut.is_none() && cut.replace(how).is_none());
    }

    /// When it was last used for something else than beats.
    pub(super) fn used_ms(&self) -> u64 {
        self.used_ms.load(Ordering::Relaxed)
    }

    fn used(&self) {
        if let Some(shared) = self.shared.upgrade() {
            self.used_ms.store(shared.now_ms(), Ordering::Relaxed);
        }
    }

    /// Asks the other side.
    ///
    /// # Errors
    /// [`Failure::NoRoute`] where nothing was sent.
    pub(super) async fn ask(
        &self,
        way: Way,
        what: What,
        wait: Duration,
    ) -> Result<Vec<u8>, Failure> {
        let until = Instant::now() + wait;
        let not_sent = |why: &str| Failure::NoRoute(why.to_owned());
        let queue = if what == What::Beat { &self.urgent } else { &self.out };
        if what != What::Beat {
            self.used();
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let budget_ms = wait.as_millis().try_into().unwrap_or(u32::MAX);
        let frame = encode(&Frame::Ask { id, budget_ms, way, what });
        let frame = frame.ok_or_else(|| not_sent("it is too large for one message"))?;
        // The place first: from here on it may be sent, and then the link's end is an answer.
        let Ok(place) = timeout_at(until, queue.reserve()).await else {
            return Err(not_sent("its link takes no more"));
        };
        let place = place.map_err(|_| not_sent("its link has just ended"))?;
        let (answered, answer) = oneshot::channel();
        match &mut *lock(&self.pending) {
            Some(pending) => pending.insert(id, answered),
            None => return Err(not_sent("its link has just ended")),
        };
        let _waiting = Waiting { link: self, id };
        place.send(frame);
        match timeout_at(until, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::Lost),
            Err(_) => Err(Failure::Late),
        }
    }

    /// Says something to the other side, and waits for its answer if there is one.
    ///
    /// # Errors
    /// [`Failure::NoRoute`] where nothing was sent.
    pub(super) async fn say(
        &self,
        way: Way,
        saying: Saying,
        wait: Duration,
    ) -> Result<Vec<u8>, Failure> {
        match saying {
            Saying::Ask(what) => self.ask(way, what, wait).await,
            Saying::Note(note) => self.note(way, note, wait).await.map(|()| Vec::new()),
        }
    }

    async fn note(&self, way: Way, note: Vec<u8>, wait: Duration) -> Result<(), Failure> {
        self.used();
        let frame = encode(&Frame::Note { way, note });
        let frame = frame.ok_or_else(|| Failure::NoRoute("it is too large".to_owned()))?;
        match timeout(wait, self.out.send(frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Failure::NoRoute("its link has just ended".to_owned())),
            Err(_) => Err(Failure::NoRoute("its link takes no more".to_owned())),
        }
    }

    async fn answer(&self, id: u64, answer: Result<Vec<u8>, Failure>) {
        let too_large = || Err(Failure::Refused("the answer is too large".to_owned()));
        let frame = encode(&Frame::Answer { id, answer });
        let frame = frame.or_else(|| encode(&Frame::Answer { id, answer: too_large() }));
        if let Some(frame) = frame {
            // Whoever waited is told by the end of the link.
            let _ = timeout(ANSWER_WAIT_MAX, self.out.send(frame)).await;
        }
    }
}

impl Shared {
    /// Puts a link on the list, where it is until what is returned has run.
    ///
    /// # Errors
    /// What is to be said to the other end.
    pub(super) fn register(
        self: &Arc<Self>,
        peer: Peer,
        dialed: bool,
        address: SocketAddr,
        tcp: &Tcp,
    ) -> Result<Running, Welcome> {
        let tcp = tcp.held().map_err(|_| Welcome::Busy)?;
        let mut live = lock(&self.live);
        if !dialed && live.accepted >= PEER_LINKS_MAX {
            drop(live);
            let whom = address.ip();
            self.say(
                &whom.to_string(),
                format_args!("{whom} was refused: {PEER_LINKS_MAX} links of calls are open"),
            );
            return Err(Welcome::Busy);
        }
        if self.evicted.load().contains(&peer.key_id) || *self.closing.borrow() {
            return Err(Welcome::NotReady);
        }
        let (out, queued) = mpsc::channel(QUEUE_MAX);
        let (urgent, hurries) = mpsc::channel(QUEUE_MAX);
        let number = live.next;
        live.next += 1;
        live.accepted += usize::from(!dialed);
        let link = Arc::new(Link {
            number,
            peer,
            dialed,
            tcp,
            shared: Arc::downgrade(self),
            out,
            urgent,
            pending: Mutex::new(Some(Pending::default())),
            next: AtomicU64::new(0),
            used_ms: AtomicU64::new(self.now_ms()),
            asks: Arc::new(Semaphore::new(ASKS_MAX)),
            cut: watch::Sender::new(None),
        });
        live.links.insert(number, Arc::clone(&link));
        drop(live);
        self.dials.opened(&link.peer.host, dialed.then_some(address));
        let _ = self.events.send(PeerEvent { host: link.peer.host.clone(), ended: None });
        tracing::debug!("call link {number} with {} at {address} is open", link.peer.host);
        Ok(Running { link, queued, urgent: hurries })
    }

    fn ended(&self, link: &Link, how: How) {
        let was_there = {
            let mut live = lock(&self.live);
            let was_there = live.links.remove(&link.number).is_some();
            live.accepted -= usize::from(was_there && !link.dialed);
            was_there
        };
        // Who waits for an answer learns of the end by this.
        let _ = lock(&link.pending).take();
        if was_there {
            let host = link.peer.host.clone();
            tracing::debug!("call link {} with {host} ended: {how:?}", link.number);
            let _ = self.events.send(PeerEvent { host, ended: Some(how) });
        }
    }
}

/// Takes the link from the list, whatever ends its task.
struct OnList<'a> {
    shared: &'a Shared,
    link: &'a Link,
}

impl Drop for OnList<'_> {
    fn drop(&mut self) {
        self.shared.ended(self.link, How::ByUs); // Nothing if it has ended.
    }
}

/// Serves a link until it ends.
pub(super) async fn run<S>(shared: Arc<Shared>, running: Running, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Running { link, queued, urgent } = running;
    let on_list = OnList { shared: &shared, link: &link };
    let mut is_cut = link.cut.subscribe();
    let (mut reading, mut writing) = split(stream);
    let how = tokio::select! {
        biased;
        _ = is_cut.wait_for(Option::is_some) => How::ByUs,
        () = expiry(link.peer.not_after_ms) => How::Expired,
        how = read(&shared, &link, &mut reading) => how,
        error = write(&mut writing, queued, urgent) => how_of(&error),
    };
    // What was cut also looks as if one side ended it.
    let how = link.cut.borrow().unwrap_or(how);
    shared.ended(&link, how);
    drop(on_list);
    if matches!(how, How::ByUs | How::Closed | How::Expired) {
        let mut stream = reading.unsplit(writing);
        let _ = timeout(BYE_MAX, stream.shutdown()).await; // It is closed in any case.
    }
}

async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    mut queued: mpsc::Receiver<Vec<u8>>,
    mut urgent: mpsc::Receiver<Vec<u8>>,
) -> io::Error {
    let mut written = async || -> io::Result<()> {
        loop {
            let frame = tokio::select! {
                biased;
                Some(frame) = urgent.recv() => frame,
                Some(frame) = queued.recv() => frame,
                // Both are kept open by the link.
                else => return Ok(()),
            };
            stream.write_all(&frame).await?;
            if urgent.is_empty() && queued.is_empty() {
                stream.flush().await?;
            }
        }
    };
    written().await.err().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
}

/// Reads frames until the link ends, and says how.
async fn read(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    stream: &mut (impl AsyncRead + Unpin),
) -> How {
    let (notes, taken) = mpsc::channel(NOTES_MAX);
    shared.spawn(take_notes(Arc::clone(shared), taken));
    let mut frame = Vec::new();
    loop {
        let mut len = [0; 4];
        match stream.read(&mut len[..1]).await {
            Ok(0) => return How::Closed,
            Ok(_) => {}
            Err(error) => return how_of(&error),
        }
        if let Err(error) = stream.read_exact(&mut len[1..]).await {
            return how_of(&error);
        }
        let len_bytes = u32::from_le_bytes(len) as usize;
        if len_bytes > FRAME_BYTES_MAX {
            return malformed(shared, link, "a frame is too large");
        }
        frame.clear();
        // Its room grows with what comes, not with what is promised.
        match (&mut *stream).take(len_bytes as u64).read_to_end(&mut frame).await {
            Ok(read) if read == len_bytes => {}
            Ok(_) => return How::ByPeer,
            Err(error) => return how_of(&error),
        }
        let Some(decoded) = decode(&frame) else {
            return malformed(shared, link, "a frame is none");
        };
        if frame.capacity() > 64 * 1024 {
            frame = Vec::new();
        }
        match decoded {
            Frame::Answer { id, answer } => {
                let waiting = lock(&link.pending).as_mut().and_then(|all| all.remove(&id));
                if let Some(waiting) = waiting {
                    let _ = waiting.send(answer); // Nobody waits any more.
                }
            }
            Frame::Ask { id, what: What::Beat, way: Way::Here | Way::For { .. }, .. } => {
                if let Some(beat) = encode(&Frame::Answer { id, answer: Ok(Vec::new()) }) {
                    // A full queue means that the other side does not read.
                    let _ = link.urgent.try_send(beat);
                }
            }
            Frame::Ask { id, budget_ms, way, what } => {
                link.used();
                let Ok(place) = Arc::clone(&link.asks).try_acquire_owned() else {
                    let busy = Failure::Refused(format!("{ASKS_MAX} questions are open already"));
                    if let Some(answer) = encode(&Frame::Answer { id, answer: Err(busy) }) {
                        let _ = link.out.try_send(answer);
                    }
                    continue;
                };
                // Beats that are passed on stay on the thread of the links.
                let on = if what == What::Beat { &shared.links_runtime } else { &shared.runtime };
                let (shared, link) = (Arc::clone(shared), Arc::clone(link));
                let on = on.clone();
                Arc::clone(&shared).spawn_on(&on, async move {
                    let wait = Duration::from_millis(budget_ms.into());
                    let serving = relay::serve(&shared, &link, way, what, wait);
                    if let Some(answer) = shared.unless_closing(serving).await {
                        link.answer(id, answer).await;
                    }
                    drop(place);
                });
            }
            Frame::Note { way, note } => {
                link.used();
                if notes.try_send((Arc::clone(link), way, note)).is_err() {
                    return malformed(shared, link, "its notes are more than can be taken");
                }
            }
        }
    }
}

fn malformed(shared: &Shared, link: &Link, what: &str) -> How {
    let host = &link.peer.host;
    shared.say(&host.to_string(), format_args!("the call link with {host} was closed: {what}"));
    How::ByUs
}

/// Takes the notes of a link in their order, until it ends.
async fn take_notes(shared: Arc<Shared>, mut notes: mpsc::Receiver<(Arc<Link>, Way, Vec<u8>)>) {
    while let Some((link, way, note)) = notes.recv().await {
        let from = match way {
            Way::Here => link.peer.host.clone(),
            Way::For { from } if link.peer.role == Role::Gateway => from,
            Way::For { .. } => continue,
            Way::On { to, from, hops } => {
                relay::pass_note(&shared, &link, to, from, hops, note).await;
                continue;
            }
        };
        take_note(&shared, from, note);
    }
}

/// Gives a note to who takes them.
pub(super) fn take_note(shared: &Shared, from: HostId, note: Vec<u8>) {
    let Some(answerer) = shared.answerer.load_full() else {
        tracing::debug!("a note of {from} came before anybody takes them");
        return;
    };
    answerer.note(from, note.into());
}

/// How a link ended that failed so.
fn how_of(error: &io::Error) -> How {
    use io::ErrorKind::{HostUnreachable, InvalidData, NetworkDown, NetworkUnreachable, TimedOut};
    match error.kind() {
        TimedOut | HostUnreachable | NetworkUnreachable | NetworkDown => How::Lost,
        InvalidData => How::Closed, // An alert of TLS.
        _ => How::ByPeer,
    }
}

impl Running {
    /// Ends a link that never ran.
    pub(super) fn end(self, shared: &Shared) {
        shared.ended(&self.link, How::Lost);
    }
}

/// Lets the thread of the links run one whose handshake was made elsewhere: its socket moves there.
pub(super) fn move_and_run<S>(
    shared: &Arc<Shared>,
    running: Running,
    stream: S,
    tcp: impl FnOnce(&mut S) -> &mut Tcp + Send + 'static,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let moved = Arc::clone(shared);
    let run = async move {
        let mut stream = stream;
        let place = tcp(&mut stream);
        match place.rehomed() {
            Ok(here) => *place = here,
            Err(error) => {
                tracing::warn!("a call link cannot be used: {error}");
                return running.end(&moved);
            }
        }
        run(moved, running, stream).await;
    };
    // Once it is closed no task runs any more, and the link goes with this one.
    shared.spawn_on(&shared.links_runtime, run);
}
