//! Draws the state. It reads nothing but the state and changes nothing.

use kumo_abi::proc::Column;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::columns::{self, Shown};
use super::data::Proc;
use super::detail;
use super::header;
use super::help;
use super::state::{Kill, Mode, Prompt, PromptKind, SORTABLE, State, signals};
use super::theme::Theme;
use crate::text::{self, visible, visible_within};
use crate::units::{self, SizeStyle};

/// Draws everything.
pub(super) fn draw(state: &State, frame: &mut Frame<'_>) {
    let area = frame.area();
    if area.is_empty() {
        return;
    }
    match &state.mode {
        Mode::Help { scroll } => {
            let hint = "any key returns";
            page(state, frame, "kumo top: keys", hint, &help::lines(state), *scroll);
        }
        Mode::Detail { id, scroll } => {
            let title = format!("process {}", id.pid);
            let hint = "Esc back  Up Down scroll  p parent  k signal";
            page(state, frame, &title, hint, &detail::lines(state), *scroll);
        }
        Mode::Kill(kill) if kill.from_detail => {
            let title = format!("process {}", kill.id.pid);
            page(state, frame, &title, "", &detail::lines(state), 0);
        }
        _ => table(state, frame),
    }
    match &state.mode {
        Mode::SortList { cursor } => sort_list(state, frame, *cursor),
        Mode::UserList { typed, cursor } => user_list(state, frame, typed, *cursor),
        Mode::Kill(kill) => kill_box(state, frame, kill),
        _ => {}
    }
}

/// The line `row` of an area.
fn row(area: Rect, row: usize) -> Rect {
    let row = u16::try_from(row).unwrap_or(u16::MAX);
    let y = area.y.saturating_add(row);
    Rect { y, height: u16::from(row < area.height), ..area }
}

fn put(frame: &mut Frame<'_>, area: Rect, line: Line<'static>) {
    if !area.is_empty() {
        frame.render_widget(line, area);
    }
}

fn table(state: &State, frame: &mut Frame<'_>) {
    let area = frame.area();
    let theme = Theme::new(state.color);
    let mut next = 0;
    for line in header::lines(state) {
        // The headings and a process matter more than the last lines of the header.
        if next + 3 < usize::from(area.height) {
            put(frame, row(area, next), line);
            next += 1;
        }
    }
    let shown = state.columns();
    put(frame, row(area, next), headings(state, &shown, theme));
    next += 1;
    let rows = usize::from(area.height).saturating_sub(next + 1);
    let selected = state.selected.and_then(|id| state.line_of(id));
    for (line, place) in (state.offset..state.lines.len()).take(rows).zip(next..) {
        let Some(proc) = state.proc_at(line) else { continue };
        let prefix = &state.lines[line].prefix;
        let is_selected = selected == Some(line);
        let cells = cells(state, proc, prefix, &shown, theme, is_selected);
        if is_selected {
            frame.buffer_mut().set_style(row(area, place), theme.selected());
        }
        put(frame, row(area, place), cells);
    }
    if state.lines.is_empty() && state.snapshot.is_some() && rows > 0 {
        let text = "  no process fulfils this; `=` shows all";
        let text = visible_within(text, usize::from(area.width));
        put(frame, row(area, next), Line::styled(text, theme.dim()));
    }
    bottom(state, frame, theme);
}

/// The headings and every row, for a place that scrolls by itself.
pub(super) fn lines(state: &State) -> impl Iterator<Item = Line<'static>> {
    let theme = Theme::new(false);
    let shown = state.columns();
    let first = headings(state, &shown, theme);
    let rows = state.lines.iter().filter_map(move |line| {
        let proc = state.rows().get(line.row)?;
        Some(cells(state, proc, &line.prefix, &shown, theme, false))
    });
    std::iter::once(first).chain(rows)
}

fn headings(state: &State, shown: &[Shown], theme: Theme) -> Line<'static> {
    let mut spans = Vec::new();
    for (index, one) in shown.iter().enumerate() {
        if index > 0 {
            spans.push(Span::styled(" ", theme.heading()));
        }
        let is_sorted = one.column == state.sort.column
            || (one.column == Column::Comm && state.sort.column == Column::Cmdline);
        let style = if is_sorted { theme.heading_sorted() } else { theme.heading() };
        let heading = columns::heading(one.column);
        let text = align(one, visible_within(heading, usize::from(one.width)));
        spans.push(Span::styled(text, style));
    }
    Line::from(spans).style(theme.heading())
}

/// Fills a cell up to its width.
fn align(one: &Shown, text: String) -> String {
    let missing = usize::from(one.width).saturating_sub(text::columns(&text));
    let blanks = " ".repeat(missing);
    if columns::is_right_aligned(one.column) { blanks + &text } else { text + &blanks }
}

fn cells(
    state: &State,
    proc: &Proc,
    prefix: &str,
    shown: &[Shown],
    theme: Theme,
    is_selected: bool,
) -> Line<'static> {
    let mut spans = Vec::with_capacity(2 * shown.len());
    for (index, one) in shown.iter().enumerate() {
        if index > 0 {
            spans.push(Span::raw(" "));
        }
        let width = usize::from(one.width);
        let style = if is_selected { Style::new() } else { look(one.column, proc, theme) };
        if matches!(one.column, Column::Cmdline | Column::Comm) {
            let text = columns::cell(one.column, proc, state.shift + width);
            let text = shifted(&text, state.shift);
            let branches = visible_within(prefix, width);
            let left = width - text::columns(&branches);
            let branch_style = if is_selected { style } else { theme.dim() };
            spans.push(Span::styled(branches, branch_style));
            spans.push(Span::styled(visible_within(&text, left), style));
        } else {
            // A number that is too wide is better whole than wrong: it takes its neighbour's place.
            spans.push(Span::styled(align(one, columns::cell(one.column, proc, width)), style));
        }
    }
    Line::from(spans)
}

/// `text` without its first `cells` columns.
fn shifted(text: &str, cells: usize) -> String {
    let mut gone = 0;
    let mut rest = text.chars();
    while gone < cells {
        let Some(c) = rest.next() else { break };
        gone += text::columns(c.encode_utf8(&mut [0; 4]));
    }
    rest.collect()
}

/// How a cell looks: what is busy or large stands out, what is zero steps back.
fn look(column: Column, proc: &Proc, theme: Theme) -> Style {
    let number = proc.number(column);
    match (column, number) {
        (Column::Cpu, Some(80.0..)) | (Column::Mem, Some(25.0..)) => theme.bad(),
        (Column::Cpu, Some(20.0..)) | (Column::Mem, Some(10.0..)) | (Column::Nice, Some(..0.0)) => {
            theme.warn()
        }
        (Column::Cpu | Column::Mem, Some(..0.05)) | (Column::Swap | Column::Nice, Some(0.0)) => {
            theme.dim()
        }
        (Column::State, _) => match proc.value(column).as_str() {
            Some("R") => theme.good(),
            Some("D") => theme.warn(),
            Some("Z" | "X" | "T" | "t") => theme.bad(),
            _ => Style::new(),
        },
        (Column::Pid, _) => theme.label(),
        _ => Style::new(),
    }
}

/// The last line: what was just done, a text being typed, or the keys.
fn bottom(state: &State, frame: &mut Frame<'_>, theme: Theme) {
    let area = frame.area();
    let width = usize::from(area.width);
    let last = row(area, usize::from(area.height) - 1);
    match (&state.mode, &state.notice) {
        (Mode::Prompt(prompt), _) => prompt_line(frame, last, prompt, theme),
        (_, Some(notice)) => {
            let style = if notice.is_error { theme.bad() } else { theme.strong() };
            put(frame, last, Line::styled(visible_within(&notice.text, width), style));
        }
        _ => put(frame, last, keys(state, width, theme)),
    }
}

fn keys(state: &State, width: usize, theme: Theme) -> Line<'static> {
    let tree = if state.tree { "Flat" } else { "Tree" };
    let keys = [
        ("F1", "Help"),
        ("F10", "Quit"),
        ("F9", "Kill"),
        ("F3", "Search"),
        ("F4", "Filter"),
        ("F5", tree),
        ("F6", "Sort"),
        ("u", "User"),
        ("c", "Command"),
        ("H", "Threads"),
        ("I", "Reverse"),
        ("Enter", "Details"),
        ("Space", "Pause"),
    ];
    let mut left = width;
    let mut spans = Vec::new();
    for (key, what) in keys {
        let needed = key.len() + what.len() + 2;
        if needed > left {
            break;
        }
        left -= needed;
        spans.push(Span::styled(key, theme.strong()));
        spans.push(Span::styled(format!(" {what}"), theme.key_label()));
        spans.push(Span::raw(" "));
    }
    Line::from(spans)
}

fn prompt_line(frame: &mut Frame<'_>, area: Rect, prompt: &Prompt, theme: Theme) {
    let width = usize::from(area.width);
    let label = match prompt.kind {
        PromptKind::Search => "Search: ",
        PromptKind::Filter => "Filter (part of the command, or CEL): ",
    };
    let label = if label.len() + 16 > width {
        &label[..label.find([' ', ':']).unwrap_or(0)]
    } else {
        label
    };
    let label = if label.ends_with(' ') { label.to_owned() } else { format!("{label}: ") };
    let room = width.saturating_sub(text::columns(&label) + 1);
    let shown = visible(&prompt.text).into_owned();
    // The end of a long text is what is being typed.
    let shown = shifted(&shown, text::columns(&shown).saturating_sub(room));
    let cursor = text::columns(&label) + text::columns(&shown);
    let line = vec![Span::styled(label, theme.label()), Span::raw(shown)];
    frame.render_widget(Clear, area);
    put(frame, area, Line::from(line));
    if cursor < width {
        frame.set_cursor_position((area.x + cursor as u16, area.y));
    }
    let Some(error) = &prompt.error else { return };
    // The message of a parser may have lines of its own; it stands right above what it is about.
    let lines: Vec<String> =
        error.lines().flat_map(|line| help::fold(&visible(line), width)).collect();
    let room = usize::from(area.y);
    for (index, text) in lines.iter().take(room).enumerate() {
        let place = Rect { y: area.y - (lines.len().min(room) - index) as u16, ..area };
        frame.render_widget(Clear, place);
        put(frame, place, Line::styled(text.clone(), theme.bad()));
    }
}

/// A page of lines under a title.
fn page(
    state: &State,
    frame: &mut Frame<'_>,
    title: &str,
    hint: &str,
    lines: &[Line<'static>],
    scroll: usize,
) {
    let area = frame.area();
    let theme = Theme::new(state.color);
    let width = usize::from(area.width);
    let room = usize::from(area.height).saturating_sub(2);
    let scroll = scroll.min(lines.len().saturating_sub(room));
    let shown = format!("{}-{} of {}", scroll + 1, (scroll + room).min(lines.len()), lines.len());
    let title = visible_within(&format!("{title}  {shown}"), width);
    put(frame, row(area, 0), Line::styled(title, theme.heading()).style(theme.heading()));
    for (line, place) in lines.iter().skip(scroll).take(room).zip(1..) {
        put(frame, row(area, place), line.clone());
    }
    let last = row(area, usize::from(area.height) - 1);
    if usize::from(area.height) > 1 {
        let (text, style) = match (&state.notice, &state.error) {
            (Some(notice), _) if notice.is_error => (notice.text.as_str(), theme.bad()),
            (Some(notice), _) => (notice.text.as_str(), theme.strong()),
            (None, Some(error)) => (error.as_str(), theme.bad()),
            (None, None) => (hint, theme.dim()),
        };
        put(frame, last, Line::styled(visible_within(text, width), style));
    }
}

/// A box in the middle, of at most this size; where its inside is.
fn open_box(
    frame: &mut Frame<'_>,
    theme: Theme,
    title: &str,
    columns: usize,
    lines: usize,
) -> Rect {
    let area = frame.area();
    let width = u16::try_from(columns + 4).unwrap_or(u16::MAX).min(area.width);
    let height = u16::try_from(lines + 2).unwrap_or(u16::MAX).min(area.height);
    let area = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(format!(" {title} ")).title_style(theme.strong());
    let inside = block.inner(area);
    frame.render_widget(block, area);
    Rect {
        x: inside.x + u16::from(inside.width > 2),
        width: inside.width - 2 * u16::from(inside.width > 2),
        ..inside
    }
}

/// The lines of a list with the chosen one in view.
fn list(frame: &mut Frame<'_>, inside: Rect, lines: &[String], cursor: usize, theme: Theme) {
    let room = usize::from(inside.height).max(1);
    let first = (cursor + 1).saturating_sub(room);
    for (index, text) in lines.iter().enumerate().skip(first).take(room) {
        let place = row(inside, index - first);
        if index == cursor {
            frame.buffer_mut().set_style(place, theme.selected());
        }
        let text = visible_within(text, usize::from(inside.width));
        put(frame, place, Line::from(text));
    }
}

fn widest(lines: &[String]) -> usize {
    lines.iter().map(|line| text::columns(line)).max().unwrap_or(0)
}

/// A box with some lines, folded where the terminal is narrow.
fn message_box(frame: &mut Frame<'_>, theme: Theme, title: &str, lines: &[(String, Style)]) {
    let room = usize::from(frame.area().width).saturating_sub(4);
    let fold = |(text, style): &(String, Style)| {
        let style = *style;
        help::fold(text, room).into_iter().map(move |line| Line::styled(line, style))
    };
    let lines: Vec<Line<'static>> = lines.iter().flat_map(fold).collect();
    let width = lines.iter().map(Line::width).max().unwrap_or(0);
    let inside = open_box(frame, theme, title, width.max(text::columns(title)), lines.len());
    frame.render_widget(Paragraph::new(lines), inside);
}

fn sort_list(state: &State, frame: &mut Frame<'_>, cursor: usize) {
    let theme = Theme::new(state.color);
    let line =
        |column: &Column| format!("{:<8} {}", columns::heading(*column), column.spec().about);
    let lines: Vec<String> = SORTABLE.iter().map(line).collect();
    let inside = open_box(frame, theme, "Sort by (Enter)", widest(&lines).min(64), lines.len());
    list(frame, inside, &lines, cursor, theme);
}

fn user_list(state: &State, frame: &mut Frame<'_>, typed: &str, cursor: usize) {
    let theme = Theme::new(state.color);
    let mut lines = Vec::new();
    if typed.is_empty() {
        lines.push("everybody".to_owned());
    }
    for user in state.users_left(typed) {
        let name = visible_within(&user.name, 16);
        let blanks = " ".repeat(16 - text::columns(&name));
        let memory = units::size(user.rss as u64, SizeStyle::Human);
        lines.push(format!(
            "{name}{blanks} {:>6} processes {:>6}% CPU {memory:>5} RES",
            user.processes,
            units::percent(user.cpu)
        ));
    }
    if lines.is_empty() {
        lines.push(format!("Enter waits for processes of `{}`", visible(typed)));
    }
    let title = if typed.is_empty() {
        "User (Enter, or type)".to_owned()
    } else {
        format!("User: {}", visible_within(typed, 20))
    };
    // The box has one size while it is narrowed.
    let columns = 52.max(widest(&lines));
    let everybody = state.users_left("").len() + 1;
    let inside = open_box(frame, theme, &title, columns, everybody.max(lines.len()));
    list(frame, inside, &lines, cursor.min(lines.len() - 1), theme);
}

fn kill_box(state: &State, frame: &mut Frame<'_>, kill: &Kill) {
    let theme = Theme::new(state.color);
    let signals = signals();
    let signal = signals[kill.cursor.min(signals.len() - 1)];
    let who = format!("{} of {}", kill.id.pid, kill.user);
    if kill.gone {
        let lines = [
            (format!("Process {who} has ended."), theme.strong()),
            ("Nothing was sent.".to_owned(), Style::new()),
        ];
        message_box(frame, theme, "Signal (any key)", &lines);
        return;
    }
    let command = kill.command.clone();
    if kill.confirming {
        let lines = [
            (format!("Send SIG{signal} to process {who}?"), theme.strong()),
            (command, Style::new()),
            (format!("identity {}", kill.id), theme.dim()),
            ("y sends it, any other key does not".to_owned(), theme.warn()),
        ];
        message_box(frame, theme, "Sure?", &lines);
        return;
    }
    let lines: Vec<String> =
        signals.iter().map(|one| format!("{:>2} {one:<7} {}", one.number(), one.about())).collect();
    let title = format!("Signal to {who} (Enter)");
    let columns = widest(&lines).min(64).max(text::columns(&title)).max(text::columns(&command));
    let inside = open_box(frame, theme, &title, columns, lines.len() + 1);
    put(frame, row(inside, 0), Line::styled(command, theme.strong()));
    let below = Rect {
        y: inside.y + u16::from(inside.height > 0),
        height: inside.height.saturating_sub(1),
        ..inside
    };
    list(frame, below, &lines, kill.cursor, theme);
}
