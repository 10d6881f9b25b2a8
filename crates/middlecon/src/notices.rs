//! What nodes said of connections: the pages of the node that is there, and of those that were.
//!
//! What a node has said of a connection stays true when it is no more, for a caller may have been told already
//! that nothing of it runs. And a node that has started anew may give the index of a connection that it was not
//! told of to another one: what it says there is not about ours. So pages of former nodes are kept until the
//! connections that need them are let go, under numbers that nobody gives twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use kumo_abi::control::Connection;
use kumo_abi::page::notice::{LEN_BYTES, state_at, taken_at};
use kumo_abi::page::{Notice, receipt_at};
use kumo_sys::PeerPage;

/// A connection, as this program knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId {
    /// Where it stands in pages: given by the node, and again when it is free.
    pub(crate) index: Connection,
    /// Given here, and never again.
    pub(crate) number: u64,
}

/// A page of a node that is no more.
struct Former {
    page: Arc<PeerPage>,
    /// Whether the nodes after it do not know the connection: what they say at its index is about another.
    is_the_last: bool,
}

/// The pages.
#[derive(Default)]
pub(crate) struct Notices {
    current: ArcSwapOption<PeerPage>,
    former: Mutex<HashMap<u64, Former>>,
    /// Whether there are any, so that nobody takes that lock for nothing.
    has_former: AtomicBool,
}

impl Notices {
    fn former(&self) -> MutexGuard<'_, HashMap<u64, Former>> {
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new node is there, with this page. Before this each connection is either [`Notices::carry`]d or gone.
    pub(crate) fn begin(&self, page: Arc<PeerPage>) {
        self.current.store(Some(page));
    }

    /// The node that is there is no more; whether the next one is told of the connection.
    pub(crate) fn carry(&self, id: ConnectionId, is_told: bool) {
        let Some(page) = self.current.load_full() else { return };
        let mut former = self.former();
        if let Some(found) = former.get_mut(&id.number) {
            found.is_the_last |= !is_told;
        } else if !is_told || notice(&page, id.index).is_some() {
            former.insert(id.number, Former { page, is_the_last: !is_told });
            self.has_former.store(true, Ordering::Release);
        }
    }

    /// The connection is no more.
    pub(crate) fn let_go(&self, id: ConnectionId) {
        if self.has_former.load(Ordering::Acquire) {
            let mut former = self.former();
            former.remove(&id.number);
            self.has_former.store(!former.is_empty(), Ordering::Release);
        }
    }

    /// Why a connection ended, if a node has said so.
    pub(crate) fn notice(&self, id: ConnectionId) -> Option<Notice> {
        self.said(id).map(|(notice, _)| notice)
    }

    /// Whether the callee had taken this call, as a node says. Only with [`Notice::taken_known`].
    pub(crate) fn taken(&self, id: ConnectionId, call: u64) -> bool {
        let at_bytes = checked(taken_at(id.index) + receipt_at(call));
        let (Some((_, page)), Some(at_bytes)) = (self.said(id), at_bytes) else { return true };
        page.load(at_bytes, Ordering::Acquire) == call
    }

    /// What was said first, and the page that it stands on: what was taken stands beside it.
    fn said(&self, id: ConnectionId) -> Option<(Notice, Arc<PeerPage>)> {
        // In this order: who sees the page of a new node sees also what was carried before it came.
        let current = self.current.load_full()?;
        let has_former = self.has_former.load(Ordering::Acquire);
        let carried = has_former.then(|| self.former()).and_then(|former| {
            let found = former.get(&id.number)?;
            Some((found.page.clone(), found.is_the_last))
        });
        let (page, next) = match carried {
            Some((page, true)) => (page, None),
            Some((page, false)) => (page, Some(current)),
            None => (current, None),
        };
        let said = |page: Arc<PeerPage>| Some((notice(&page, id.index)?, page));
        said(page).or_else(|| said(next?))
    }
}

/// What a page says of a connection.
fn notice(page: &PeerPage, index: Connection) -> Option<Notice> {
    Notice::from_word(page.load(checked(state_at(index))?, Ordering::Acquire))
}

/// An index comes from the node, which is trusted, but a mistake of it must not end this program.
fn checked(at_bytes: usize) -> Option<usize> {
    (at_bytes < LEN_BYTES).then_some(at_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kumo_abi::call::Cause;
    use kumo_sys::OwnPage;
    use std::os::fd::AsFd;

    /// A node's page, as it writes it and as programs read it.
    fn page() -> (OwnPage, Arc<PeerPage>) {
        let own = OwnPage::new("notices", LEN_BYTES).expect("memory");
        let memory = own.as_fd().try_clone_to_owned().expect("a descriptor");
        let peer = PeerPage::new(&memory, LEN_BYTES).expect("sealed");
        (own, Arc::new(peer))
    }

    fn say(page: &OwnPage, index: Connection, cause: Cause, taken: &[u64]) {
        for call in taken {
            page.store(taken_at(index) + receipt_at(*call), *call, Ordering::Relaxed);
        }
        let notice = Notice { cause, taken_known: !taken.is_empty() };
        page.store(state_at(index), notice.word(), Ordering::Release);
    }

    fn cause(notices: &Notices, id: ConnectionId) -> Option<Cause> {
        notices.notice(id).map(|notice| notice.cause)
    }

    #[test]
    fn what_a_node_said_stays_true_until_the_connection_is_let_go() {
        let (notices, id) = (Notices::default(), ConnectionId { index: 5, number: 1 });
        assert_eq!(cause(&notices, id), None);
        let [(first, read_first), (second, read_second), (_third, read_third)] =
            [(); 3].map(|()| page());
        notices.begin(read_first);
        assert_eq!(cause(&notices, id), None);
        say(&first, 5, Cause::Suspended, &[7]);
        assert!(notices.taken(id, 7) && !notices.taken(id, 8));
        notices.carry(id, true);
        notices.begin(read_second);
        // The second node says something else, and the first was first.
        say(&second, 5, Cause::Died, &[8]);
        assert_eq!(cause(&notices, id), Some(Cause::Suspended));
        assert!(notices.taken(id, 7) && !notices.taken(id, 8));
        notices.carry(id, true);
        notices.begin(read_third);
        assert_eq!(cause(&notices, id), Some(Cause::Suspended));
        notices.let_go(id);
        assert_eq!(cause(&notices, id), None);
        assert!(!notices.has_former.load(Ordering::Relaxed));
    }

    #[test]
    fn what_is_said_of_another_connection_with_its_index_is_not_said_of_ours() {
        let (notices, ours) = (Notices::default(), ConnectionId { index: 5, number: 1 });
        let other = ConnectionId { index: 5, number: 2 };
        let [(first, read_first), (second, read_second)] = [(); 2].map(|()| page());
        notices.begin(read_first);
        notices.carry(ours, false);
        notices.begin(read_second);
        // Nothing was said of ours, and the second node has given its index to another.
        say(&second, 5, Cause::Died, &[7]);
        assert_eq!((cause(&notices, ours), cause(&notices, other)), (None, Some(Cause::Died)));
        // The first node says it late, as it ends.
        say(&first, 5, Cause::Lost, &[]);
        assert_eq!(
            (cause(&notices, ours), cause(&notices, other)),
            (Some(Cause::Lost), Some(Cause::Died))
        );
        notices.let_go(other);
        assert_eq!(cause(&notices, ours), Some(Cause::Lost));
        notices.let_go(ours);
        assert!(!notices.has_former.load(Ordering::Relaxed));
    }

    #[test]
    fn an_index_beyond_the_page_is_no_crash() {
        let (notices, id) = (Notices::default(), ConnectionId { index: u32::MAX, number: 1 });
        notices.begin(page().1);
        assert_eq!(cause(&notices, id), None);
        assert!(notices.taken(id, 7), "nobody knows");
    }
}
