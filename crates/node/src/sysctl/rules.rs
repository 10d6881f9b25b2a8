//! What is done about a change of a kernel parameter, and when. Plain values; time is an argument.
//!
//! A change is on the disk before it is made. So whoever ends the node, the next one knows what may
//! have been done: it looks at the value, and gives back the old one only where the new one still
//! stands. What somebody else has written meanwhile is his.

use kumo_abi::sysctl::{Change, ChangeState, same_value};
use serde::{Deserialize, Serialize};

/// A change as the disk has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// What people see of it.
    #[serde(flatten)]
    pub(crate) change: Change,
    /// The kernel whose value it is.
    pub(crate) kernel: Kernel,
    /// When it began, by the kernel's clock that goes on in sleep.
    pub(crate) began_ns: u64,
    /// When it is taken back; never without.
    pub(crate) due_ns: Option<u64>,
}

/// What a value lives in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kernel {
    /// One boot.
    pub(crate) boot_id: String,
    /// The network namespace, for parameters below `net`.
    pub(crate) network_namespace: u64,
}

/// What a look at the parameter showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Its value.
    Value(String),
    /// There is none of that name any more.
    Gone,
}

/// What a node does about a change that it finds on the disk when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// It had ended; only its entry in the journal may be missing.
    File,
    /// The value went with its kernel or its namespace.
    Gone(&'static str),
    /// Take it back: it is due.
    TakeBack,
    /// It waits for its time.
    Wait,
    /// Look whether it was made.
    Settle,
}

/// What is done about a change that is to be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Back {
    /// Write the old value.
    Write,
    /// Nothing, and that is its end.
    End(ChangeState, Option<&'static str>),
}

/// Whether the time is over in which it could be confirmed. A clock that is before the beginning is
/// another clock: then nobody can say how long it has been.
pub(crate) fn is_due(kept: &Kept, now_ns: u64) -> bool {
    kept.due_ns.is_some_and(|due_ns| now_ns >= due_ns || now_ns < kept.began_ns)
}

/// What is left of its time, in milliseconds.
pub(crate) fn left_ms(kept: &Kept, now_ns: u64) -> Option<u64> {
    let due_ns = kept.due_ns.filter(|_| kept.change.state == ChangeState::Pending)?;
    Some(if is_due(kept, now_ns) { 0 } else { (due_ns - now_ns).div_ceil(1_000_000) })
}

/// What a node does that starts.
pub(crate) fn at_start(kept: &Kept, kernel: &Kernel, now_ns: u64) -> Found {
    let of_network = kept.change.name.path().starts_with("net/");
    match kept.change.state {
        state if state.is_end() => Found::File,
        _ if kept.kernel.boot_id != kernel.boot_id => Found::Gone(
            "the host has booted since, so the kernel has the value that its boot gave it",
        ),
        _ if of_network && kept.kernel.network_namespace != kernel.network_namespace => {
            Found::Gone(
                "the node is in another network namespace since, whose parameters are others",
            )
        }
        _ if is_due(kept, now_ns) => Found::TakeBack,
        ChangeState::Intended => Found::Settle,
        _ => Found::Wait,
    }
}

/// What is done about a change that is to be taken back, by what stands there now.
pub(crate) fn take_back(change: &Change, seen: &Seen) -> Back {
    let Seen::Value(now) = seen else {
        return Back::End(ChangeState::Gone, Some("the parameter is gone, and its value with it"));
    };
    if change.old.as_ref() == Some(now) {
        let why = match change.state {
            ChangeState::Intended => "the node ended before it wrote the value",
            _ => "the old value was there already",
        };
        let is_made = change.state != ChangeState::Intended;
        let state = if is_made { ChangeState::RolledBack } else { ChangeState::NotMade };
        return Back::End(state, Some(why));
    }
    let is_ours = match &change.became {
        Some(became) => became == now,
        // The node ended between the write and the look at what became of it.
        None => change.wanted.as_ref().is_some_and(|wanted| same_value(wanted, now)),
    };
    if is_ours {
        return Back::Write;
    }
    Back::End(
        ChangeState::Overtaken,
        Some("somebody else has changed the value meanwhile; it was left as it is"),
    )
}

/// What became of a change that nobody wrote down, by what stands there now.
pub(crate) fn settle(change: &Change, seen: &Seen) -> (ChangeState, &'static str) {
    match seen {
        Seen::Gone => (ChangeState::Gone, "the parameter is gone, and its value with it"),
        Seen::Value(now) if change.wanted.as_ref().is_some_and(|it| same_value(it, now)) => {
            let made = if change.confirm_within_ms.is_some() {
                ChangeState::Pending
            } else {
                ChangeState::Made
            };
            (made, "the node ended before it said so; the value is there")
        }
        Seen::Value(now) if change.old.as_ref() == Some(now) => {
            (ChangeState::NotMade, "the node ended before it wrote the value")
        }
        Seen::Value(_) => (
            ChangeState::Unknown,
            "the node ended while it wrote, and the value is neither the old one nor the one that \
             was asked for",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn kept(name: &str, state: ChangeState, became: Option<&str>, due_s: Option<u64>) -> Kept {
        let text = |text: &str| Some(text.to_owned());
        let change = Change {
            id: "00000000000000aa".parse().expect("an id"),
            name: name.parse().expect("a name"),
            at: "2026-11-28T09:00:00.000000Z".to_owned(),
            who: "user 0".to_owned(),
            old: text("60"),
            wanted: text("0x0a"),
            became: became.map(str::to_owned),
            state,
            why: None,
            confirm_within_ms: due_s.map(|due_s| (due_s - 100) * 1_000),
            left_ms: None,
            ended_at: None,
            ended_by: None,
            private: false,
        };
        Kept { change, kernel: kernel("b", 7), began_ns: 100 * S, due_ns: due_s.map(|s| s * S) }
    }

    fn kernel(boot_id: &str, network_namespace: u64) -> Kernel {
        Kernel { boot_id: boot_id.to_owned(), network_namespace }
    }

    #[test]
    fn what_a_node_does_that_starts() {
        use ChangeState::{Confirmed, Intended, Pending, RolledBack};
        let (vm, net) = ("vm.swappiness", "net.ipv4.ip_forward");
        let here = kernel("b", 7);
        let booted = "the host has booted since, so the kernel has the value that its boot gave it";
        let other = "the node is in another network namespace since, whose parameters are others";
        let cases = [
            (vm, Pending, Some(130), &here, 120, Found::Wait),
            (vm, Pending, Some(130), &here, 130, Found::TakeBack),
            (vm, Pending, Some(130), &here, 500, Found::TakeBack),
            // The clock is another one.
            (vm, Pending, Some(130), &here, 99, Found::TakeBack),
            (vm, Intended, Some(130), &here, 120, Found::Settle),
            (vm, Intended, Some(130), &here, 131, Found::TakeBack),
            (vm, Intended, None, &here, 500, Found::Settle),
            (vm, Confirmed, Some(130), &here, 500, Found::File),
            (vm, RolledBack, Some(130), &kernel("c", 7), 500, Found::File),
            (vm, Pending, Some(130), &kernel("c", 7), 5, Found::Gone(booted)),
            (vm, Intended, None, &kernel("c", 7), 5, Found::Gone(booted)),
            (vm, Pending, Some(130), &kernel("b", 8), 131, Found::TakeBack),
            (net, Pending, Some(130), &kernel("b", 8), 120, Found::Gone(other)),
            (net, Pending, Some(130), &here, 131, Found::TakeBack),
        ];
        for (name, state, due_s, kernel, now_s, want) in cases {
            let kept = kept(name, state, None, due_s);
            assert_eq!(at_start(&kept, kernel, now_s * S), want, "{name} {state:?} at {now_s}");
        }
    }

    #[test]
    fn what_is_taken_back_and_what_is_left() {
        use ChangeState::{Gone, Intended, NotMade, Overtaken, Pending, RolledBack};
        let cases = [
            (Pending, Some("10"), Some("10"), None),
            (Pending, Some("10"), Some("60"), Some(RolledBack)),
            (Pending, Some("10"), Some("11"), Some(Overtaken)),
            // What the kernel wrote is compared to the letter: 0x0a is none of its forms.
            (Pending, Some("10"), Some("0x0a"), Some(Overtaken)),
            (Pending, Some("10"), None, Some(Gone)),
            (Intended, None, Some("10"), None),
            (Intended, None, Some("60"), Some(NotMade)),
            (Intended, None, Some("11"), Some(Overtaken)),
        ];
        for (state, became, now, want) in cases {
            let kept = kept("vm.swappiness", state, became, Some(130));
            let seen = now.map_or(Seen::Gone, |now| Seen::Value(now.to_owned()));
            let got = match take_back(&kept.change, &seen) {
                Back::Write => None,
                Back::End(state, _) => Some(state),
            };
            assert_eq!(got, want, "{state:?}, became {became:?}, now {now:?}");
        }
    }

    #[test]
    fn what_a_killed_node_was_doing() {
        use ChangeState::{Gone, Intended, Made, NotMade, Pending, Unknown};
        let cases = [
            (None, Some("10"), Made),
            (Some(130), Some("10"), Pending),
            (None, Some("60"), NotMade),
            (None, Some("11"), Unknown),
            (None, None, Gone),
        ];
        for (due_s, now, want) in cases {
            let kept = kept("vm.swappiness", Intended, None, due_s);
            let seen = now.map_or(Seen::Gone, |now| Seen::Value(now.to_owned()));
            assert_eq!(settle(&kept.change, &seen).0, want, "{due_s:?}, now {now:?}");
        }
    }

    #[test]
    fn what_is_left_of_the_time() {
        let kept = kept("vm.swappiness", ChangeState::Pending, Some("10"), Some(130));
        for (now_ns, want) in
            [(100 * S, 30_000), (130 * S - 1, 1), (130 * S, 0), (999 * S, 0), (0, 0)]
        {
            assert_eq!(left_ms(&kept, now_ns), Some(want), "at {now_ns}");
            assert_eq!(is_due(&kept, now_ns), want == 0, "at {now_ns}");
        }
        let forever = super::Kept { due_ns: None, ..kept };
        assert_eq!((left_ms(&forever, 999 * S), is_due(&forever, 999 * S)), (None, false));
    }
}
