//! What keys, data and time do to the state. Plain values in and out: the shell does what an
//! [`Effect`] says.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use k2i::signal::Signal;
use kumo_abi::ProcessId;
use kumo_abi::proc::{Column, PROC};

use super::columns;
use super::data::{Extra, Snapshot};
use super::detail;
use super::help;
use super::keys::{self, Action};
use super::state::{
    DELAY_MAX, DELAY_MIN, Filter, Kill, Mode, Notice, Prompt, PromptKind, SORTABLE, Sort, State,
    cel_string, signals,
};
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
        id: ProcessId,
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
    Send(ProcessId, Signal),
}

/// Changes `state` by what happened at `now`.
pub(super) fn update(state: &mut State, now: Duration, event: Event) -> Option<Effect> {
    state.now = now;
    if state.notice.as_ref().is_some_and(|notice| notice.until <= now) {
        state.notice = None;
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
                Ok(()) => notice(state, &format!("sent {signal} to process {}", id.pid), false),
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
            let name = before.map_or(String::new(), |(_, name)| format!(" {name}"));
            notice(state, &format!("process {}{name} has ended", id.pid), false);
        }
        // It lives below the last row that was asked for: ask for all, so that it is found.
        Some(true) if !was_whole => state.whole = true,
        // It is in no row of all that the filter lets through.
        Some(true) if current => state.selected = None,
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
            let cursor = SORTABLE.iter().position(|column| *column == state.sort.column);
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
        }
        Action::User => state.mode = Mode::UserList { typed: String::new(), cursor: 0 },
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
        Action::Detail => {
            if let Some(id) = select(state) {
                state.mode = Mode::Detail { id, scroll: 0 };
            }
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

/// The selected process; without one, the one that the cursor would start on is selected.
fn select(state: &mut State) -> Option<ProcessId> {
    if state.selected_proc().is_none() {
        let line = state.cursor.clamp(state.offset, state.offset + state.table_rows());
        move_to(state, if state.selected.is_none() { state.offset } else { line });
    }
    state.selected_proc().map(|proc| proc.id)
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
            let part = cel_string(&format!("(?i){}", regex_text(typed)));
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
    let here = state.boot_id_here.as_deref();
    let Some(snapshot) = &state.snapshot else { return };
    if here != Some(snapshot.meta.boot_id.as_str()) {
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
        notice(state, "it has ended", true);
        return;
    };
    let command = [Column::Cmdline, Column::Comm].map(|column| proc.value(column).as_str());
    let command = command.into_iter().flatten().next().unwrap_or_default();
    let user = proc.value(Column::User).as_str().unwrap_or("?");
    state.mode = Mode::Kill(Kill {
        id: proc.id,
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
    let Mode::SortList { cursor } = &mut state.mode else { return None };
    match key.code {
        KeyCode::Enter => {
            let column = SORTABLE[(*cursor).min(SORTABLE.len() - 1)];
            state.mode = Mode::Table;
            sort_by(state, Sort { column, descending: columns::sorts_descending(column) });
        }
        KeyCode::Esc | KeyCode::Char('q') | KeyCode::F(6) => state.mode = Mode::Table,
        code => {
            if let Some(next) = moved(code, *cursor, SORTABLE.len()) {
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
