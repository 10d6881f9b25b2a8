//! Where the command writes: a terminal of some size, or a pipe that takes everything.

use std::fmt;
use std::io::{self, BufWriter, IsTerminal as _, Write};

use rustix::termios::tcgetwinsize;

use crate::text;

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set or `TERM` is dumb
    #[default]
    Auto,
    /// Always, also into a pipe
    Always,
    /// Never
    Never,
}

/// How a piece of text looks; nothing without colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Look {
    /// As it is.
    #[default]
    Plain,
    /// A heading.
    Heading,
    /// Less important.
    Dim,
    /// Good.
    Good,
    /// Worth a look.
    Warn,
    /// Bad.
    Bad,
}

impl Look {
    /// The escape sequence that begins it; empty for plain text.
    fn begin(self) -> &'static str {
        match self {
            Look::Plain => "",
            Look::Heading => "\x1b[1m",
            Look::Dim => "\x1b[2m",
            Look::Good => "\x1b[32m",
            Look::Warn => "\x1b[33m",
            Look::Bad => "\x1b[31m",
        }
    }
}

/// Standard output, with what is known about it, and warnings on standard error.
pub struct Output {
    out: BufWriter<io::Stdout>,
    is_terminal: bool,
    color: bool,
}

impl Output {
    /// Standard output of this process.
    pub fn stdout(choice: ColorChoice) -> Output {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        let color = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => is_terminal && color_is_welcome(),
        };
        Output { out: BufWriter::with_capacity(64 * 1024, stdout), is_terminal, color }
    }

    /// Whether a person is reading.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Whether colours may be used.
    pub fn has_color(&self) -> bool {
        self.color
    }

    /// Columns and rows of the terminal now; `None` when it is none, or does not say.
    pub fn size(&self) -> Option<(usize, usize)> {
        let size = self.is_terminal.then(|| tcgetwinsize(io::stdout()).ok()).flatten()?;
        let (columns, rows) = (usize::from(size.ws_col), usize::from(size.ws_row));
        (columns > 0 && rows > 0).then_some((columns, rows))
    }

    /// `text` as it is to look. It must have been made visible before.
    pub fn styled(&self, look: Look, text: &str) -> String {
        if self.color && look != Look::Plain {
            format!("{}{text}\x1b[0m", look.begin())
        } else {
            text.to_owned()
        }
    }

    /// Writes one line.
    ///
    /// # Errors
    /// What the system says, such as that nobody reads any more.
    pub fn line(&mut self, line: impl fmt::Display) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }

    /// Writes text as it is.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn raw(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())
    }

    /// The writer itself, for what comes in bytes.
    pub fn writer(&mut self) -> &mut dyn Write {
        &mut self.out
    }

    /// Sends everything on its way.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Says something on standard error that does not end the command. It may hold hostile text.
    pub fn warn(&mut self, message: impl fmt::Display) {
        // In this order on a terminal that shows both; that nobody reads is found out elsewhere.
        self.out.flush().ok();
        writeln!(io::stderr(), "kumo: {}", text::visible(&message.to_string())).ok();
    }
}

fn color_is_welcome() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !set("NO_COLOR") && !dumb
}
