//! The keys of the table, once: what they do and what the help screen says of them.
//!
//! People come from top and from htop, so both ways to say a thing work where they do not clash.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use kumo_abi::proc::Column;

/// What a key in the table means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Leave.
    Quit,
    /// Stop until the shell continues us.
    Suspend,
    /// Draw everything anew.
    Redraw,
    /// Show the keys.
    Help,
    /// Sort by this column, the large first where large matters.
    SortBy(Column),
    /// Choose the sort column from a list.
    SortList,
    /// Sort by the next column to the left (-1) or right (1).
    SortShift(i8),
    /// Turn the order around.
    Reverse,
    /// Type a text to go to.
    Search,
    /// Go to the next row that has it.
    SearchNext,
    /// Type a condition.
    Filter,
    /// Show all processes again.
    ShowAll,
    /// Choose a user from a list.
    User,
    /// Show a row for each host, or for each process.
    ByHost,
    /// Show the tree, or the flat table.
    Tree,
    /// Show the column of threads, or not.
    Threads,
    /// Show command lines, or names.
    FullCommand,
    /// Show all of one process.
    Detail,
    /// Send a signal.
    Kill,
    /// Stop asking for data, or go on.
    Pause,
    /// Ask for data now.
    Refresh,
    /// Longer or shorter between two readings.
    Slower,
    /// See `Slower`.
    Faster,
    /// Of a replay: so many readings on, or back; then it pauses.
    Replay(i8),
    /// The same by minutes; it goes on.
    ReplayMinute(i8),
    /// Let go of the selected process and of the search.
    Unselect,
    /// Move by rows.
    Rows(i8),
    /// Move by pages.
    Pages(i8),
    /// The first row.
    First,
    /// The last row.
    Last,
    /// Shift the command to the left or right.
    Shift(i8),
}

/// Some keys and what they do.
#[derive(Debug)]
pub(super) struct Binding {
    /// How the help screen writes them.
    pub(super) label: &'static str,
    /// What they do, for the help screen.
    pub(super) about: &'static str,
    /// Each key and its action.
    pub(super) keys: &'static [(KeyCode, Action)],
    /// The same with the control key.
    pub(super) control: &'static [(char, Action)],
}

const fn keys(
    label: &'static str,
    about: &'static str,
    keys: &'static [(KeyCode, Action)],
) -> Binding {
    Binding { label, about, keys, control: &[] }
}

const fn with_control(
    label: &'static str,
    about: &'static str,
    keys: &'static [(KeyCode, Action)],
    control: &'static [(char, Action)],
) -> Binding {
    Binding { label, about, keys, control }
}

use KeyCode::{Char, F};

/// Every key of the table, in the order of the help screen.
pub(super) const BINDINGS: &[Binding] = &[
    with_control(
        "Up Down PgUp PgDn Home End",
        "select a process; the selection stays with it",
        &[
            (KeyCode::Up, Action::Rows(-1)),
            (KeyCode::Down, Action::Rows(1)),
            (KeyCode::PageUp, Action::Pages(-1)),
            (KeyCode::PageDown, Action::Pages(1)),
            (KeyCode::Home, Action::First),
            (KeyCode::End, Action::Last),
        ],
        &[
            ('p', Action::Rows(-1)),
            ('n', Action::Rows(1)),
            ('b', Action::Pages(-1)),
            ('f', Action::Pages(1)),
        ],
    ),
    keys(
        "Left Right",
        "shift long commands",
        &[(KeyCode::Left, Action::Shift(-1)), (KeyCode::Right, Action::Shift(1))],
    ),
    keys("Esc", "let go of the selection and the search", &[(KeyCode::Esc, Action::Unselect)]),
    keys(
        "P M T N",
        "sort by CPU, memory, time, process number",
        &[
            (Char('P'), Action::SortBy(Column::Cpu)),
            (Char('M'), Action::SortBy(Column::Mem)),
            (Char('T'), Action::SortBy(Column::Time)),
            (Char('N'), Action::SortBy(Column::Pid)),
        ],
    ),
    keys(
        "F6 < >",
        "choose the sort column; the one to the left, right",
        &[
            (F(6), Action::SortList),
            (Char('<'), Action::SortShift(-1)),
            (Char('>'), Action::SortShift(1)),
        ],
    ),
    keys("I R", "reverse the order", &[(Char('I'), Action::Reverse), (Char('R'), Action::Reverse)]),
    keys(
        "/ F3, n",
        "search for a text; the next one",
        &[(Char('/'), Action::Search), (F(3), Action::Search), (Char('n'), Action::SearchNext)],
    ),
    keys(
        "\\ F4",
        "show only some: a part of the command line, or CEL",
        &[(Char('\\'), Action::Filter), (F(4), Action::Filter)],
    ),
    keys("u", "show only one user", &[(Char('u'), Action::User)]),
    keys("=", "show all again", &[(Char('='), Action::ShowAll)]),
    keys(
        "g",
        "of many hosts: a row for each host, Enter shows its processes",
        &[(Char('g'), Action::ByHost)],
    ),
    keys("t F5", "tree, or flat", &[(Char('t'), Action::Tree), (F(5), Action::Tree)]),
    keys("H", "threads column on, off", &[(Char('H'), Action::Threads)]),
    keys("c", "command line, or name", &[(Char('c'), Action::FullCommand)]),
    keys(
        "Enter i",
        "all about the selected process",
        &[(KeyCode::Enter, Action::Detail), (Char('i'), Action::Detail)],
    ),
    keys("k F9", "send it a signal", &[(Char('k'), Action::Kill), (F(9), Action::Kill)]),
    keys(
        "+ -",
        "refresh less often, more often",
        &[(Char('+'), Action::Slower), (Char('-'), Action::Faster)],
    ),
    with_control(
        "Space, r, Ctrl-L",
        "pause; read now; draw anew",
        &[(Char(' '), Action::Pause), (Char('r'), Action::Refresh)],
        &[('l', Action::Redraw)],
    ),
    keys(
        "[ ] { }",
        "of a replay: a step back, on; a minute back, on",
        &[
            (Char('['), Action::Replay(-1)),
            (Char(']'), Action::Replay(1)),
            (Char('{'), Action::ReplayMinute(-1)),
            (Char('}'), Action::ReplayMinute(1)),
        ],
    ),
    keys(
        "h F1 ?",
        "this help",
        &[(Char('h'), Action::Help), (F(1), Action::Help), (Char('?'), Action::Help)],
    ),
    with_control(
        "q F10, Ctrl-Z",
        "quit; suspend",
        &[(Char('q'), Action::Quit), (Char('Q'), Action::Quit), (F(10), Action::Quit)],
        &[('c', Action::Quit), ('z', Action::Suspend)],
    ),
];

/// What a key in the table means; `None` if it has no meaning.
pub(super) fn action(key: KeyEvent) -> Option<Action> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    if key.modifiers.contains(KeyModifiers::ALT) {
        return None;
    }
    BINDINGS.iter().find_map(|binding| {
        if control {
            let found = binding.control.iter().find(|(c, _)| Char(*c) == key.code);
            found.map(|(_, action)| *action)
        } else {
            binding.keys.iter().find(|(code, _)| *code == key.code).map(|(_, action)| *action)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_top_and_htop() {
        let cases = [
            (Char('P'), false, Some(Action::SortBy(Column::Cpu))),
            (Char('M'), false, Some(Action::SortBy(Column::Mem))),
            (Char('T'), false, Some(Action::SortBy(Column::Time))),
            (Char('N'), false, Some(Action::SortBy(Column::Pid))),
            (F(6), false, Some(Action::SortList)),
            (Char('I'), false, Some(Action::Reverse)),
            (Char('/'), false, Some(Action::Search)),
            (Char('\\'), false, Some(Action::Filter)),
            (F(4), false, Some(Action::Filter)),
            (Char('t'), false, Some(Action::Tree)),
            (F(5), false, Some(Action::Tree)),
            (Char('H'), false, Some(Action::Threads)),
            (Char('k'), false, Some(Action::Kill)),
            (F(9), false, Some(Action::Kill)),
            (Char('c'), true, Some(Action::Quit)),
            (Char('c'), false, Some(Action::FullCommand)),
            (Char('z'), true, Some(Action::Suspend)),
            (Char('k'), true, None),
            (Char('X'), false, None),
        ];
        for (code, control, want) in cases {
            let held = if control { KeyModifiers::CONTROL } else { KeyModifiers::NONE };
            assert_eq!(action(KeyEvent::new(code, held)), want, "for {code:?}, control {control}");
        }
    }

    #[test]
    fn no_key_means_two_things() {
        let plain: Vec<KeyCode> =
            BINDINGS.iter().flat_map(|b| b.keys.iter().map(|(code, _)| *code)).collect();
        let control: Vec<KeyCode> =
            BINDINGS.iter().flat_map(|b| b.control.iter().map(|(c, _)| Char(*c))).collect();
        for list in [plain, control] {
            for (index, key) in list.iter().enumerate() {
                assert!(!list[..index].contains(key), "{key:?} stands twice");
            }
        }
    }
}
