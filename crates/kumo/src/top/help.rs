//! The help screen: the keys, from the table that also decides what they do, and how to read the rest.

use ratatui::text::{Line, Span};

use super::keys::BINDINGS;
use super::state::State;
use super::theme::Theme;
use crate::text::{columns, visible_within};

/// Lines for the title above and the hint below.
const FRAME_LINES: usize = 2;

/// What to know beside the keys, a paragraph each.
const NOTES: &[&str] = &[
    "%CPU is use since an earlier reading; 100 is one whole CPU. %MEM is resident memory (RES), of all \
     memory. SHR may be shared, so RES of many processes adds up to more than there is. TIME+ is user \
     and system time of all threads. `-` is not there, or not ours to read.",
    "S: R running, S sleeping, D in I/O, I idle, T stopped, t traced, Z zombie, X dead, P parked.",
    "Bars: of CPUs user, system, stolen by the hypervisor, waiting for I/O; of memory what could not \
     be given back at once. Pressure: the share of the last 10 s in which some task, or all, waited.",
    "A filter is a part of the command line, or CEL over any column, such as cpu > 5.0 && user == \
     \"www-data\"; `kumo ps --columns` lists the columns.",
    "A signal reaches exactly the process that was selected, or nobody.",
];

/// How many lines are shown at once.
pub(super) fn page(state: &State) -> usize {
    usize::from(state.size.1).saturating_sub(FRAME_LINES).max(1)
}

/// All lines, folded to the width of the terminal.
pub(super) fn lines(state: &State) -> Vec<Line<'static>> {
    let theme = Theme::new(state.color);
    let width = usize::from(state.size.0).max(1);
    let label_width = BINDINGS.iter().map(|binding| columns(binding.label)).max().unwrap_or(0) + 2;
    let mut lines = Vec::new();
    for binding in BINDINGS {
        if label_width + 24 <= width {
            let label = format!("{:<label_width$}", binding.label);
            let folded = fold(binding.about, width - label_width);
            for (index, about) in folded.into_iter().enumerate() {
                let label = if index == 0 { label.clone() } else { " ".repeat(label_width) };
                lines.push(Line::from(vec![Span::styled(label, theme.strong()), Span::raw(about)]));
            }
        } else {
            let label = visible_within(binding.label, width);
            lines.push(Line::from(Span::styled(label, theme.strong())));
            let about = fold(binding.about, width.saturating_sub(2).max(1));
            lines.extend(about.into_iter().map(|about| Line::from(format!("  {about}"))));
        }
    }
    for note in NOTES {
        lines.push(Line::default());
        lines.extend(fold(note, width).into_iter().map(Line::from));
    }
    lines
}

/// Cuts a text that is already visible into lines of at most `width` columns, between words where one
/// fits, and inside of them where none does.
pub(super) fn fold(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let gap = usize::from(!line.is_empty());
        if columns(&line) + gap + columns(word) <= width {
            if gap > 0 {
                line.push(' ');
            }
            line.push_str(word);
            continue;
        }
        if !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        for c in word.chars() {
            let wide = columns(c.encode_utf8(&mut [0; 4]));
            if columns(&line) + wide > width && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            line.push(c);
        }
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_folded_between_words() {
        let cases: [(&str, usize, &[&str]); 6] = [
            ("", 5, &[""]),
            ("one two", 7, &["one two"]),
            ("one two", 6, &["one", "two"]),
            ("abcdefgh ij", 3, &["abc", "def", "gh", "ij"]),
            ("日本語", 4, &["日本", "語"]),
            ("日本", 1, &["日", "本"]),
        ];
        for (text, width, want) in cases {
            assert_eq!(fold(text, width), want, "for {text:?} in {width}");
        }
    }
}
