//! When to ask the source again: at most one question is on its way, a changed one goes out at once,
//! and while nothing changes one goes out in each interval.

use std::time::Duration;

use super::data::Request;

/// What has been asked, and when.
#[derive(Debug, Default)]
pub(super) struct Pace {
    asked: Option<(Request, Duration)>,
    is_waiting: bool,
    is_urgent: bool,
}

impl Pace {
    /// Whether to ask for `wanted` now; it counts as asked then.
    pub(super) fn ask(
        &mut self,
        now: Duration,
        wanted: &Request,
        delay: Duration,
        is_paused: bool,
    ) -> bool {
        if self.is_waiting {
            return false;
        }
        let due = match &self.asked {
            None => true,
            Some((asked, _)) if asked != wanted => true,
            Some(_) if self.is_urgent => true,
            Some((_, at)) => !is_paused && now.saturating_sub(*at) >= delay,
        };
        if due {
            self.asked = Some((wanted.clone(), now));
            self.is_waiting = true;
            self.is_urgent = false;
        }
        due
    }

    /// An answer or a failure has come.
    pub(super) fn answered(&mut self) {
        self.is_waiting = false;
    }

    /// Ask as soon as possible, whatever the interval.
    pub(super) fn hurry(&mut self) {
        self.is_urgent = true;
    }

    /// How long there is nothing to ask if nothing happens; `None` while an answer is waited for.
    pub(super) fn rest(&self, now: Duration, delay: Duration, is_paused: bool) -> Option<Duration> {
        if self.is_waiting || is_paused {
            return None;
        }
        let (_, at) = self.asked.as_ref()?;
        Some((*at + delay).saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::super::data::{Key, Place};
    use super::*;
    use kumo_abi::ProcessId;

    const SECOND: Duration = Duration::from_secs(1);

    fn about(pid: i32) -> Request {
        let id = ProcessId { pid, start_ns: 1 };
        Request { watched: Some(Key::new(Place::default(), id)), ..Request::default() }
    }

    #[test]
    fn one_question_in_each_interval() {
        let mut pace = Pace::default();
        let (start, later) = (Duration::ZERO, Duration::from_millis(999));
        assert!(pace.ask(start, &about(1), SECOND, false));
        assert!(!pace.ask(9 * SECOND, &about(1), SECOND, false), "one is on its way");
        assert_eq!(pace.rest(start, SECOND, false), None);
        pace.answered();
        assert_eq!(pace.rest(later, SECOND, false), Some(Duration::from_millis(1)));
        assert!(!pace.ask(later, &about(1), SECOND, false));
        assert!(pace.ask(SECOND, &about(1), SECOND, false));
    }

    #[test]
    fn a_changed_question_goes_out_at_once_but_never_beside_another() {
        let mut pace = Pace::default();
        assert!(pace.ask(Duration::ZERO, &about(1), SECOND, false));
        assert!(!pace.ask(Duration::ZERO, &about(2), SECOND, false));
        pace.answered();
        assert!(pace.ask(Duration::ZERO, &about(2), SECOND, false));
    }

    #[test]
    fn a_pause_lets_only_changes_and_wishes_through() {
        let mut pace = Pace::default();
        assert!(pace.ask(Duration::ZERO, &about(1), SECOND, true));
        pace.answered();
        assert!(!pace.ask(99 * SECOND, &about(1), SECOND, true));
        assert_eq!(pace.rest(99 * SECOND, SECOND, true), None);
        pace.hurry();
        assert!(pace.ask(99 * SECOND, &about(1), SECOND, true));
        pace.answered();
        assert!(pace.ask(99 * SECOND, &about(2), SECOND, true));
    }
}
