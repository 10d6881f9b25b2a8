//! Whether a host still answers: the rule, as plain values. Times are milliseconds of a monotonic clock.
//!
//! While somebody wants to know, a host is asked every [`BEAT_MS`]. Three beats without an answer mean that
//! it is lost; an answer means that it is back. An answer that is late is one all the same, so that the
//! length of the way does not count once a first answer has come. Who stood still himself heard nobody
//! meanwhile, and begins anew. A kernel that answers that no node listens is no black hole: nodes are
//! restarted, and the connections of programs live on.

/// So often a host is asked.
pub const BEAT_MS: u64 = 100;

/// Nothing heard for so long: within it at least three beats went out, and the third had half a beat's time.
const SILENT_MS: u64 = 3 * BEAT_MS + BEAT_MS / 2;

/// A beat that is late by so much means that this host stood still, frozen or without a processor.
const STILL_MS: u64 = BEAT_MS;

/// So long a node may be away while its kernel says so: a restart, also one for a new version.
const DOWN_MS_MAX: u64 = 5_000;

/// What is known of a host that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostLife {
    /// It answers; so it is taken to be until the contrary is known.
    Answers,
    /// Its kernel does, and says that no node listens there. What runs on the host may live.
    NodeDown,
    /// Three beats were not answered: it died, froze, or the way to it is broken.
    Lost,
}

/// One host's beats.
#[derive(Clone, Debug)]
pub(super) struct Beats {
    life: HostLife,
    /// When something was heard last, or the wait began anew.
    heard_ms: u64,
    /// What a first answer may take longer than [`SILENT_MS`].
    first_ms: u64,
    /// When it was asked last.
    asked_ms: u64,
    /// Since when its kernel has said that no node listens.
    down_ms: Option<u64>,
    /// What a first answer may take longer after we stood still.
    way_ms: u64,
}

impl Beats {
    /// Begins at `now_ms`. An answer takes `way_ms` to come: a round trip.
    pub(super) fn new(now_ms: u64, way_ms: u64) -> Beats {
        Beats {
            life: HostLife::Answers,
            heard_ms: now_ms,
            first_ms: way_ms,
            asked_ms: now_ms,
            down_ms: None,
            way_ms,
        }
    }

    /// An answer came.
    pub(super) fn heard(&mut self, now_ms: u64) -> Option<HostLife> {
        (self.heard_ms, self.first_ms, self.down_ms) = (now_ms, 0, None);
        self.becomes(HostLife::Answers)
    }

    /// Its kernel said, at `now_ms`, that no node listens where one did.
    pub(super) fn refused(&mut self, now_ms: u64) -> Option<HostLife> {
        let since_ms = *self.down_ms.get_or_insert(now_ms);
        if self.life == HostLife::Lost || now_ms.saturating_sub(since_ms) >= DOWN_MS_MAX {
            return None;
        }
        self.heard_ms = now_ms;
        self.becomes(HostLife::NodeDown)
    }

    /// It is asked now, once more.
    pub(super) fn ask(&mut self, now_ms: u64) -> Option<HostLife> {
        let late_ms = now_ms.saturating_sub(self.asked_ms).saturating_sub(BEAT_MS);
        self.asked_ms = now_ms;
        if late_ms >= STILL_MS {
            (self.heard_ms, self.first_ms) = (now_ms, self.way_ms);
        }
        let silent_ms = now_ms.saturating_sub(self.heard_ms);
        if silent_ms < SILENT_MS + self.first_ms {
            return None;
        }
        self.becomes(HostLife::Lost)
    }

    fn becomes(&mut self, life: HostLife) -> Option<HostLife> {
        let is_news = self.life != life;
        self.life = life;
        is_news.then_some(life)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use HostLife::{Answers, Lost, NodeDown};

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Ask,
        Heard,
        Refused,
    }
    use Event::{Ask, Heard, Refused};

    /// Beats from 0 on, every 100 ms until `until_ms`.
    fn asks(until_ms: u64) -> impl Iterator<Item = (u64, Event)> {
        (0..=until_ms / BEAT_MS).map(|beat| (beat * BEAT_MS, Ask))
    }

    /// What is told, and when.
    fn told(way_ms: u64, events: Vec<(u64, Event)>) -> Vec<(u64, HostLife)> {
        let mut events = events;
        events.sort_by_key(|(at_ms, _)| *at_ms);
        let mut beats = Beats::new(0, way_ms);
        let tell = |(at_ms, event)| {
            let news = match event {
                Ask => beats.ask(at_ms),
                Heard => beats.heard(at_ms),
                Refused => beats.refused(at_ms),
            };
            news.map(|life| (at_ms, life))
        };
        events.into_iter().filter_map(tell).collect()
    }

    /// What happens, how long its way is, all events, and what is told when.
    type Case = (&'static str, u64, Vec<(u64, Event)>, Vec<(u64, HostLife)>);

    #[test]
    fn three_beats_without_an_answer_mean_that_a_host_is_lost() {
        let answers = |from_ms: u64, to_ms: u64, after_ms: u64| {
            (from_ms / BEAT_MS..=to_ms / BEAT_MS)
                .map(move |beat| (beat * BEAT_MS + after_ms, Heard))
        };
        #[rustfmt::skip]
        let cases: [Case; 10] = [
            ("it always answers", 0, asks(2_000).chain(answers(0, 2_000, 1)).collect(), vec![]),
            ("its last answer came at 1,001", 0, asks(2_000).chain(answers(0, 1_000, 1)).collect(), vec![(1_400, Lost)]),
            ("its last answer came at 1,099", 0, asks(2_000).chain(answers(0, 1_000, 99)).collect(), vec![(1_500, Lost)]),
            ("two are missing", 0, asks(2_000).chain(answers(0, 1_000, 1)).chain(answers(1_300, 2_000, 1)).collect(), vec![]),
            ("a way of 400 ms", 400, asks(2_000).chain(answers(0, 2_000, 400)).collect(), vec![]),
            ("a way of 400 ms, then silence from 1,000 on", 400, asks(3_000).chain(answers(0, 1_000, 400)).collect(), vec![(1_800, Lost)]),
            ("it never answers", 50, asks(1_000).collect(), vec![(400, Lost)]),
            ("it comes back", 0, asks(2_000).chain([(1_234, Heard)]).collect(), vec![(400, Lost), (1_234, Answers), (1_600, Lost)]),
            ("its node restarts", 0, asks(1_000).chain(answers(0, 200, 1)).chain([(250, Refused), (450, Refused), (650, Refused), (850, Heard)]).collect(), vec![(250, NodeDown), (850, Answers)]),
            ("its node is gone and then its host", 0, asks(1_500).chain([(150, Refused), (350, Refused)]).collect(), vec![(150, NodeDown), (700, Lost)]),
        ];
        for (what, way_ms, events, want) in cases {
            assert_eq!(told(way_ms, events), want, "{what}");
        }
    }

    #[test]
    fn a_node_is_not_away_for_ever() {
        let refused = (0..100).map(|beat| (beat * BEAT_MS + 50, Refused));
        let told = told(0, asks(10_000).chain(refused).collect());
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], (50, NodeDown));
        let (lost_ms, life) = told[1];
        assert_eq!(life, Lost);
        assert!((DOWN_MS_MAX..DOWN_MS_MAX + 500).contains(&lost_ms), "at {lost_ms}");
    }

    #[test]
    fn who_stood_still_himself_gives_others_time() {
        // Frozen from 500 to 5,000; answers were on the way or not.
        for (answers_ms, want) in [(Some(5_090), vec![]), (None, vec![(5_400, Lost)])] {
            let before = (0..=5).flat_map(|beat| [(beat * 100, Ask), (beat * 100 + 1, Heard)]);
            let after = (50..=54).map(|beat| (beat * 100, Ask));
            let answer = answers_ms.map(|at_ms| (at_ms, Heard));
            let events = before.chain(after).chain(answer).collect();
            assert_eq!(told(0, events), want, "answered at {answers_ms:?}");
        }
    }
}
