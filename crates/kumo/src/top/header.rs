//! The lines above the table: the host, its tasks, CPUs, memory, pressure, and how old all that is.
//!
//! How many lines there are follows from the size of the terminal and from what is known, never from
//! the numbers themselves: the table must not jump.

use std::fmt::Write as _;
use std::time::Duration;

use kumo_abi::Meta;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::data::{CpuShare, Fleet, Host, Meters, Tasks};
use super::state::State;
use super::theme::Theme;
use crate::text::{columns, visible_within};
use crate::units::{self, SizeStyle};

/// Below this many columns or rows the header is as short as it can be.
const ROOMY: (u16, u16) = (64, 16);

/// A CPU's bar takes at least this many columns, or one character stands for it.
const CPU_BAR_WIDTH_MIN: usize = 18;

/// Data is called old from three readings missed on, but never below this.
const OLD_MIN: Duration = Duration::from_secs(3);

/// The lines, each at most as wide as the terminal.
pub(super) fn lines(state: &State) -> Vec<Line<'static>> {
    let theme = Theme::new(state.color);
    let width = usize::from(state.size.0);
    let roomy = state.size.0 >= ROOMY.0 && state.size.1 >= ROOMY.1;
    let mut lines = vec![first(state, theme, width)];
    let Some(snapshot) = &state.snapshot else {
        let text = if state.error.is_some() { "no data yet" } else { "reading…" };
        lines.push(Line::from(text));
        lines.extend(error(state, theme, width));
        return lines;
    };
    let host = snapshot.host.as_ref();
    if roomy {
        lines.push(tasks(&snapshot.tasks, theme, width));
        if let Some(now) = snapshot.meters() {
            lines.extend(meters(now, theme, width));
        }
        if let Some(host) = host {
            lines.extend(cpus(host, theme, width, state.size.1));
            lines.push(pressure(host, &snapshot.meta, theme, width));
        }
    } else {
        lines.push(compact(&snapshot.tasks, snapshot.meters(), theme, width));
    }
    if let Some(fleet) = &snapshot.fleet {
        lines.push(missing(fleet, theme, width));
    }
    lines.extend(showing(state, theme, width));
    lines.extend(error(state, theme, width));
    lines
}

/// Pieces of text that end where the terminal does.
struct Pieces {
    spans: Vec<Span<'static>>,
    left: usize,
}

impl Pieces {
    fn new(width: usize) -> Pieces {
        Pieces { spans: Vec::new(), left: width }
    }

    /// Adds a text, cut where the line ends.
    fn add(&mut self, text: &str, style: Style) -> &mut Pieces {
        if self.left > 0 {
            let text = visible_within(text, self.left);
            self.left -= columns(&text).min(self.left);
            self.spans.push(Span::styled(text, style));
        }
        self
    }

    /// Adds `label value` and a gap, or nothing where both do not fit.
    fn add_whole(&mut self, label: &str, value: &str, theme: Theme, style: Style) -> &mut Pieces {
        let gap = if self.spans.is_empty() { "" } else { "  " };
        let needed = gap.len() + columns(label) + columns(value);
        if needed <= self.left {
            self.add(gap, Style::new()).add(label, theme.label()).add(value, style);
        }
        self
    }

    fn line(self) -> Line<'static> {
        Line::from(self.spans)
    }
}

/// The name of the host, since when it is up, its load; at the right how old this is.
fn first(state: &State, theme: Theme, width: usize) -> Line<'static> {
    let plain = Style::new();
    let Some(snapshot) = &state.snapshot else {
        let mut pieces = Pieces::new(width);
        pieces.add("kumo top", theme.strong());
        return pieces.line();
    };
    let age = state.age().unwrap_or_default();
    let old = age > OLD_MIN.max(3 * state.delay) && !state.paused && state.replay.is_none();
    let (word, style) = match (state.paused, old) {
        (true, _) => ("PAUSED, ", theme.warn()),
        (false, true) => ("OLD, ", theme.bad()),
        (false, false) => ("", theme.dim()),
    };
    let meta = &snapshot.meta;
    let clock = meta.as_of.split_once('T').map_or("", |(_, clock)| clock);
    let clock = clock.get(..8).unwrap_or("?");
    let seconds = age.as_secs();
    let mut right = format!("{word}as of {clock}Z, {seconds} s ago");
    if let Some(replay) = &state.replay {
        right = format!("{word}{}, as of {clock}Z", replay.title());
    }
    if width < usize::from(ROOMY.0) && state.replay.is_none() {
        right = format!("{word}{seconds} s ago");
    }
    let right_width = columns(&right).min(width);
    let mut pieces = Pieces::new(width.saturating_sub(right_width + 1));
    pieces.add(&meta.host, theme.strong());
    if let Some(fleet) = &snapshot.fleet {
        let hosts = format!("{} of {}", fleet.asked.answered, fleet.asked.asked);
        let style = if fleet.asked.missing.is_empty() { theme.good() } else { theme.bad() };
        let busy = 100.0 * fleet.load / (fleet.cpus.max(1) as f64);
        pieces
            .add_whole("hosts ", &hosts, theme, style)
            .add_whole("CPUs ", &fleet.cpus.to_string(), theme, plain)
            .add_whole("load ", &format!("{:.2}", fleet.load), theme, theme.share(busy));
    }
    if let Some(Host { report, .. }) = &snapshot.host {
        let up = units::span(report.boot.uptime_seconds);
        let load = &report.load;
        let busy = 100.0 * load.avg1 / f64::from(report.cpu.online.max(1));
        let style = theme.share(busy);
        let loads = format!("{:.2} {:.2} {:.2}", load.avg1, load.avg5, load.avg15);
        pieces.add_whole("load ", &loads, theme, style).add_whole("up ", &up, theme, plain);
    }
    let gap = pieces.left + usize::from(right_width < width);
    let mut line = pieces.line();
    line.spans.push(Span::raw(" ".repeat(gap)));
    line.spans.push(Span::styled(visible_within(&right, width), style));
    line
}

fn tasks(tasks: &Tasks, theme: Theme, width: usize) -> Line<'static> {
    let plain = Style::new();
    let mut pieces = Pieces::new(width);
    pieces.add_whole("Tasks ", &tasks.total().to_string(), theme, theme.strong());
    let threads = tasks.threads.map(|threads| threads.to_string());
    let blocked = tasks.in_states("D");
    let zombies = tasks.in_states("ZX");
    let alarm = |count: u64, style: Style| if count > 0 { style } else { plain };
    pieces
        .add_whole("running ", &tasks.in_states("R").to_string(), theme, theme.good())
        .add_whole("sleeping ", &tasks.in_states("SIP").to_string(), theme, plain)
        .add_whole("in I/O ", &blocked.to_string(), theme, alarm(blocked, theme.warn()))
        .add_whole("stopped ", &tasks.in_states("Tt").to_string(), theme, plain)
        .add_whole("zombie ", &zombies.to_string(), theme, alarm(zombies, theme.bad()));
    if let Some(threads) = threads {
        pieces.add_whole("threads ", &threads, theme, plain);
    }
    pieces.line()
}

/// CPU and memory, one beside the other; swap below, beside what the CPUs did.
fn meters(now: Meters, theme: Theme, width: usize) -> Vec<Line<'static>> {
    let (left, right) = halves(width);
    let Meters { cpu: total, memory } = now;
    let mut first = bar("CPU", 4, &cpu_parts(total, theme), &busy_text(total), left, theme);
    first.push(Span::raw("  "));
    let used = memory.total.saturating_sub(memory.available);
    first.extend(usage("Mem", used, memory.total, right, theme));
    let mut second = Pieces::new(left);
    let share = total.unwrap_or_default();
    let part = |part: f64| if total.is_some() { format!("{part:.1}") } else { "-".to_owned() };
    second
        .add_whole("    user ", &part(share.user), theme, theme.good())
        .add_whole("system ", &part(share.system), theme, theme.kernel())
        .add_whole("iowait ", &part(share.iowait), theme, theme.waiting())
        .add_whole("steal ", &part(share.steal), theme, theme.stolen());
    second.spans.push(Span::raw(" ".repeat(second.left + 2)));
    let swap_used = memory.swap_total.saturating_sub(memory.swap_free);
    second.spans.extend(usage("Swp", swap_used, memory.swap_total, right, theme));
    vec![Line::from(first), second.line()]
}

fn halves(width: usize) -> (usize, usize) {
    let left = width.saturating_sub(2) / 2;
    (left, width.saturating_sub(left + 2))
}

/// One bar a CPU where that takes few lines; else one character a CPU, as tall as it is busy.
fn cpus(host: &Host, theme: Theme, width: usize, rows: u16) -> Vec<Line<'static>> {
    let each = &host.cpu_each;
    let count = host.report.cpu.each.len();
    if count < 2 {
        return Vec::new();
    }
    // A sixth of the screen is enough for CPUs: processes are what people come for.
    let lines_max = (usize::from(rows) / 6).max(1);
    let per_line = ((width + 2) / (CPU_BAR_WIDTH_MIN + 2)).clamp(1, count);
    // Before the second reading nothing is known of the CPUs, but their lines are there.
    if count.div_ceil(per_line) > lines_max {
        return sparks(host, theme, width, lines_max);
    }
    // The lines are filled evenly: four CPUs are two and two, not three and one.
    let per_line = count.div_ceil(count.div_ceil(per_line));
    let cell = (width + 2) / per_line - 2;
    let label_width = host.report.cpu.each.iter().map(|one| one.cpu.to_string().len()).max();
    let label_width = label_width.unwrap_or(1) + 1;
    let draw = |number: u32| {
        let share = each.iter().find(|(cpu, _)| *cpu == number).map(|(_, share)| *share);
        let text = busy_text(share);
        bar(&number.to_string(), label_width, &cpu_parts(share, theme), &text, cell, theme)
    };
    let numbers: Vec<u32> = host.report.cpu.each.iter().map(|one| one.cpu).collect();
    let line = |numbers: &[u32]| {
        let mut spans = Vec::new();
        for (index, number) in numbers.iter().enumerate() {
            if index > 0 {
                spans.push(Span::raw("  "));
            }
            spans.extend(draw(*number));
        }
        Line::from(spans)
    };
    numbers.chunks(per_line).map(line).collect()
}

fn sparks(host: &Host, theme: Theme, width: usize, lines_max: usize) -> Vec<Line<'static>> {
    const LEVELS: [&str; 8] = ["▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    const LABEL: &str = "CPUs ";
    let per_line = width.saturating_sub(LABEL.len()).max(1);
    let share_of = |number: u32| host.cpu_each.iter().find(|(cpu, _)| *cpu == number);
    let spark = |one: &k2i::host::OneCpu| match share_of(one.cpu) {
        Some((_, share)) => {
            let level = (share.busy() / 100.0 * 7.99) as usize;
            Span::styled(LEVELS[level.min(7)], theme.share(share.busy()))
        }
        None => Span::styled("·", theme.dim()),
    };
    let line = |(index, chunk): (usize, &[k2i::host::OneCpu])| {
        let label = if index == 0 { LABEL } else { "     " };
        let mut spans = vec![Span::styled(label, theme.label())];
        spans.extend(chunk.iter().map(spark));
        Line::from(spans)
    };
    host.report.cpu.each.chunks(per_line).take(lines_max).enumerate().map(line).collect()
}

/// What tasks waited for; at the right which collector read the table, and how long that took.
fn pressure(host: &Host, meta: &Meta, theme: Theme, width: usize) -> Line<'static> {
    let scan_ms = meta.scan_us as f64 / 1_000.0;
    let collector = format!("{} in {scan_ms:.1} ms", visible_within(&meta.collector, 16));
    let collector_width = columns(&collector);
    let mut pieces = Pieces::new(width.saturating_sub(collector_width + 2));
    let pressure = &host.report.pressure;
    let known = [("cpu ", pressure.cpu), ("memory ", pressure.memory), ("io ", pressure.io)];
    if known.iter().all(|(_, stall)| stall.is_none()) {
        pieces.add("Pressure not known to this kernel", theme.dim());
    } else {
        pieces.add("Pressure", theme.label());
    }
    for (name, stall) in known {
        let Some(stall) = stall else { continue };
        let avg10 = stall.some.map_or(0.0, |some| some.avg10);
        let style = match avg10 {
            20.0.. => theme.bad(),
            5.0.. => theme.warn(),
            _ => Style::new(),
        };
        let mut text = format!("{avg10:.1}%");
        if let Some(full) = stall.full.filter(|full| full.avg10 >= 0.1) {
            write!(text, " (all {:.1}%)", full.avg10).ok();
        }
        pieces.add_whole(name, &text, theme, style);
    }
    let gap = pieces.left + 2;
    let mut line = pieces.line();
    line.spans.push(Span::raw(" ".repeat(gap)));
    line.spans.push(Span::styled(collector, theme.dim()));
    line
}

/// Who is missing and why, as many as fit; the line is there also when nobody is.
fn missing(fleet: &Fleet, theme: Theme, width: usize) -> Line<'static> {
    let mut pieces = Pieces::new(width);
    let missing = &fleet.asked.missing;
    if missing.is_empty() {
        pieces.add("Missing ", theme.label()).add("none", theme.dim());
        return pieces.line();
    }
    pieces.add("Missing ", theme.label()).add(&missing.len().to_string(), theme.bad());
    for one in missing {
        if pieces.left == 0 {
            break;
        }
        let why = crate::many::why(&one.outcome);
        pieces.add("  ", Style::new()).add(&one.id.to_string(), theme.strong());
        pieces.add(" ", Style::new()).add(&why, theme.bad());
    }
    pieces.line()
}

fn compact(tasks: &Tasks, now: Option<Meters>, theme: Theme, width: usize) -> Line<'static> {
    let mut pieces = Pieces::new(width);
    if let Some(Meters { cpu: total, memory }) = now {
        let cpu = total.map(|share| share.busy());
        let style = theme.share(cpu.unwrap_or(0.0));
        pieces.add_whole("CPU ", &busy_text(total), theme, style);
        let share = |used: u64, total: u64| 100.0 * used as f64 / total.max(1) as f64;
        let used = share(memory.total.saturating_sub(memory.available), memory.total);
        pieces.add_whole("mem ", &format!("{used:.0}%"), theme, theme.share(used));
        if memory.swap_total > 0 {
            let used = share(memory.swap_total.saturating_sub(memory.swap_free), memory.swap_total);
            pieces.add_whole("swp ", &format!("{used:.0}%"), theme, theme.share(used));
        }
    }
    let running = tasks.in_states("R").to_string();
    pieces.add_whole("run ", &running, theme, Style::new()).add_whole(
        "tasks ",
        &tasks.total().to_string(),
        theme,
        Style::new(),
    );
    pieces.line()
}

/// What is shown, when that is not all.
fn showing(state: &State, theme: Theme, width: usize) -> Option<Line<'static>> {
    let (filter, user) = (state.filter.as_ref(), state.user.as_ref());
    let host = state.only_host.as_ref();
    if filter.is_none() && user.is_none() && host.is_none() {
        return None;
    }
    let meta = &state.snapshot.as_ref()?.meta;
    let mut pieces = Pieces::new(width);
    let counts = format!("{} of {}", meta.matched, meta.processes);
    pieces.add("Showing ", theme.label()).add(&counts, theme.strong());
    if let Some(host) = host {
        pieces.add("  host ", theme.label()).add(&host.to_string(), theme.strong());
    }
    if let Some(user) = user {
        pieces.add("  user ", theme.label()).add(user, theme.strong());
    }
    if let Some(filter) = filter {
        pieces.add("  where ", theme.label()).add(&filter.typed, theme.strong());
    }
    pieces.add("  (= shows all)", theme.dim());
    Some(pieces.line())
}

fn error(state: &State, theme: Theme, width: usize) -> Option<Line<'static>> {
    let error = state.error.as_ref()?;
    let mut pieces = Pieces::new(width);
    let age = match state.age() {
        Some(age) => format!("no news for {} s: ", age.as_secs()),
        None => String::new(),
    };
    pieces.add(&age, theme.bad()).add(error, theme.bad());
    Some(pieces.line())
}

fn busy_text(share: Option<CpuShare>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", share.busy()))
}

fn cpu_parts(share: Option<CpuShare>, theme: Theme) -> Vec<(f64, Style)> {
    let Some(share) = share else { return Vec::new() };
    vec![
        (share.user, theme.good()),
        (share.system, theme.kernel()),
        (share.steal, theme.stolen()),
        (share.iowait, theme.waiting()),
    ]
}

fn usage(label: &str, used: u64, total: u64, width: usize, theme: Theme) -> Vec<Span<'static>> {
    if total == 0 {
        return bar(label, 4, &[], "none", width, theme);
    }
    let percent = 100.0 * used as f64 / total as f64;
    let size = |bytes| units::size(bytes, SizeStyle::Human);
    let text = format!("{}/{}", size(used), size(total));
    bar(label, 4, &[(percent, theme.share(percent))], &text, width, theme)
}

/// `CPU[|||||      12.3%]` in exactly `width` columns: parts in percent, then a text at the right end,
/// which wins where both want the same place.
fn bar(
    label: &str,
    label_width: usize,
    parts: &[(f64, Style)],
    text: &str,
    width: usize,
    theme: Theme,
) -> Vec<Span<'static>> {
    let mut spans = vec![Span::styled(format!("{label:<label_width$}"), theme.label())];
    let inner = width.saturating_sub(label_width + 2);
    let text_width = columns(text).min(inner);
    let room = inner - text_width;
    spans.push(Span::raw("["));
    let mut drawn = 0;
    let mut sum = 0.0;
    for (percent, style) in parts {
        sum += percent.max(0.0);
        // Parts are rounded by where they end, so that together they are as long as their sum.
        let end = ((sum / 100.0 * inner as f64).round() as usize).min(room);
        if end > drawn {
            spans.push(Span::styled("|".repeat(end - drawn), *style));
            drawn = end;
        }
    }
    spans.push(Span::raw(" ".repeat(room - drawn)));
    spans.push(Span::styled(visible_within(text, text_width), Style::new()));
    spans.push(Span::raw("]"));
    spans
}
