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
use super::state::{Kill, Mode, Prompt, PromptKind, State, signals};
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
            let title = format!("process {}", state.name(*id));
            let hint = "Esc back  Up Down scroll  p parent  k signal";
            page(state, frame, &title, hint, &detail::lines(state), *scroll);
        }
        Mode::Kill(kill) if kill.from_detail => {
            let title = format!("process {}", state.name(kill.id));
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
        let is_old = state.many
            && state
                .snapshot
                .as_ref()
                .is_some_and(|snapshot| snapshot.request.table.group.is_some() != state.by_host);
        let text = if is_old { "  reading…" } else { "  no process fulfils this; `=` shows all" };
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
        let heading = columns::heading(one.column, state.by_host);
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
    let replay: &[(&str, &str)] = match (&state.replay, state.paused) {
        (None, _) => &[("F1", "Help"), ("F10", "Quit"), ("F9", "Kill")],
        (Some(_), false) => &[("Space", "Pause"), ("[", "Back"), ("]", "On"), ("{ }", "Minute")],
        (Some(_), true) => &[("Space", "Go on"), ("[", "Back"), ("]", "On"), ("{ }", "Minute")],
    };
    let keys = [
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
    for (key, what) in replay.iter().copied().chain(keys) {
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
    let line = |column: &Column| {
        format!("{:<8} {}", columns::heading(*column, false), column.spec().about)
    };
    let lines: Vec<String> = state.sortable().iter().map(line).collect();
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
    let who = format!("{} of {}", state.name(kill.id), kill.user);
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

#[cfg(test)]
mod tests {
    use super::super::data::tests::{BOOT, host, proc, snapshot};
    use super::super::data::{Detail, Extra};
    use super::super::replay::Replay;
    use super::super::update::{Event, update};
    use super::*;
    use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;
    use std::time::Duration;

    /// What `state` looks like, line by line, without the blanks at the ends.
    fn screen(state: &State) -> Vec<String> {
        let (width, height) = state.size;
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
        terminal.draw(|frame| draw(state, frame)).expect("memory takes everything");
        let buffer = terminal.backend().buffer();
        let line = |y: u16| {
            // A character of two columns is followed by a cell that holds nothing.
            let mut text = String::new();
            let mut hidden = 0;
            for x in 0..width {
                let symbol = buffer[(x, y)].symbol();
                if hidden == 0 {
                    text.push_str(symbol);
                    hidden = text::columns(symbol).saturating_sub(1);
                } else {
                    hidden -= 1;
                }
            }
            text.trim_end().to_owned()
        };
        (0..height).map(line).collect()
    }

    fn state_of(size: (u16, u16)) -> State {
        let mut state = State::new(size, Duration::from_secs(1));
        state.boot_id_here = Some(BOOT.to_owned());
        let row = |pid: i32, ppid: i32, user: &str, cpu: f64, command: &str| {
            let columns = json!({
                "user": user, "priority": 20, "nice": 0, "vsize": 12_900_000, "rss": 2_097_152,
                "shared": 1_048_576, "state": "S", "threads": 3, "cpu": cpu, "mem": 1.5,
                "time": 75.5, "cmdline": command,
            });
            proc(pid, ppid, &columns)
        };
        let rows = vec![
            row(4711, 1, "www-data", 99.5, "nginx: worker process"),
            row(1, 0, "root", 0.0, "/sbin/init"),
            row(4712, 1, "eve", 0.3, "\u{1b}[31mred\nline\u{202e}drow\u{7}"),
            row(4713, 4711, "日本語日本語", 0.1, "日本語のコマンド"),
        ];
        let answer = snapshot(state.request(), rows);
        update(&mut state, Duration::ZERO, Event::Data(answer));
        state
    }

    fn press(state: &mut State, codes: &[KeyCode]) {
        for code in codes {
            let key = KeyEvent::new(*code, KeyModifiers::NONE);
            update(state, state.now, Event::Key(key));
        }
    }

    #[test]
    fn a_terminal_of_80_by_24() {
        let lines = screen(&state_of((80, 24)));
        // The exact blanks are the business of the terminal's width; the words are ours.
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&lines[0]).starts_with("web-1 load 0.52 0.58 0.59"), "{}", lines[0]);
        assert!(
            words(&lines[0]).ends_with("up 3 days 4 h as of 03:04:05Z, 0 s ago"),
            "{}",
            lines[0]
        );
        let tasks =
            "Tasks 312  running 2  sleeping 309  in I/O 0  stopped 0  zombie 1  threads 840";
        assert_eq!(lines[1], tasks);
        assert!(lines[2].contains("50.0%]") && lines[2].ends_with("4.0G/16.0G]"), "{}", lines[2]);
        assert!(lines[3].starts_with("    user 25.0  system 25.0"), "{}", lines[3]);
        assert!(lines[4].starts_with("0 [|") && lines[4].contains("1 ["), "{}", lines[4]);
        assert_eq!(words(&lines[5]), "Pressure cpu 12.5% proc in 3.2 ms");
        let heading = "  PID USER      NI  VIRT   RES   SHR S  THR  %CPU %MEM     TIME+ COMMAND";
        assert_eq!(lines[6], heading);
        let first =
            " 4711 www-data   0 12.3M  2.0M  1.0M S    3  99.5  1.5   1:15.50 nginx: worker …";
        assert_eq!(lines[7], first);
        assert!(lines[23].starts_with("F1 Help F10 Quit F9 Kill"), "{}", lines[23]);
    }

    #[test]
    fn a_terminal_of_40_by_10() {
        let lines = screen(&state_of((40, 10)));
        let want = [
            "web-1  load 0.52 0.58 0.59       0 s ago",
            "CPU 50.0%  mem 25%  run 2  tasks 312",
            "  PID   RES S  %CPU %MEM COMMAND",
            " 4711  2.0M S  99.5  1.5 nginx: worker …",
            "    1  2.0M S   0.0  1.5 /sbin/init",
            " 4712  2.0M S   0.3  1.5 \\x1b[31mred\\nl…",
            " 4713  2.0M S   0.1  1.5 日本語のコマン…",
            "",
            "",
            "F1 Help F10 Quit F9 Kill F3 Search",
        ];
        assert_eq!(lines, want);
    }

    #[test]
    fn nothing_of_a_hostile_name_reaches_the_terminal() {
        for width in [40, 80, 200] {
            let mut state = state_of((width, 24));
            for keys in [&[][..], &[KeyCode::Char('k')], &[KeyCode::Enter]] {
                state.selected = Some(state.rows()[2].id);
                press(&mut state, keys);
                let text = screen(&state).join("");
                let bad = text.chars().find(|c| c.is_control() || *c == '\u{202e}');
                assert_eq!(bad, None, "{text:?}");
                press(&mut state, &[KeyCode::Esc]);
            }
        }
        let wide = screen(&state_of((200, 24))).join("\n");
        assert!(wide.contains(r"\x1b[31mred\nline\u{202e}drow\x07"), "{wide}");
    }

    #[test]
    fn no_size_and_no_mode_breaks_it() {
        let opened: [&[KeyCode]; 9] = [
            &[],
            &[KeyCode::Char('h')],
            &[KeyCode::F(6)],
            &[KeyCode::Char('u')],
            &[KeyCode::Char('/')],
            &[KeyCode::F(4), KeyCode::Char('>'), KeyCode::Enter],
            &[KeyCode::Down, KeyCode::Enter],
            &[KeyCode::Down, KeyCode::Char('k')],
            &[KeyCode::Down, KeyCode::Char('k'), KeyCode::Enter],
        ];
        for keys in opened {
            for (width, height) in
                [(0, 0), (1, 1), (2, 3), (5, 2), (10, 4), (40, 10), (80, 24), (33, 60), (300, 100)]
            {
                let mut state = state_of((120, 40));
                press(&mut state, keys);
                update(&mut state, Duration::ZERO, Event::Resize(width, height));
                update(&mut state, Duration::ZERO, Event::Failed("out of\nreach".to_owned()));
                assert_eq!(screen(&state).len(), usize::from(height), "{keys:?}");
            }
        }
    }

    #[test]
    fn the_question_names_whom_and_what() {
        for width in [40, 80, 120] {
            let mut state = state_of((width, 24));
            let down = KeyCode::Down;
            press(&mut state, &[down, KeyCode::Char('k'), KeyCode::Char('9'), KeyCode::Enter]);
            let text = screen(&state).join("\n");
            let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c == '│').collect();
            for word in ["SIGKILL", "4711", "www-data?", "nginx:", "4711@4711000000000"] {
                assert!(words.contains(&word), "no {word:?} in\n{text}");
            }
        }
    }

    #[test]
    fn a_process_that_ended_under_the_question_is_said_to_have() {
        let mut state = state_of((80, 24));
        press(&mut state, &[KeyCode::Down, KeyCode::Char('k')]);
        let mut answer = snapshot(state.request(), Vec::new());
        answer.watched_lives = Some(false);
        update(&mut state, Duration::ZERO, Event::Data(answer));
        let text = screen(&state).join("\n");
        assert!(text.contains("Process 4711 of www-data has ended."), "{text}");
        assert!(text.contains("Nothing was sent."), "{text}");
    }

    #[test]
    fn the_tree_is_drawn_before_the_command() {
        let mut state = state_of((120, 24));
        press(&mut state, &[KeyCode::Char('t')]);
        let commands: Vec<String> = screen(&state)[7..11]
            .iter()
            .map(|line| line.split("1:15.50 ").nth(1).expect("a command").to_owned())
            .collect();
        assert_eq!(
            commands,
            [
                "/sbin/init",
                "├─ nginx: worker process",
                "│  └─ 日本語のコマンド",
                "└─ \\x1b[31mred\\nline\\u{202e}drow\\x07"
            ]
        );
    }

    #[test]
    fn a_replay_says_that_it_is_one_and_how_to_move() {
        let mut state = state_of((80, 24));
        state.replay = Some(Replay::new(0, 1_000, 10.0));
        let lines = screen(&state);
        assert!(lines[0].ends_with("REPLAY x10, as of 03:04:05Z"), "{:?}", lines[0]);
        let keys = lines.last().expect("a line of keys");
        assert!(keys.starts_with("Space Pause [ Back ] On { } Minute"), "{keys:?}");
        press(&mut state, &[KeyCode::Char(' ')]);
        let lines = screen(&state);
        assert!(lines[0].ends_with("PAUSED, REPLAY x10, as of 03:04:05Z"), "{:?}", lines[0]);
        assert!(lines.last().expect("keys").starts_with("Space Go on"), "{lines:?}");
    }

    #[test]
    fn what_is_hidden_and_what_went_wrong_is_said() {
        let mut state = state_of((80, 24));
        press(&mut state, &[KeyCode::F(4)]);
        for c in "cpu > 1.0".chars() {
            press(&mut state, &[KeyCode::Char(c)]);
        }
        press(&mut state, &[KeyCode::Enter]);
        let now = Duration::from_secs(12);
        update(&mut state, now, Event::Failed("cannot reach the node".to_owned()));
        let text = screen(&state).join("\n");
        for words in [
            "Showing 4 of 312  where cpu > 1.0  (= shows all)",
            "no news for 12 s: cannot reach the node",
            "OLD, as of 03:04:05Z, 12 s ago",
        ] {
            assert!(text.contains(words), "no {words:?} in\n{text}");
        }
    }

    #[test]
    fn many_cpus_take_few_lines() {
        for (cpus, lines) in [(1, 0), (2, 1), (4, 1), (16, 4), (256, 4)] {
            let mut state = state_of((80, 24));
            state.snapshot.as_mut().expect("some").host = Some(host(cpus));
            let rows = state.table_rows();
            assert_eq!(rows, 24 - 5 - 2 - lines, "for {cpus} CPUs");
            let text = screen(&state).join("\n");
            assert_eq!(text.contains('▄') || text.contains('▁'), cpus == 256, "{text}");
        }
    }

    #[test]
    fn details_show_every_column_and_the_relatives() {
        let mut state = state_of((100, 60));
        press(&mut state, &[KeyCode::Down, KeyCode::Enter]);
        let everybody: Vec<Proc> = state
            .rows()
            .iter()
            .map(|proc| {
                let mut row = proc.row().clone();
                row.insert("comm".to_owned(), json!(format!("name{}", proc.id.pid)));
                Proc::new(row).expect("a row with an identity")
            })
            .collect();
        let mut answer = snapshot(state.request(), state.rows().to_vec());
        let detail = Detail::new(everybody[0].id, vec![everybody[0].clone()], &everybody);
        answer.extra = Extra::Detail(Box::new(detail));
        update(&mut state, Duration::ZERO, Event::Data(answer));
        let all: Vec<String> = detail::lines(&state).iter().map(ToString::to_string).collect();
        let all = all.join("\n");
        let listed = |column: &Column| all.contains(&format!("\n  {} ", column.spec().name));
        let of_the_living = Column::Id.index()..Column::EndedAt.index();
        for column in &Column::ALL[of_the_living] {
            assert!(listed(column), "no {column:?} in\n{all}");
        }
        for words in ["2.0M (2097152 bytes)", "root       name1", "Children: 1", "name4713"] {
            assert!(all.contains(words), "no {words:?} in\n{all}");
        }
        assert!(screen(&state)[0].starts_with("process 4711  1-58 of "));
    }

    #[test]
    fn without_colours_none_is_used() {
        let mut state = state_of((80, 24));
        state.color = false;
        press(&mut state, &[KeyCode::Down]);
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("memory");
        terminal.draw(|frame| draw(&state, frame)).expect("memory takes everything");
        let plain = |style: Style| {
            let reset = |color| matches!(color, None | Some(ratatui::style::Color::Reset));
            reset(style.fg) && reset(style.bg)
        };
        assert!(terminal.backend().buffer().content.iter().all(|cell| plain(cell.style())));
    }
}
