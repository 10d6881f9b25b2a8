//! Names of user and group ids, remembered for a while.
//!
//! The name service may be a file or a server on the network; a name that is asked for a thousand
//! times a second must cost nothing, a renamed user must show soon, and a server that hangs must not
//! stop answers. So names are looked up by a thread of their own, and nobody waits for one that has
//! been at it for longer than [`WAIT_MAX`]: the last known name, or the number, stands for what is
//! not known in time, until the thread has found it.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User};

use crate::row::Names;

/// How long a name is remembered.
const NAME_AGE_MAX: Duration = Duration::from_secs(60);

/// Most ids that are remembered, and most that wait to be looked up; user namespaces can make up
/// millions.
const NAMES_MAX: usize = 65_536;

/// Longest wait of an answer for names. Files answer within a millisecond, servers nearby within
/// some tens.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// What finds a name; it may block for as long as it likes.
type Lookup = dyn Fn(u32) -> Option<String> + Send + Sync;

/// Remembers names.
#[derive(Debug)]
pub(crate) struct NameCache {
    shared: Arc<Shared>,
    wait_max: Duration,
}

struct Shared {
    lookup: Box<Lookup>,
    known: Mutex<Known>,
    /// Told when nothing is left to look up.
    done: Condvar,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("known", &self.known).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Known {
    since: Instant,
    names: Arc<Names>,
    /// Names of the minute before: better than numbers while the name service hangs.
    old: Arc<Names>,
    /// What is to be looked up, and when it was asked for; the first is being looked up.
    queue: VecDeque<(u32, Instant)>,
    queued: HashSet<u32>,
    /// Whether the thread runs. It ends when there is nothing left to look up.
    running: bool,
}

impl NameCache {
    /// For user ids.
    pub(crate) fn users() -> NameCache {
        let lookup = |uid| User::from_uid(Uid::from_raw(uid)).ok()?.map(|user| user.name);
        NameCache::new(WAIT_MAX, lookup)
    }

    /// For group ids.
    pub(crate) fn groups() -> NameCache {
        let lookup = |gid| Group::from_gid(Gid::from_raw(gid)).ok()?.map(|group| group.name);
        NameCache::new(WAIT_MAX, lookup)
    }

    fn new(
        wait_max: Duration,
        lookup: impl Fn(u32) -> Option<String> + Send + Sync + 'static,
    ) -> NameCache {
        let known = Known {
            since: Instant::now(),
            names: Arc::default(),
            old: Arc::default(),
            queue: VecDeque::new(),
            queued: HashSet::new(),
            running: false,
        };
        let shared =
            Shared { lookup: Box::new(lookup), known: Mutex::new(known), done: Condvar::new() };
        NameCache { shared: Arc::new(shared), wait_max }
    }

    /// The name of one id; its number if it has none, or none is known in time.
    pub(crate) fn one(&self, id: u32) -> Arc<str> {
        let names = self.of(std::iter::once(id));
        names.get(&id).cloned().unwrap_or_else(|| id.to_string().into())
    }

    /// Names of `ids`, as far as they are known in time. An id without a name maps to its number.
    pub(crate) fn of(&self, ids: impl Iterator<Item = u32>) -> Arc<Names> {
        let now = Instant::now();
        let mut known = self.shared.known();
        if known.since.elapsed() > NAME_AGE_MAX || known.names.len() > NAMES_MAX {
            known.old = std::mem::take(&mut known.names);
            known.since = now;
        }
        let mut wanted = Vec::new();
        let mut last = None;
        for id in ids {
            // Neighbours mostly share their owner.
            if last.replace(id) == Some(id) || known.names.contains_key(&id) {
                continue;
            }
            wanted.push(id);
            if known.queue.len() < NAMES_MAX && known.queued.insert(id) {
                known.queue.push_back((id, now));
            }
        }
        if wanted.is_empty() {
            return known.names.clone();
        }
        if !known.running && !known.queue.is_empty() {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("k2i-names".to_owned());
            // Without a thread the ids stay in the queue, for the next question to start one.
            known.running = thread.spawn(move || shared.look_up_all()).is_ok();
        }
        // A first id that has been there for long means a thread that hangs: no use in waiting.
        while let Some((_, asked)) = known.queue.front().filter(|_| known.running) {
            let left = self.wait_max.saturating_sub(asked.elapsed());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.done.wait_timeout(known, left);
            known = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let old = known.old.clone();
        for id in wanted {
            if let (false, Some(name)) = (known.names.contains_key(&id), old.get(&id)) {
                Arc::make_mut(&mut known.names).insert(id, name.clone());
            }
        }
        known.names.clone()
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks up what is in the queue until it is empty, outside of the lock.
    fn look_up_all(&self) {
        let mut known = self.known();
        while let Some((id, _)) = known.queue.front().copied() {
            drop(known);
            let name = (self.lookup)(id).unwrap_or_else(|| id.to_string());
            known = self.known();
            known.queue.pop_front();
            known.queued.remove(&id);
            Arc::make_mut(&mut known.names).insert(id, name.into());
        }
        known.running = false;
        self.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Longer than any test waits.
    const LONG: Duration = Duration::from_secs(60);

    fn name(names: &Names, id: u32) -> Option<&str> {
        names.get(&id).map(|name| &**name)
    }

    #[test]
    fn a_name_is_looked_up_once_and_a_number_stands_for_none() {
        let users = NameCache { wait_max: LONG, ..NameCache::users() };
        let names = users.of([0, 0, 4_000_000_001].into_iter());
        assert_eq!(name(&names, 0), Some("root"));
        assert_eq!(name(&names, 4_000_000_001), Some("4000000001"));
        assert!(Arc::ptr_eq(&names, &users.of(std::iter::once(0))), "nothing was looked up again");
    }

    #[test]
    fn a_name_service_that_hangs_stops_nobody() {
        let (answer, answers) = mpsc::channel::<&'static str>();
        let answers = Mutex::new(answers);
        let hang = move |_| {
            let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.recv().ok().map(str::to_owned)
        };
        let mut users = NameCache::new(Duration::from_millis(1), hang);
        let names = users.of([7, 8].into_iter());
        assert_eq!((name(&names, 7), name(&names, 8)), (None, None), "numbers stand for them");
        assert_eq!(name(&users.of([9].into_iter()), 9), None, "nor is the next one stopped");

        users.wait_max = LONG;
        for text in ["seven", "eight", "nine"] {
            answer.send(text).expect("somebody looks them up");
        }
        let names = users.of([7, 8, 9].into_iter());
        let known = [7, 8, 9].map(|id| name(&names, id));
        assert_eq!(known, [Some("seven"), Some("eight"), Some("nine")]);
    }

    #[test]
    fn old_names_stand_until_new_ones_are_known() {
        let (answer, answers) = mpsc::channel::<&'static str>();
        let answers = Mutex::new(answers);
        let slow = move |_| {
            let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.recv().ok().map(str::to_owned)
        };
        let mut users = NameCache::new(LONG, slow);
        answer.send("before").expect("it listens");
        assert_eq!(name(&users.of([7].into_iter()), 7), Some("before"));
        {
            let mut known = users.shared.known();
            known.old = std::mem::take(&mut known.names);
        }
        users.wait_max = Duration::from_millis(1);
        assert_eq!(name(&users.of([7].into_iter()), 7), Some("before"), "better than its number");
        answer.send("after").expect("it listens");
        let deadline = Instant::now() + LONG;
        while name(&users.of([7].into_iter()), 7) != Some("after") {
            assert!(Instant::now() < deadline, "what is found later is shown");
            std::thread::yield_now();
        }
    }
}
