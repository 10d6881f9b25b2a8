//! How things look: colours where they are welcome, weight and underlines where they are not, so that
//! nothing is said by colour alone.

use ratatui::style::{Color, Modifier, Style};

/// The looks of the view, with or without colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Theme {
    color: bool,
}

impl Theme {
    /// With colours or without.
    pub(super) fn new(color: bool) -> Theme {
        Theme { color }
    }

    fn fg(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    /// Names of values.
    pub(super) fn label(self) -> Style {
        self.fg(Color::Cyan)
    }

    /// What the eye should find first.
    #[expect(clippy::unused_self, reason = "all looks are asked for in one way")]
    pub(super) fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// What matters less.
    pub(super) fn dim(self) -> Style {
        self.fg(Color::DarkGray)
    }

    /// Small and harmless.
    pub(super) fn good(self) -> Style {
        self.fg(Color::Green)
    }

    /// Worth a look.
    pub(super) fn warn(self) -> Style {
        self.fg(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// Wrong, or close to a limit.
    pub(super) fn bad(self) -> Style {
        self.fg(Color::Red).add_modifier(Modifier::BOLD)
    }

    /// The kernel's part of a bar.
    pub(super) fn kernel(self) -> Style {
        self.fg(Color::Red)
    }

    /// The part of a bar that waits for storage.
    pub(super) fn waiting(self) -> Style {
        self.fg(Color::Blue)
    }

    /// The part of a bar that others took.
    pub(super) fn stolen(self) -> Style {
        self.fg(Color::Magenta)
    }

    /// The headings of the table.
    pub(super) fn heading(self) -> Style {
        if self.color {
            Style::new().fg(Color::Black).bg(Color::Green)
        } else {
            Style::new().add_modifier(Modifier::REVERSED)
        }
    }

    /// The heading of the column that the table is sorted by.
    pub(super) fn heading_sorted(self) -> Style {
        if self.color {
            Style::new().fg(Color::Black).bg(Color::Cyan).add_modifier(Modifier::BOLD)
        } else {
            Style::new().add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
        }
    }

    /// The selected line of the table or of a list.
    pub(super) fn selected(self) -> Style {
        if self.color {
            Style::new().fg(Color::Black).bg(Color::Cyan)
        } else {
            Style::new().add_modifier(Modifier::REVERSED)
        }
    }

    /// What a key does, in the last line.
    pub(super) fn key_label(self) -> Style {
        self.selected()
    }

    /// By a share of something that has an end, in percent: 60 is worth a look, 85 is close to it.
    pub(super) fn share(self, percent: f64) -> Style {
        match percent {
            85.0.. => self.bad(),
            60.0.. => self.warn(),
            _ => self.good(),
        }
    }
}
