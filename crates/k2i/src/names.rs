//! Names of user and group ids, remembered for a while.
//!
//! The name service may be a file or a server on the network; a name that is asked for a thousand
//! times a second must cost nothing, and a renamed user must show soon.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Group, Uid, User};

use crate::row::Names;

/// How long a name is remembered.
const NAME_AGE_MAX: Duration = Duration::from_secs(60);

/// Most ids that are remembered; user namespaces can make up millions.
const NAMES_MAX: usize = 65_536;

/// Remembers names, looked up by `lookup`.
#[derive(Debug)]
pub(crate) struct NameCache {
    lookup: fn(u32) -> Option<String>,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    names: Arc<Names>,
}

impl NameCache {
    /// For user ids.
    pub(crate) fn users() -> NameCache {
        NameCache::new(|uid| User::from_uid(Uid::from_raw(uid)).ok()?.map(|user| user.name))
    }

    /// For group ids.
    pub(crate) fn groups() -> NameCache {
        NameCache::new(|gid| Group::from_gid(Gid::from_raw(gid)).ok()?.map(|group| group.name))
    }

    fn new(lookup: fn(u32) -> Option<String>) -> NameCache {
        let known = Known { since: Instant::now(), names: Arc::default() };
        NameCache { lookup, known: Mutex::new(known) }
    }

    /// Names that include all of `ids`. An id without a name maps to its number.
    pub(crate) fn of(&self, ids: impl Iterator<Item = u32>) -> Arc<Names> {
        let mut known = self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if known.since.elapsed() > NAME_AGE_MAX || known.names.len() > NAMES_MAX {
            *known = Known { since: Instant::now(), names: Arc::default() };
        }
        let mut last = None;
        for id in ids {
            // Neighbours mostly share their owner.
            if last.replace(id) == Some(id) || known.names.contains_key(&id) {
                continue;
            }
            let name = (self.lookup)(id).unwrap_or_else(|| id.to_string());
            Arc::make_mut(&mut known.names).insert(id, name.into());
        }
        known.names.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_once_and_a_number_stands_for_none() {
        let users = NameCache::users();
        let names = users.of([0, 0, 4_000_000_001].into_iter());
        assert_eq!(names.get(&0).map(|name| &**name), Some("root"));
        assert_eq!(names.get(&4_000_000_001).map(|name| &**name), Some("4000000001"));
        assert!(Arc::ptr_eq(&names, &users.of(std::iter::once(0))), "nothing was looked up again");
    }
}
