//! The full screen: the terminal, the threads and the clock around the plain parts.
//!
//! The thread of the view waits for messages: keys from one thread, answers from another, signals
//! from a third. It never asks the source itself, so keys work while a source is slow or silent. The
//! terminal is given back whatever ends the view: a key, an error, a signal or a panic.

use std::io::{self, Stdout, Write as _, stdout};
use std::sync::Once;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crossterm::cursor::Show;
use crossterm::event::{
    DisableBracketedPaste, EnableBracketedPaste, Event as TerminalEvent, KeyEventKind,
};
use crossterm::execute;
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use k2i::signal::{self, Signal};
use kumo_abi::HostId;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Position, Rect};
use rustix::process::{Signal as Known, getpid, kill_process};
use tokio::signal::unix::{SignalKind, signal as listen};

use super::data::{Key, Request, Snapshot};
use super::fetch::Fetcher;
use super::pace::Pace;
use super::state::State;
use super::update::{Effect, Event, update};
use super::view;
use crate::chain;
use crate::error::CommandError;
use crate::kill;
use crate::source::Source;

/// Messages that wait for the view. Who sends more waits, and keys are then read later, never lost.
const MESSAGES_MAX: usize = 64;

/// The age of the data is shown in seconds, so it is drawn again after one.
const DRAW_TIME_MAX: Duration = Duration::from_secs(1);

/// What the other threads say.
enum Message {
    Terminal(TerminalEvent),
    Answer(Result<Box<Snapshot>, String>),
    /// What became of a signal to a process of another host.
    Sent(Key, Signal, Result<(), String>),
    /// A signal asks us to end.
    End,
    /// A thread is gone, and we cannot go on without it.
    Lost(&'static str),
}

/// Shows `state` until the user leaves, or until `readings_max` answers have been shown.
///
/// # Errors
/// The terminal cannot be used.
pub(super) fn run(
    mut state: State,
    fetcher: Fetcher,
    far: Option<&Far>,
    readings_max: Option<u64>,
) -> Result<(), CommandError> {
    let started = Instant::now();
    let (send, messages) = sync_channel(MESSAGES_MAX);
    // Signals first: from here on none of them leaves the terminal as it is then.
    watch_signals(send.clone())?;
    let mut screen = Screen::enter()?;
    watch_terminal(send.clone())?;
    let questions = answer_questions(fetcher, started, send.clone())?;
    let mut pace = Pace::default();
    let mut readings = 0;
    loop {
        let now = started.elapsed();
        let request = state.request();
        // The past does not change: it is asked again when another moment of it is wanted.
        let still = state.paused || state.replay.is_some();
        if pace.ask(now, &request, state.delay, still) && questions.send(request).is_err() {
            return Err(lost("the thread that asks for data has ended"));
        }
        screen.terminal.draw(|frame| view::draw(&state, frame))?;
        let rest = match state.replay {
            Some(_) => state.delay,
            None => pace.rest(now, state.delay, state.paused).unwrap_or(DRAW_TIME_MAX),
        };
        let mut next = receive(&messages, rest.min(DRAW_TIME_MAX))?;
        // What has come meanwhile is handled before the next drawing, at most a channel full.
        for _ in 0..MESSAGES_MAX {
            let now = started.elapsed();
            let event = match next {
                None => Event::Tick,
                Some(Message::Terminal(event)) => match translate(event) {
                    Some(event) => event,
                    None => Event::Tick,
                },
                Some(Message::Answer(answer)) => {
                    pace.answered();
                    readings += 1;
                    match answer {
                        Ok(snapshot) => Event::Data(snapshot),
                        Err(error) => Event::Failed(error),
                    }
                }
                Some(Message::Sent(id, signal, result)) => Event::Sent { id, signal, result },
                Some(Message::End) => return Ok(()),
                Some(Message::Lost(what)) => return Err(lost(what)),
            };
            let mut effect = update(&mut state, now, event);
            while let Some(todo) = effect.take() {
                match todo {
                    Effect::Quit => return Ok(()),
                    Effect::Suspend => screen.suspend()?,
                    Effect::Redraw => screen.redraw()?,
                    Effect::Refresh => pace.hurry(),
                    Effect::Send(id, signal) => {
                        let result = match far {
                            None => {
                                let sent = signal::send(id.process(), signal);
                                Some(sent.map_err(|error| chain(&error)))
                            }
                            Some(far) => {
                                let host = state.host(id.place).cloned();
                                far.send(host, id, signal, &send).err().map(Err)
                            }
                        };
                        if let Some(result) = result {
                            let sent = Event::Sent { id, signal, result };
                            effect = update(&mut state, started.elapsed(), sent);
                        }
                    }
                }
            }
            match messages.try_recv() {
                Ok(message) => next = Some(message),
                Err(_) => break,
            }
        }
        if readings_max.is_some_and(|max| readings >= max) {
            screen.terminal.draw(|frame| view::draw(&state, frame))?;
            return Ok(());
        }
    }
}

/// The way to the nodes that send signals to processes of other hosts.
pub(super) struct Far {
    /// Who is asked.
    pub(super) source: Source,
    /// How long the other host is waited for.
    pub(super) wait: Duration,
}

impl Far {
    /// Has a signal sent by a thread of its own, which tells later what became of it.
    fn send(
        &self,
        host: Option<HostId>,
        id: Key,
        signal: Signal,
        send: &SyncSender<Message>,
    ) -> Result<(), String> {
        let host = host.ok_or("its host is not known; nothing was sent")?;
        let source = self.source.another().map_err(|error| chain(&error))?;
        let source = source.ok_or("there is no node to ask; nothing was sent")?;
        let (send, wait) = (send.clone(), self.wait);
        let body = move || {
            let result = kill::send_to(&source, &host, id.process(), signal, wait);
            // The view may have ended before.
            send.send(Message::Sent(id, signal, result)).ok();
        };
        spawn("top-signal", body).map_err(|error| format!("nothing was sent: {error}"))
    }
}

fn lost(what: &'static str) -> CommandError {
    CommandError::Output(io::Error::other(what))
}

fn receive(messages: &Receiver<Message>, wait: Duration) -> Result<Option<Message>, CommandError> {
    match messages.recv_timeout(wait) {
        Ok(message) => Ok(Some(message)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(lost("all other threads have ended")),
    }
}

fn translate(event: TerminalEvent) -> Option<Event> {
    match event {
        TerminalEvent::Key(key) if key.kind != KeyEventKind::Release => Some(Event::Key(key)),
        TerminalEvent::Paste(text) => Some(Event::Paste(text)),
        TerminalEvent::Resize(columns, rows) => Some(Event::Resize(columns, rows)),
        _ => None,
    }
}

/// Says that a thread has ended, also by a panic.
struct Farewell {
    send: SyncSender<Message>,
    what: &'static str,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // The view may have ended before us: nobody is left to be told.
        self.send.send(Message::Lost(self.what)).ok();
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop)
}

/// Reads keys. The thread blocks in the terminal, so it is not waited for at the end.
fn watch_terminal(send: SyncSender<Message>) -> io::Result<()> {
    spawn("top-keys", move || {
        let farewell = Farewell { send, what: "the terminal cannot be read any more" };
        while let Ok(event) = crossterm::event::read() {
            if farewell.send.send(Message::Terminal(event)).is_err() {
                return;
            }
        }
    })
}

/// Answers questions one after the other. A source may be silent for long, so the thread is not
/// waited for at the end.
fn answer_questions(
    mut fetcher: Fetcher,
    started: Instant,
    send: SyncSender<Message>,
) -> io::Result<SyncSender<Request>> {
    // One: the view asks only when the answer before is there.
    let (ask, questions) = sync_channel::<Request>(1);
    spawn("top-data", move || {
        let farewell = Farewell { send, what: "the thread that asks for data has ended" };
        for request in questions {
            let answer = fetcher.fetch(&request, started.elapsed());
            let answer = answer.map(Box::new).map_err(|error| chain(&error));
            if farewell.send.send(Message::Answer(answer)).is_err() {
                return;
            }
        }
    })?;
    Ok(ask)
}

/// Turns the signals that ask a program to end into a message.
fn watch_signals(send: SyncSender<Message>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut terminate, mut hang_up, mut interrupt) = {
        let _inside = runtime.enter();
        (
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
            listen(SignalKind::interrupt())?,
        )
    };
    spawn("top-signals", move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        send.send(Message::End).ok();
    })
}

/// The terminal while it is ours. Dropping it gives the terminal back as it was.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    fn enter() -> io::Result<Screen> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                // First, so that the message is readable. Aborting comes right after the hook.
                give_back();
                before(info);
            }));
        });
        take()?;
        match Terminal::new(CrosstermBackend::new(stdout())) {
            Ok(terminal) => Ok(Screen { terminal }),
            Err(error) => {
                give_back();
                Err(error)
            }
        }
    }

    /// Stops this process as Ctrl-Z does; when it is continued, the screen is drawn anew.
    fn suspend(&mut self) -> io::Result<()> {
        give_back();
        // SIGSTOP, as TSTP might be ignored by whoever started us. The shell sees us stop.
        kill_process(getpid(), Known::STOP)?;
        take()?;
        self.redraw()
    }

    /// Clears the terminal; the next drawing draws everything.
    fn redraw(&mut self) -> io::Result<()> {
        // `Terminal::clear` would ask the terminal where its cursor is, and the thread that reads
        // keys would take the answer. To be resized to what it is costs the same and asks nothing.
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::from((Position::ORIGIN, size)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    let entered = execute!(stdout(), EnterAlternateScreen, EnableBracketedPaste);
    if entered.is_err() {
        give_back();
    }
    entered
}

/// Gives the terminal back; doing it twice does no harm. A terminal that is gone cannot be told.
fn give_back() {
    disable_raw_mode().ok();
    execute!(stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show).ok();
    stdout().flush().ok();
}

/// Columns and rows of the terminal.
pub(super) fn terminal_size() -> io::Result<(u16, u16)> {
    size()
}
