//! What keys, data and time do to the state. Plain values in and out: the shell does what an
//! [`Effect`] says.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use k2i::signal::Signal;
use kumo_abi::proc::{Column, PROC};

use super::columns;
use super::data::{Extra, Key, Snapshot};
use super::detail;
use super::help;
use super::keys::{self, Action};
use super::state::{
    DELAY_MAX, DELAY_MIN, Filter, Kill, Mode, Notice, Prompt, PromptKind, Sort, State, signals,
};
use crate::cel;
use crate::text::visible_within;

/// How long a notice stays, unless a key takes it away.
const NOTICE_TIME: Duration = Duration::from_secs(6);

/// The longest text that is typed; no filter that a person types is as long.
const TYPED_BYTES_MAX: usize = 1024;

/// A process is named by at most so many columns in notices and questions.
const NAME_COLUMNS_MAX: usize = 60;

/// Cells that the command moves at once.
const SHIFT_STEP: usize = 8;

/// Something happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A key was pressed.
    Key(KeyEvent),
    /// A text was pasted. It never acts as keys.
    Paste(String),
    /// The terminal has this many columns and rows.
    Resize(u16, u16),
    /// The source has answered.
    Data(Box<Snapshot>),
    /// The source has failed; the text says why and what to do.
    Failed(String),
    /// What became of a signal.
    Sent {
        /// To whom.
        id: Key,
        /// Which.
        signal: Signal,
        /// Why it was not sent.
        result: Result<(), String>,
    },
    /// Time has passed.
    Tick,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Leave.
    Quit,
    /// Give the terminal back and stop until continued.
    Suspend,
    /// Clear the terminal and draw everything.
    Redraw,
    /// Ask the source now.
    Refresh,
    /// Send a signal to exactly this process.
    Send(Key, Signal),
}

/// Changes `state` by what happened at `now`.
pub(super) fn update(state: &mut State, now: Duration, event: Event) -> Option<Effect> {
    state.now = now;
    if state.notice.as_ref().is_some_and(|notice| notice.until <= now) {
        state.notice = None;
    }
    if let Some(replay) = &mut state.replay {
        replay.tick(now, state.delay, state.paused);
    }
    match event {
        Event::Tick => None,
        Event::Resize(columns, rows) => {
            state.size = (columns, rows);
            state.keep_in_view();
            None
        }
        Event::Data(snapshot) => {
            take_data(state, snapshot);
            None
        }
        Event::Failed(error) => {
            state.error = Some(visible_within(&error, TYPED_BYTES_MAX));
            state.keep_in_view();
            None
        }
        Event::Sent { id, signal, result } => {
            match result {
                Ok(()) => {
                    let name = state.name(id);
                    notice(state, &format!("sent {signal} to process {name}"), false);
                }
                Err(error) => notice(state, &error, true),
            }
            Some(Effect::Refresh)
        }
        Event::Paste(text) => {
            // A line's end must not press Enter, and nothing in it may act as a key.
            let typed: String = text.chars().filter(|c| !c.is_control()).collect();
            type_text(state, &typed);
            None
        }
        Event::Key(key) => on_key(state, key),
    }
}

fn notice(state: &mut State, text: &str, is_error: bool) {
    let text = visible_within(text, TYPED_BYTES_MAX);
    state.notice = Some(Notice { text, is_error, until: state.now + NOTICE_TIME });
}

fn take_data(state: &mut State, snapshot: Box<Snapshot>) {
    let before = state.selected.and_then(|id| Some((id, name_at(state, state.line_of(id)?))));
    if state.many && snapshot.request.table.group.is_some() != state.by_host {
        // Its rows are of the other kind; those that were asked for since are on their way.
        return;
    }
    let current = snapshot.request == state.request();
    let (watched, lives) = (snapshot.request.watched, snapshot.watched_lives);
    let was_whole = snapshot.request.table.limit.is_none();
    state.snapshot = Some(snapshot);
    state.error = None;
    state.arrange();
    if let Mode::Kill(kill) = &mut state.mode
        && watched == Some(kill.id)
        && lives == Some(false)
    {
        kill.gone = true;
    }
    let Some(id) = state.selected else { return };
    if watched != Some(id) || state.line_of(id).is_some() {
        return;
    }
    match lives {
        Some(false) => {
            state.selected = None;
            state.whole = false;
            let name = before.map_or(String::new(), |(_, name)| format!(" {name}"));
            let number = state.name(id);
            notice(state, &format!("process {number}{name} has ended"), false);
        }
        // It lives below the last row that was asked for: ask for all, so that it is found.
        Some(true) if !was_whole => state.whole = true,
        // It is in no row of all that the filter lets through.
        Some(true) if current => {
            state.selected = None;
            state.whole = false;
            let name = state.name(id);
            let text = format!("process {name} is hidden by what is shown; `=` shows all");
            notice(state, &text, false);
        }
        _ => {}
    }
}

fn name_at(state: &State, line: usize) -> String {
    let proc = state.proc_at(line);
    let value = proc.map(|proc| {
        let command = proc.value(Column::Cmdline);
        if command.is_null() { proc.value(Column::Comm) } else { command }
    });
    let name = value.and_then(|value| value.as_str()).unwrap_or_default();
    visible_within(name, NAME_COLUMNS_MAX)
}

fn on_key(state: &mut State, key: KeyEvent) -> Option<Effect> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    // These three work everywhere.
    if control {
        match key.code {
            KeyCode::Char('c') => return Some(Effect::Quit),
            KeyCode::Char('z') => return Some(Effect::Suspend),
            KeyCode::Char('l') => return Some(Effect::Redraw),
            _ => {}
        }
    }
    let effect = match state.mode {
        Mode::Table => keys::action(key).and_then(|action| act(state, action)),
        Mode::Prompt(_) => on_prompt_key(state, key, control),
        Mode::Help { .. } => on_help_key(state, key),
        Mode::SortList { .. } => on_sort_key(state, key),
        Mode::UserList { .. } => on_user_key(state, key, control),
        Mode::Detail { .. } => on_detail_key(state, key),
        Mode::Kill(_) => on_kill_key(state, key),
    };
    state.keep_in_view();
    effect
}

fn act(state: &mut State, action: Action) -> Option<Effect> {
    state.notice = None;
    match action {
        Action::Quit => return Some(Effect::Quit),
        Action::Suspend => return Some(Effect::Suspend),
        Action::Redraw => return Some(Effect::Redraw),
        Action::Refresh => return Some(Effect::Refresh),
        Action::Help => state.mode = Mode::Help { scroll: 0 },
        Action::SortBy(column) => {
            sort_by(state, Sort { column, descending: columns::sorts_descending(column) });
        }
        Action::SortList => {
            let cursor = state.sortable().iter().position(|column| *column == state.sort.column);
            state.mode = Mode::SortList { cursor: cursor.unwrap_or(0) };
        }
        Action::SortShift(step) => {
            let shown: Vec<Column> =
                state.columns().into_iter().map(|shown| sortable(shown.column)).collect();
            let at = shown.iter().position(|column| *column == state.sort.column);
            let next = at.unwrap_or(0).saturating_add_signed(step.into()).min(shown.len() - 1);
            let column = shown[next];
            if column != state.sort.column {
                sort_by(state, Sort { column, descending: columns::sorts_descending(column) });
            }
        }
        Action::Reverse => {
            let Sort { column, descending } = state.sort;
            sort_by(state, Sort { column, descending: !descending });
        }
        Action::Search => open_prompt(state, PromptKind::Search, String::new()),
        Action::SearchNext => search(state, 1),
        Action::Filter => {
            let typed = state.filter.as_ref().map(|filter| filter.typed.clone());
            open_prompt(state, PromptKind::Filter, typed.unwrap_or_default());
        }
        Action::ShowAll => {
            state.filter = None;
            state.user = None;
            state.only_host = None;
        }
        Action::User => state.mode = Mode::UserList { typed: String::new(), cursor: 0 },
        Action::ByHost if !state.many => {
            notice(state, "there is one host here; `kumo top --all` shows many", true);
        }
        Action::ByHost => {
            state.by_host = !state.by_host;
            if state.by_host {
                state.only_host = None;
            }
            forget_rows(state);
        }
        Action::Tree => {
            state.tree = !state.tree;
            state.offset = 0;
            state.arrange();
        }
        Action::Threads => state.threads = !state.threads,
        Action::FullCommand => {
            state.full_command = !state.full_command;
            state.shift = 0;
        }
        Action::Detail => match select(state) {
            Some(id) if state.by_host => {
                state.only_host = state.host(id.place).cloned();
                state.by_host = false;
                forget_rows(state);
            }
            Some(id) => state.mode = Mode::Detail { id, scroll: 0 },
            None => {}
        },
        Action::Replay(_) | Action::ReplayMinute(_) if state.replay.is_none() => {
            notice(state, "this is now; `kumo top --replay` shows what was", true);
        }
        Action::Replay(readings) => {
            if let Some(replay) = &mut state.replay {
                replay.step(readings.into(), state.delay);
                state.paused = true;
            }
        }
        Action::ReplayMinute(minutes) => {
            if let Some(replay) = &mut state.replay {
                replay.shift(i64::from(minutes) * 60_000);
            }
        }
        Action::Kill if state.by_host => {
            let text = "a signal goes to a process; Enter shows those of the selected host";
            notice(state, text, true);
        }
        Action::Kill => {
            if select(state).is_some() {
                open_kill(state, false);
            }
        }
        Action::Pause => {
            state.paused = !state.paused;
            return (!state.paused).then_some(Effect::Refresh);
        }
        Action::Slower => set_delay(state, state.delay * 2),
        Action::Faster => set_delay(state, state.delay / 2),
        Action::Unselect => {
            state.selected = None;
            state.whole = false;
            state.search.clear();
        }
        Action::Rows(step) => move_cursor(state, step.into()),
        Action::Pages(step) => {
            let page = state.table_rows().saturating_sub(1).max(1);
            move_cursor(state, isize::from(step) * page as isize);
        }
        Action::First => {
            state.whole = false;
            move_to(state, 0);
        }
        Action::Last => {
            state.whole = true;
            move_to(state, usize::MAX);
        }
        Action::Shift(step) => {
            let cells = usize::from(step.unsigned_abs()) * SHIFT_STEP;
            state.shift = match step {
                ..=0 => state.shift.saturating_sub(cells),
                1.. => (state.shift + cells).min(TYPED_BYTES_MAX),
            };
        }
    }
    None
}

/// The rows are about to be others: nothing of them is selected, and no row of the old kind is read
/// as one of the new.
fn forget_rows(state: &mut State) {
    state.selected = None;
    state.whole = false;
    state.offset = 0;
    state.cursor = 0;
    if let Some(snapshot) = &mut state.snapshot {
        snapshot.rows.clear();
    }
    state.arrange();
}

/// The column that stands for this one in [`Sort`]: names and command lines are one.
fn sortable(column: Column) -> Column {
    if column == Column::Comm { Column::Cmdline } else { column }
}

fn sort_by(state: &mut State, sort: Sort) {
    state.sort = sort;
    if state.selected.is_none() {
        state.offset = 0;
    }
    state.whole = false;
}

fn set_delay(state: &mut State, delay: Duration) {
    state.delay = delay.clamp(DELAY_MIN, DELAY_MAX);
    let text = format!("a reading every {} s", state.delay.as_secs_f64());
    notice(state, &text, false);
}

/// The selected process; without one, the one on the first line shown is selected. One that is not
/// among the rows for the moment stays selected: another must not take its place under the keys.
fn select(state: &mut State) -> Option<Key> {
    if state.selected.is_none() {
        move_to(state, state.offset);
    }
    state.selected
}

fn move_cursor(state: &mut State, step: isize) {
    if let Some(line) = state.selected.and_then(|id| state.line_of(id)) {
        move_to(state, line.saturating_add_signed(step));
    } else {
        // The first key shows the cursor where the eye is: on the first line, or where the process
        // that has ended was.
        let last_shown = state.offset + state.table_rows().saturating_sub(1);
        move_to(state, state.cursor.clamp(state.offset, last_shown));
    }
}

fn move_to(state: &mut State, line: usize) {
    let Some(last) = state.lines.len().checked_sub(1) else { return };
    state.cursor = line.min(last);
    state.selected = state.proc_at(state.cursor).map(|proc| proc.id);
    state.keep_in_view();
}

fn open_prompt(state: &mut State, kind: PromptKind, text: String) {
    state.mode = Mode::Prompt(Prompt { kind, text, error: None });
}

/// Goes to the next line after the cursor (`from` 1), or to the first from it on (`from` 0), that has
/// the text; around the end.
fn search(state: &mut State, from: usize) {
    if state.search.is_empty() {
        return;
    }
    let wanted = state.search.to_lowercase();
    let count = state.lines.len();
    let start = state.selected.and_then(|id| state.line_of(id)).map_or(0, |line| line + from);
    let has = |line: &usize| {
        let Some(proc) = state.proc_at(*line) else { return false };
        let texts = [Column::Cmdline, Column::Comm].map(|column| proc.value(column).as_str());
        proc.id.pid.to_string() == wanted
            || texts.into_iter().flatten().any(|text| text.to_lowercase().contains(&wanted))
    };
    if let Some(line) = (0..count).map(|step| (start + step) % count).find(has) {
        move_to(state, line);
    } else {
        let text = format!("no process shown has `{}`", state.search);
        notice(state, &text, true);
    }
}

fn type_text(state: &mut State, typed: &str) {
    let text = match &mut state.mode {
        Mode::Prompt(prompt) => {
            prompt.error = None;
            &mut prompt.text
        }
        Mode::UserList { typed, cursor } => {
            *cursor = 0;
            typed
        }
        _ => return,
    };
    for c in typed.chars().filter(|c| !c.is_control()) {
        if text.len() + c.len_utf8() <= TYPED_BYTES_MAX {
            text.push(c);
        }
    }
    search_as_typed(state);
}

/// What the editing keys do to a text; whether it was one of them.
fn edit(text: &mut String, key: KeyEvent, control: bool) -> bool {
    match (key.code, control) {
        (KeyCode::Backspace, false) | (KeyCode::Char('h'), true) => {
            text.pop();
        }
        (KeyCode::Char('u'), true) => text.clear(),
        (KeyCode::Char('w'), true) => {
            let kept = text.trim_end().rfind(char::is_whitespace).map_or(0, |blank| blank + 1);
            text.truncate(kept);
        }
        _ => return false,
    }
    true
}

fn search_as_typed(state: &mut State) {
    let Mode::Prompt(Prompt { kind: PromptKind::Search, text, .. }) = &state.mode else { return };
    state.search = text.clone();
    state.notice = None;
    search(state, 0);
}

fn on_prompt_key(state: &mut State, key: KeyEvent, control: bool) -> Option<Effect> {
    let Mode::Prompt(prompt) = &mut state.mode else { return None };
    if edit(&mut prompt.text, key, control) {
        prompt.error = None;
        search_as_typed(state);
        return None;
    }
    match (key.code, prompt.kind) {
        (KeyCode::Esc, kind) => {
            if kind == PromptKind::Search {
                state.search.clear();
            }
            state.notice = None;
            state.mode = Mode::Table;
        }
        (KeyCode::Enter, PromptKind::Search) => state.mode = Mode::Table,
        (KeyCode::Enter, PromptKind::Filter) => match filter_of(&prompt.text) {
            Ok(filter) => {
                state.filter = filter;
                state.offset = 0;
                state.mode = Mode::Table;
            }
            Err(error) => prompt.error = Some(error),
        },
        (KeyCode::F(3) | KeyCode::Down, PromptKind::Search) => search(state, 1),
        (KeyCode::Char(c), _) if !control => type_text(state, c.encode_utf8(&mut [0; 4])),
        _ => {}
    }
    None
}

/// Signs that a person writes in a condition and seldom in a part of a command line.
const SIGNS_OF_CEL: [&str; 9] = ["==", "!=", "<", ">", "&&", "||", "(", "\"", " in "];

/// The condition that `typed` stands for: CEL if it is that, else a part of the command line, whatever
/// its case. Nothing for a text of blanks.
///
/// What looks like CEL and is wrong is an error: taken as a text it would silently match nothing.
fn filter_of(typed: &str) -> Result<Option<Filter>, String> {
    let typed = typed.trim();
    if typed.is_empty() {
        return Ok(None);
    }
    let filter = |cel: String| Ok(Some(Filter { typed: typed.to_owned(), cel }));
    match kumo_abi::Filter::compile(typed, &PROC) {
        Ok(_) => filter(typed.to_owned()),
        Err(error) if SIGNS_OF_CEL.iter().any(|sign| typed.contains(sign)) => {
            Err(error.to_string())
        }
        Err(_) => {
            let part = cel::literal(&format!("(?i){}", regex_text(typed)));
            let cel = format!("cmdline.matches({part})");
            match kumo_abi::Filter::compile(&cel, &PROC) {
                Ok(_) => filter(cel),
                Err(error) => Err(error.to_string()),
            }
        }
    }
}

/// A regular expression that matches exactly this text.
fn regex_text(text: &str) -> String {
    let mut regex = String::with_capacity(text.len());
    for c in text.chars() {
        // Only these: `\<` and `\>` would be borders of words.
        if r"\.+*?()|[]{}^$#&-~".contains(c) {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex
}

/// The first line of a text of `lines` lines after a key that scrolls; `None` for any other key.
fn scrolled(key: KeyCode, scroll: usize, lines: usize, page: usize) -> Option<usize> {
    let last = lines.saturating_sub(page);
    let scroll = match key {
        KeyCode::Up => scroll.saturating_sub(1),
        KeyCode::Down => scroll + 1,
        KeyCode::PageUp => scroll.saturating_sub(page),
        KeyCode::PageDown => scroll + page,
        KeyCode::Home => 0,
        KeyCode::End => last,
        _ => return None,
    };
    Some(scroll.min(last))
}

fn on_help_key(state: &mut State, key: KeyEvent) -> Option<Effect> {
    let (lines, page) = (help::lines(state).len(), help::page(state));
    let Mode::Help { scroll } = &mut state.mode else { return None };
    match scrolled(key.code, *scroll, lines, page) {
        Some(next) => *scroll = next,
        None => state.mode = Mode::Table,
    }
    None
}

fn on_detail_key(state: &mut State, key: KeyEvent) -> Option<Effect> {
    let (lines, page) = (detail::lines(state).len(), detail::page(state));
    let Mode::Detail { scroll, id } = &mut state.mode else { return None };
    if let Some(next) = scrolled(key.code, *scroll, lines, page) {
        *scroll = next;
        return None;
    }
    match key.code {
        KeyCode::Esc | KeyCode::Enter | KeyCode::Char('q' | 'i') => state.mode = Mode::Table,
        KeyCode::Char('k') | KeyCode::F(9) => open_kill(state, true),
        KeyCode::Char('p') => {
            let parent = match state.snapshot.as_ref().map(|snapshot| &snapshot.extra) {
                Some(Extra::Detail(detail)) if detail.id.same(id) => detail.ancestors.first(),
                _ => None,
            };
            if let Some(id) = parent.map(|parent| parent.id) {
                state.mode = Mode::Detail { id, scroll: 0 };
                state.selected = Some(id);
            }
        }
        _ => {}
    }
    None
}

/// Opens the question which signal to send. All that it will ever name and hit is taken from the
/// row here.
fn open_kill(state: &mut State, from_detail: bool) {
    if state.replay.is_some() {
        notice(state, "this process is of the past; `kumo top` signals those of now", true);
        return;
    }
    let here = state.boot_id_here.as_deref();
    let Some(snapshot) = &state.snapshot else { return };
    if !state.many && here != Some(snapshot.meta.boot_id.as_str()) {
        let host = visible_within(&snapshot.meta.host, NAME_COLUMNS_MAX);
        let text = format!(
            "the processes of `{host}` can only be signalled there; run `kumo top` on that host"
        );
        notice(state, &text, true);
        return;
    }
    let proc = match (&state.mode, &snapshot.extra) {
        (Mode::Detail { id, .. }, Extra::Detail(detail)) if detail.id.same(id) => {
            detail.proc.as_ref()
        }
        (Mode::Detail { .. }, _) => None,
        _ => state.selected_proc(),
    };
    let Some(proc) = proc else {
        let text =
            "the selected process is not shown for the moment; try again, or Esc lets go of it";
        notice(state, text, true);
        return;
    };
    let command = [Column::Cmdline, Column::Comm].map(|column| proc.value(column).as_str());
    let command = command.into_iter().flatten().next().unwrap_or_default();
    let user = proc.value(Column::User).as_str().unwrap_or("?");
    state.mode = Mode::Kill(Kill {
        id: proc.id,
        host: snapshot.places.host(proc.id.place).cloned(),
        user: visible_within(user, NAME_COLUMNS_MAX),
        command: visible_within(command, NAME_COLUMNS_MAX),
        cursor: 0,
        confirming: false,
        gone: false,
        from_detail,
    });
}

fn on_kill_key(state: &mut State, key: KeyEvent) -> Option<Effect> {
    let Mode::Kill(kill) = &mut state.mode else { return None };
    let signals = signals();
    let last = signals.len() - 1;
    let (id, signal) = (kill.id, signals[kill.cursor.min(last)]);
    let back = if kill.from_detail { Mode::Detail { id, scroll: 0 } } else { Mode::Table };
    if kill.gone {
        state.mode = Mode::Table;
        return None;
    }
    if kill.confirming {
        match key.code {
            KeyCode::Char('y' | 'Y') => {
                state.mode = back;
                return Some(Effect::Send(id, signal));
            }
            // Anything else means no: a hand that trembles must not kill.
            _ => state.mode = back,
        }
        return None;
    }
    match key.code {
        KeyCode::Esc | KeyCode::Char('q') => state.mode = back,
        KeyCode::Enter => kill.confirming = true,
        KeyCode::Up => kill.cursor = kill.cursor.saturating_sub(1),
        KeyCode::Down => kill.cursor = (kill.cursor + 1).min(last),
        KeyCode::Home | KeyCode::PageUp => kill.cursor = 0,
        KeyCode::End | KeyCode::PageDown => kill.cursor = last,
        KeyCode::Char(c) => {
            // A digit goes on from the number chosen (1, then 5, is 15) where that is a signal.
            let digit = c.to_digit(10).map(|digit| digit as i32);
            let find = |number: i32| signals.iter().position(|one| one.number() == number);
            let number = signal.number();
            if let Some(digit) = digit {
                let joined = (number < 10).then(|| find(number * 10 + digit)).flatten();
                kill.cursor = joined.or_else(|| find(digit)).unwrap_or(kill.cursor);
            } else {
                let begins = |one: &Signal| one.to_string().starts_with(c.to_ascii_uppercase());
                let after = (1..=signals.len()).map(|step| (kill.cursor + step) % signals.len());
                let next = after.into_iter().find(|index| begins(&signals[*index]));
                kill.cursor = next.unwrap_or(kill.cursor);
            }
        }
        _ => {}
    }
    None
}

fn on_sort_key(state: &mut State, key: KeyEvent) -> Option<Effect> {
    let sortable = state.sortable();
    let Mode::SortList { cursor } = &mut state.mode else { return None };
    match key.code {
        KeyCode::Enter => {
            let column = sortable[(*cursor).min(sortable.len() - 1)];
            state.mode = Mode::Table;
            sort_by(state, Sort { column, descending: columns::sorts_descending(column) });
        }
        KeyCode::Esc | KeyCode::Char('q') | KeyCode::F(6) => state.mode = Mode::Table,
        code => {
            if let Some(next) = moved(code, *cursor, sortable.len()) {
                *cursor = next;
            }
        }
    }
    None
}

/// Where the cursor of a list of `count` stands after a key; `None` for any other key.
fn moved(key: KeyCode, cursor: usize, count: usize) -> Option<usize> {
    /// A list has a page of its own, smaller than any terminal that shows one.
    const PAGE: usize = 5;
    let next = match key {
        KeyCode::Up => cursor.saturating_sub(1),
        KeyCode::Down => cursor + 1,
        KeyCode::PageUp => cursor.saturating_sub(PAGE),
        KeyCode::PageDown => cursor + PAGE,
        KeyCode::Home => 0,
        KeyCode::End => usize::MAX,
        _ => return None,
    };
    Some(next.min(count.saturating_sub(1)))
}

fn on_user_key(state: &mut State, key: KeyEvent, control: bool) -> Option<Effect> {
    let Mode::UserList { typed, cursor } = &state.mode else { return None };
    let (mut typed, mut cursor) = (typed.clone(), *cursor);
    let left: Vec<String> = state.users_left(&typed).iter().map(|u| u.name.clone()).collect();
    // The entry "everybody" stands first while nothing is typed.
    let everybody = usize::from(typed.is_empty());
    if edit(&mut typed, key, control) {
        state.mode = Mode::UserList { typed, cursor: 0 };
        return None;
    }
    match key.code {
        KeyCode::Esc => state.mode = Mode::Table,
        KeyCode::Enter => {
            match cursor.checked_sub(everybody) {
                None => state.user = None,
                Some(index) => match left.get(index) {
                    Some(name) => state.user = Some(name.clone()),
                    // Nobody of that name runs anything yet; they may soon.
                    None if !typed.is_empty() => state.user = Some(typed),
                    None => {}
                },
            }
            state.mode = Mode::Table;
            state.offset = 0;
        }
        KeyCode::Char(c) if !control => type_text(state, c.encode_utf8(&mut [0; 4])),
        code => {
            if let Some(next) = moved(code, cursor, left.len() + everybody) {
                cursor = next;
            }
            state.mode = Mode::UserList { typed, cursor };
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::data::tests::{BOOT, proc, snapshot};
    use super::super::data::{Detail, Fleet, Places, Proc, Side};
    use super::super::replay::Replay;
    use super::*;
    use KeyCode::{Char, Down, End, Enter, Esc, F, Home, PageDown, Up};
    use serde_json::json;

    /// A state of a terminal with ten rows for processes, and the rows of `data`.
    fn state_with(data: Vec<Proc>) -> State {
        let mut state = State::new((120, 40), Duration::from_secs(1));
        state.boot_id_here = Some(BOOT.to_owned());
        give(&mut state, data);
        let others = 40 - state.table_rows();
        state.size.1 = others as u16 + 10;
        assert_eq!(state.table_rows(), 10);
        state
    }

    /// Processes 1 to `count`, the first the busiest.
    fn procs(count: i32) -> Vec<Proc> {
        let row = |pid: i32| {
            let columns = json!({
                "user": format!("user{}", pid % 3),
                "cpu": f64::from(count - pid),
                "cmdline": format!("worker --number {pid}"),
            });
            proc(pid, 1, &columns)
        };
        (1..=count).map(row).collect()
    }

    fn give(state: &mut State, rows: Vec<Proc>) {
        let answer = snapshot(state.request(), rows);
        let effect = update(state, state.now, Event::Data(answer));
        assert_eq!(effect, None);
    }

    fn press(state: &mut State, code: KeyCode) -> Option<Effect> {
        update(state, state.now, Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    fn press_all(state: &mut State, codes: &[KeyCode]) {
        for code in codes {
            assert_eq!(press(state, *code), None, "for {code:?}");
        }
    }

    fn type_in(state: &mut State, text: &str) {
        text.chars().for_each(|c| assert_eq!(press(state, Char(c)), None));
    }

    fn selected(state: &State) -> Option<i32> {
        state.selected.map(|id| id.pid)
    }

    #[test]
    fn a_replay_moves_by_time_and_by_keys_and_signals_nobody() {
        let mut state = state_with(procs(3));
        press(&mut state, Char(']'));
        let said = state.notice.as_ref().map(|notice| notice.text.clone());
        assert!(said.is_some_and(|said| said.contains("--replay")), "there is none here");
        assert_eq!(state.request().table.at, None);

        state.replay = Some(Replay::new(100_000, 1_000_000, 10.0));
        let at = |state: &State| state.request().table.at.expect("a moment");
        let second = Duration::from_secs(1);
        update(&mut state, second, Event::Tick);
        assert_eq!(at(&state), "110000");
        update(&mut state, second + second / 2, Event::Tick);
        assert_eq!(at(&state), "110000", "not before the next reading is due");
        press_all(&mut state, &[Char(']'), Char(']'), Char('[')]);
        assert!(at(&state) == "120000" && state.paused, "a step stops it");
        update(&mut state, 9 * second, Event::Tick);
        assert_eq!(at(&state), "120000");
        press_all(&mut state, &[Char('}')]);
        assert_eq!(at(&state), "180000");
        press_all(&mut state, &[Char('{'), Char('{'), Char('{')]);
        assert_eq!(at(&state), "100000", "it has a beginning");
        assert_eq!(press(&mut state, Char(' ')), Some(Effect::Refresh));
        update(&mut state, 11 * second, Event::Tick);
        assert_eq!(at(&state), "110000");
        press_all(&mut state, &[Down, Char('k')]);
        assert_eq!(state.mode, Mode::Table, "who may be gone for long gets no signal");
    }

    #[test]
    fn the_selection_moves_by_rows_pages_and_to_the_ends() {
        let cases: [(&[KeyCode], i32, usize); 8] = [
            (&[Down], 1, 0),
            (&[Down, Down], 2, 0),
            (&[Down, Down, Up], 1, 0),
            (&[Down, Up], 1, 0),
            (&[Down, PageDown], 10, 0),
            (&[Down, PageDown, PageDown], 19, 9),
            (&[End], 30, 20),
            (&[End, Home], 1, 0),
        ];
        for (keys, pid, offset) in cases {
            let mut state = state_with(procs(30));
            press_all(&mut state, keys);
            assert_eq!((selected(&state), state.offset), (Some(pid), offset), "for {keys:?}");
        }
        let mut empty = state_with(Vec::new());
        press_all(&mut empty, &[Down, Up, PageDown, End, Home, Enter, Char('k')]);
        assert_eq!((selected(&empty), &empty.mode), (None, &Mode::Table));
    }

    #[test]
    fn the_selection_stays_with_its_process() {
        let mut state = state_with(procs(30));
        press_all(&mut state, &[Down, Down, Down]);
        let mut later = procs(30);
        let third = later.remove(2);
        later.push(third);
        give(&mut state, later);
        assert_eq!((selected(&state), state.cursor, state.offset), (Some(3), 29, 20));
    }

    #[test]
    fn a_process_that_ends_while_selected_is_let_go_and_named() {
        let mut state = state_with(procs(5));
        press_all(&mut state, &[Down, Down, Down]);
        let mut left = procs(5);
        left.remove(2);
        let mut answer = snapshot(state.request(), left);
        answer.watched_lives = Some(false);
        update(&mut state, Duration::from_secs(1), Event::Data(answer));
        assert_eq!(selected(&state), None);
        let notice = state.notice.as_ref().expect("it is said");
        assert_eq!(notice.text, "process 3 worker --number 3 has ended");
        press_all(&mut state, &[Down]);
        assert_eq!(selected(&state), Some(4), "the cursor goes on where it was");
    }

    #[test]
    fn a_successor_with_the_same_number_is_not_selected() {
        let mut state = state_with(procs(5));
        press_all(&mut state, &[Down]);
        let mut row = procs(1).remove(0).row().clone();
        row.insert("id".to_owned(), json!("1@999000000000"));
        let successor = Proc::new(row).expect("a row with an identity");
        let mut answer = snapshot(state.request(), vec![successor]);
        answer.watched_lives = Some(false);
        update(&mut state, Duration::ZERO, Event::Data(answer));
        assert_eq!((selected(&state), state.lines.len()), (None, 1));
    }

    #[test]
    fn a_selected_process_below_the_last_row_is_looked_for() {
        let mut state = state_with(procs(40));
        press_all(&mut state, &[Down, Down]);
        assert!(state.request().table.limit.is_some());
        let mut others = procs(40);
        others.remove(1);
        let mut answer = snapshot(state.request(), others);
        answer.watched_lives = Some(true);
        update(&mut state, Duration::ZERO, Event::Data(answer));
        assert_eq!((selected(&state), state.request().table.limit), (Some(2), None));
        // All rows came, and it is in none: the filter hides it.
        let mut others = procs(40);
        others.remove(1);
        let mut answer = snapshot(state.request(), others);
        answer.watched_lives = Some(true);
        update(&mut state, Duration::ZERO, Event::Data(answer));
        assert_eq!(selected(&state), None);
    }

    #[test]
    fn only_what_is_shown_is_asked_for() {
        let mut state = state_with(procs(5));
        let table = state.request().table;
        assert_eq!(table.limit.as_deref(), Some("32"), "twice ten rows, in steps of sixteen");
        assert_eq!(table.sort.as_deref(), Some("-cpu,-time"));
        assert_eq!((table.filter, table.group), (None, None));
        let columns = table.columns.expect("some");
        assert!(columns.contains("cmdline") && !columns.contains("comm"), "{columns}");
        state.size.0 = 40;
        press_all(&mut state, &[Char('c'), Char('M')]);
        let table = state.request().table;
        assert_eq!(table.columns.as_deref(), Some("id,user,pid,rss,state,cpu,mem,comm"));
        assert_eq!(table.sort.as_deref(), Some("-mem,pid"));
        press_all(&mut state, &[Char('t')]);
        assert_eq!(state.request().table.limit, None, "a tree needs everybody");
    }

    #[test]
    fn every_question_is_one_that_the_source_understands() {
        let mut state = state_with(procs(5));
        state.user = Some("o'neill \"\\\n".to_owned());
        state.many = true;
        for column in state.sortable().iter().copied() {
            for width in [10, 40, 80, 200] {
                for full_command in [true, false] {
                    state.size.0 = width;
                    state.full_command = full_command;
                    sort_by(&mut state, Sort { column, descending: true });
                    let text = state.request().table;
                    let parsed = kumo_abi::Query::parse(&text, &PROC, "pid");
                    assert!(parsed.is_ok(), "{text:?}: {:?}", parsed.err());
                }
            }
        }
        let id = state.rows()[0].id;
        let others = [
            super::super::data::Tasks::query(),
            super::super::data::UserSum::query(),
            super::super::data::only(7),
            Detail::query(id),
            Detail::relatives_query(),
        ];
        for text in others {
            let parsed = kumo_abi::Query::parse(&text, &PROC, "pid");
            assert!(parsed.is_ok(), "{text:?}: {:?}", parsed.err());
        }
    }

    #[test]
    fn sort_keys() {
        let cases: [(&[KeyCode], &str); 7] = [
            (&[Char('M')], "-mem,pid"),
            (&[Char('T')], "-time"),
            (&[Char('N')], "pid"),
            (&[Char('N'), Char('I')], "-pid"),
            (&[Char('<')], "-threads,pid"),
            (&[Char('>')], "-mem,pid"),
            (&[F(6), Home, Down, Enter], "user,pid"),
        ];
        for (keys, want) in cases {
            let mut state = state_with(procs(3));
            press_all(&mut state, keys);
            assert_eq!(state.request().table.sort.as_deref(), Some(want), "for {keys:?}");
        }
    }

    #[test]
    fn filters_are_cel_or_a_part_of_the_command() {
        let part = |text: &str| format!("cmdline.matches({})", cel::literal(text));
        let cases = [
            ("cpu > 5.0", Ok(Some("cpu > 5.0".to_owned()))),
            ("  ", Ok(None)),
            ("nginx", Ok(Some(part("(?i)nginx")))),
            ("a.b[1]", Ok(Some(part("(?i)a\\.b\\[1\\]")))),
            ("--port 80", Ok(Some(part("(?i)\\-\\-port 80")))),
            ("kernel", Ok(Some("kernel".to_owned()))),
            ("pid", Ok(Some(part("(?i)pid")))),
            ("cpu >", Err(())),
            ("nosuch == 3", Err(())),
        ];
        for (typed, want) in cases {
            let filter = filter_of(typed).map(|filter| filter.map(|filter| filter.cel));
            assert_eq!(filter.map_err(drop), want, "for {typed:?}");
        }
    }

    #[test]
    fn a_wrong_filter_is_refused_in_place() {
        let mut state = state_with(procs(3));
        press_all(&mut state, &[F(4)]);
        type_in(&mut state, "cpu >");
        press_all(&mut state, &[Enter]);
        let Mode::Prompt(prompt) = &state.mode else { panic!("{:?}", state.mode) };
        assert!(prompt.error.is_some() && prompt.text == "cpu >", "{prompt:?}");
        assert_eq!(state.filter, None);
        type_in(&mut state, " 5.0");
        press_all(&mut state, &[Enter]);
        assert_eq!(state.request().table.filter.as_deref(), Some("cpu > 5.0"));
        state.user = Some("www".to_owned());
        let both = state.request().table.filter;
        assert_eq!(both.as_deref(), Some("user == \"www\" && (\ncpu > 5.0\n)"));
        press_all(&mut state, &[Char('=')]);
        assert_eq!(state.request().table.filter, None);
    }

    #[test]
    fn a_remark_in_a_filter_hides_nothing_of_what_follows() {
        let mut state = state_with(procs(3));
        press_all(&mut state, &[F(4)]);
        type_in(&mut state, "cpu > 5.0 // the busy");
        press_all(&mut state, &[Enter]);
        state.user = Some("www".to_owned());
        let both = state.request().table.filter.expect("two conditions");
        kumo_abi::Filter::compile(&both, &PROC).expect("the bracket is closed behind the remark");
    }

    #[test]
    fn a_search_goes_to_the_next_row_that_has_it() {
        let mut state = state_with(procs(30));
        press_all(&mut state, &[Char('/')]);
        type_in(&mut state, "NUMBER 2");
        assert_eq!(selected(&state), Some(2));
        press_all(&mut state, &[Enter, Char('n')]);
        assert_eq!(selected(&state), Some(20));
        assert_eq!(state.request().table.limit, None, "it may be below the last row");
        press_all(&mut state, &[Char('/')]);
        type_in(&mut state, "nobody");
        let notice = state.notice.clone().expect("it is said");
        assert!(notice.is_error && notice.text.contains("nobody"), "{notice:?}");
        press_all(&mut state, &[Esc, Esc]);
        assert_eq!((selected(&state), state.search.as_str()), (None, ""));
    }

    #[test]
    fn pasted_text_never_acts_as_keys() {
        let mut state = state_with(procs(3));
        update(&mut state, Duration::ZERO, Event::Paste("k\ny\nq".to_owned()));
        assert_eq!((&state.mode, selected(&state)), (&Mode::Table, None));
        press_all(&mut state, &[Char('/')]);
        update(&mut state, Duration::ZERO, Event::Paste("wor\nker".to_owned()));
        assert_eq!(state.search, "worker");
    }

    #[test]
    fn a_signal_goes_to_the_identity_that_was_selected() {
        let mut state = state_with(procs(5));
        press_all(&mut state, &[Down, Down, Char('k')]);
        let id = state.rows()[1].id;
        let Mode::Kill(kill) = &state.mode else { panic!("{:?}", state.mode) };
        assert_eq!((kill.id, kill.command.as_str()), (id, "worker --number 2"));
        assert_eq!(state.request().watched, Some(id));
        // The table turns around below the question; it changes nothing.
        let mut turned = procs(5);
        turned.reverse();
        give(&mut state, turned);
        press_all(&mut state, &[Enter]);
        assert_eq!(press(&mut state, Char('y')), Some(Effect::Send(id, Signal::TERM)));
        assert_eq!(state.mode, Mode::Table);
    }

    #[test]
    fn a_selected_process_that_is_not_shown_is_not_mistaken_for_another() {
        let mut state = state_with(procs(40));
        press_all(&mut state, &[Down, Down]);
        let id = state.rows()[1].id;
        let mut others = procs(40);
        others.remove(1);
        let mut answer = snapshot(state.request(), others);
        answer.watched_lives = Some(true);
        update(&mut state, Duration::ZERO, Event::Data(answer));
        press_all(&mut state, &[Char('k')]);
        assert_eq!((&state.mode, selected(&state)), (&Mode::Table, Some(2)));
        assert!(state.notice.as_ref().is_some_and(|notice| notice.is_error));
        press_all(&mut state, &[Enter]);
        assert_eq!(state.mode, Mode::Detail { id, scroll: 0 }, "its page needs no row");
    }

    #[test]
    fn only_y_sends() {
        for key in [Enter, Esc, Char('n'), Char('q'), Char('k'), Char(' '), Down] {
            let mut state = state_with(procs(5));
            press_all(&mut state, &[Down, Char('k'), Enter, key]);
            assert_eq!(state.mode, Mode::Table, "for {key:?}");
        }
    }

    #[test]
    fn signals_are_chosen_by_arrow_number_and_letter() {
        let cases: [(&[KeyCode], i32); 8] = [
            (&[], 15),
            (&[Down], 2),
            (&[Char('9')], 9),
            (&[Char('1'), Char('9')], 19),
            (&[Char('1'), Char('2')], 12),
            (&[Char('h')], 1),
            (&[Char('u'), Char('u')], 12),
            (&[Down, Up, Up], 15),
        ];
        for (keys, number) in cases {
            let mut state = state_with(procs(2));
            press_all(&mut state, &[Down, Char('k')]);
            press_all(&mut state, keys);
            press_all(&mut state, &[Enter]);
            let id = state.rows()[0].id;
            let signal = Signal::from_number(number).expect("a signal");
            let sent = press(&mut state, Char('y'));
            assert_eq!(sent, Some(Effect::Send(id, signal)), "for {keys:?}");
        }
    }

    #[test]
    fn nothing_is_sent_to_a_process_that_ended_under_the_question() {
        let mut state = state_with(procs(5));
        press_all(&mut state, &[Down, Char('k'), Enter]);
        let mut answer = snapshot(state.request(), procs(5).split_off(1));
        answer.watched_lives = Some(false);
        update(&mut state, Duration::ZERO, Event::Data(answer));
        assert_eq!(press(&mut state, Char('y')), None);
        assert_eq!(state.mode, Mode::Table);
    }

    #[test]
    fn processes_of_another_host_cannot_be_signalled_from_here() {
        for here in [None, Some("another boot".to_owned())] {
            let mut state = state_with(procs(5));
            state.boot_id_here = here;
            press_all(&mut state, &[Down, Char('k')]);
            assert_eq!(state.mode, Mode::Table);
            assert!(state.notice.expect("it is said").text.contains("`web-1`"));
        }
    }

    #[test]
    fn details_are_asked_for_while_they_are_open_and_lead_to_the_parent() {
        let mut state = state_with(procs(5));
        press_all(&mut state, &[Down, Down, Enter]);
        let (parent, id) = (state.rows()[0].id, state.rows()[1].id);
        assert_eq!(state.request().side, Side::Detail(id));
        let everybody = procs(5);
        let mut answer = snapshot(state.request(), everybody.clone());
        let detail = Detail::new(id, vec![everybody[1].clone()], &everybody);
        answer.extra = Extra::Detail(Box::new(detail));
        update(&mut state, Duration::ZERO, Event::Data(answer));
        press_all(&mut state, &[Down, Char('p')]);
        assert_eq!(state.request().side, Side::Detail(parent));
        press_all(&mut state, &[Esc]);
        assert_eq!(state.request().side, Side::Nothing);
    }

    #[test]
    fn a_failure_keeps_the_data_and_an_answer_ends_it() {
        let mut state = state_with(procs(5));
        let later = Duration::from_secs(9);
        update(&mut state, later, Event::Failed("no\x1bway".to_owned()));
        assert_eq!(state.error.as_deref(), Some("no\\x1bway"));
        assert_eq!((state.lines.len(), state.age()), (5, Some(later)));
        press_all(&mut state, &[Down]);
        assert_eq!(selected(&state), Some(1));
        give(&mut state, procs(5));
        assert_eq!(state.error, None);
    }

    #[test]
    fn users_are_chosen_from_a_list_or_typed() {
        let mut state = state_with(procs(5));
        press_all(&mut state, &[Char('u')]);
        assert_eq!(state.request().side, Side::Users);
        let user = |name: &str| super::super::data::UserSum {
            name: name.to_owned(),
            ..super::super::data::UserSum::default()
        };
        let mut answer = snapshot(state.request(), procs(5));
        answer.extra = Extra::Users(vec![user("root"), user("www-data"), user("web")]);
        let users = answer.extra.clone();
        update(&mut state, Duration::ZERO, Event::Data(answer));
        press_all(&mut state, &[Down, Down, Enter]);
        assert_eq!(state.user.as_deref(), Some("www-data"));
        state.snapshot.as_mut().expect("some").extra = users;
        press_all(&mut state, &[Char('u')]);
        type_in(&mut state, "we");
        press_all(&mut state, &[Enter]);
        assert_eq!(state.user.as_deref(), Some("web"));
        press_all(&mut state, &[Char('u'), Enter]);
        assert_eq!(state.user, None);
    }

    #[test]
    fn control_keys_work_everywhere() {
        for open in [Char('u'), Char('/'), F(4), F(6), Char('h'), Enter, Char('k'), Char('=')] {
            let mut state = state_with(procs(5));
            press(&mut state, open);
            let control = |c| Event::Key(KeyEvent::new(Char(c), KeyModifiers::CONTROL));
            assert_eq!(update(&mut state, Duration::ZERO, control('z')), Some(Effect::Suspend));
            assert_eq!(update(&mut state, Duration::ZERO, control('l')), Some(Effect::Redraw));
            assert_eq!(update(&mut state, Duration::ZERO, control('c')), Some(Effect::Quit));
        }
    }

    /// A state that looks at two hosts, with a process of the same identity on each.
    fn state_of_many() -> State {
        let mut state = State::new((120, 40), Duration::from_secs(1));
        state.many = true;
        let mut places = std::sync::Arc::new(Places::default());
        let mut row = |host: &str| {
            let mut row = procs(1).remove(0).row().clone();
            row.insert("dc".to_owned(), json!("tokyo"));
            row.insert("host".to_owned(), json!(host));
            Proc::of_many(row, &mut places).expect("a process")
        };
        let rows = vec![row("a"), row("b")];
        let mut answer = snapshot(state.request(), rows);
        answer.places = places;
        answer.host = None;
        answer.fleet = Some(Fleet::default());
        assert_eq!(update(&mut state, Duration::ZERO, Event::Data(answer)), None);
        state
    }

    #[test]
    fn of_two_hosts_the_selected_process_is_hit_at_its_own() {
        let mut state = state_of_many();
        press_all(&mut state, &[Down, Down, Char('k')]);
        let id = state.rows()[1].id;
        let Mode::Kill(kill) = &state.mode else { panic!("{:?}", state.mode) };
        assert_eq!(kill.host.as_ref().map(ToString::to_string).as_deref(), Some("tokyo/b"));
        press_all(&mut state, &[Enter]);
        assert_eq!(press(&mut state, Char('y')), Some(Effect::Send(id, Signal::TERM)));
        update(
            &mut state,
            Duration::ZERO,
            Event::Sent { id, signal: Signal::TERM, result: Ok(()) },
        );
        let notice = state.notice.as_ref().map(|notice| notice.text.as_str());
        assert_eq!(notice, Some("sent TERM to process tokyo/b/1"));
    }

    #[test]
    fn hosts_are_rows_and_lead_to_their_processes() {
        let mut state = state_of_many();
        press_all(&mut state, &[Char('g')]);
        let table = state.request().table;
        assert_eq!(table.group.as_deref(), Some("dc,host"));
        assert_eq!(table.sort.as_deref(), Some("-sum(cpu),dc,host"));
        assert!(state.lines.is_empty(), "no process stands among hosts");
        // An answer to the question before is not mistaken for one to this.
        let mut before = state_of_many();
        let old = before.snapshot.take().expect("some");
        update(&mut state, Duration::ZERO, Event::Data(old));
        assert!(state.lines.is_empty());
        let mut places = std::sync::Arc::new(Places::default());
        let row = json!({"dc": "tokyo", "host": "b", "count()": 12, "sum(threads)": 30,
                         "sum(cpu)": 155.5, "sum(rss)": 4096, "sum(time)": 1.0});
        let row = row.as_object().expect("an object").clone();
        let host = Proc::of_host(row, &mut places, |_| "load".to_owned()).expect("a host");
        let mut answer = snapshot(state.request(), vec![host]);
        answer.places = places;
        update(&mut state, Duration::ZERO, Event::Data(answer));
        press_all(&mut state, &[Down, Char('k')]);
        assert!(state.mode == Mode::Table && state.notice.as_ref().is_some_and(|n| n.is_error));
        assert_eq!(state.request().watched, None, "a host is no process");
        press_all(&mut state, &[Enter]);
        let table = state.request().table;
        assert_eq!(table.filter.as_deref(), Some("dc == \"tokyo\" && host == \"b\""));
        assert_eq!((table.group, state.by_host), (None, false));
        press_all(&mut state, &[Char('=')]);
        assert_eq!(state.request().table.filter, None);
    }

    #[test]
    fn one_host_is_not_grouped_by() {
        let mut state = state_with(procs(3));
        press_all(&mut state, &[Char('g')]);
        assert!(!state.by_host && state.notice.as_ref().is_some_and(|notice| notice.is_error));
        assert!(!state.sortable().contains(&Column::Host));
    }

    #[test]
    fn every_question_about_hosts_is_one_that_the_source_understands() {
        let mut state = state_of_many();
        for by_host in [false, true] {
            state.by_host = by_host;
            state.only_host = Some("tokyo/a".parse().expect("a host"));
            state.filter = filter_of("cpu > 1.0 // busy").expect("a filter");
            for column in state.sortable().iter().copied() {
                sort_by(&mut state, Sort { column, descending: true });
                let text = state.request().table;
                let parsed = kumo_abi::Query::parse(&text, &PROC, "pid");
                assert!(parsed.is_ok(), "{text:?}: {:?}", parsed.err());
            }
        }
    }

    #[test]
    fn the_delay_has_limits() {
        let mut state = state_with(procs(1));
        (0..30).for_each(|_| press_all(&mut state, &[Char('+')]));
        assert_eq!(state.delay, DELAY_MAX);
        (0..60).for_each(|_| press_all(&mut state, &[Char('-')]));
        assert_eq!(state.delay, DELAY_MIN);
    }
}
