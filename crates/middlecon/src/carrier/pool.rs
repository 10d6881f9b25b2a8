//! Large bodies on one host, in memory that is passed once and used again.
//!
//! Fresh memory for each body costs the kernel more than two copies do: 256 pages a MiB that are taken, mapped
//! and given back. So each side has a few slots. It writes a body into a free one, and its frame says
//! which ([`Pooled`]); the other copies it out and says so in its page ([`RETURNED_AT`]), and the slot is free
//! again. The memory that it is copied to comes back too, when nobody needs the body any more: an allocator
//! would give it to the kernel each time. What finds no slot is sealed in memory of its own. A peer that says
//! too early that it has copied spoils only what it reads.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use kumo_abi::frame::{FrameError, POOL_BODY_BYTES_MAX, POOL_SLOTS, Pooled};
use kumo_abi::page::WORD_BYTES;
use kumo_abi::page::connection::RETURNED_AT;
use kumo_sys::{OwnPage, PeerPage};

use super::Stop;

/// Bytes of the smallest slot.
const SLOT_BYTES_MIN: usize = 128 * 1024;

/// The slots of a side that sends.
#[derive(Debug, Default)]
pub(super) struct Lending {
    slots: [Slot; POOL_SLOTS],
}

#[derive(Debug, Default)]
struct Slot {
    page: Option<OwnPage>,
    /// Whether the peer has its memory.
    passed: bool,
    /// How often it was used.
    turn: u64,
}

impl Lending {
    /// Puts a body into a slot that the peer, whose page this is, has given back. Says which, or nothing
    /// where it needs memory of its own. It counts once it is [`sent`](Lending::sent).
    pub(super) fn put(&mut self, body: &[u8], peer: &PeerPage) -> Result<Option<Pooled>, Stop> {
        if body.len() > POOL_BODY_BYTES_MAX {
            return Ok(None);
        }
        let is_free = |(at, slot): &(usize, &mut Slot)| {
            peer.load(RETURNED_AT + at * WORD_BYTES, Ordering::Acquire) == slot.turn
        };
        let Some((at, slot)) = self.slots.iter_mut().enumerate().find(is_free) else {
            return Ok(None);
        };
        if slot.page.as_ref().is_none_or(|page| page.len_bytes() < body.len()) {
            let len_bytes = body.len().next_power_of_two().max(SLOT_BYTES_MIN);
            slot.page = Some(OwnPage::new("middlecon bodies", len_bytes)?);
            slot.passed = false;
        }
        let Some(page) = &slot.page else { return Ok(None) };
        page.copy_in(0, body);
        Ok(Some(Pooled {
            len_bytes: body.len() as u64,
            slot: at as u64,
            turn: slot.turn + 1,
            slot_bytes: if slot.passed { 0 } else { page.len_bytes() as u64 },
        }))
    }

    /// The memory that goes with it, where the peer does not have it.
    pub(super) fn memory(&self, pooled: &Pooled) -> Result<Option<OwnedFd>, Stop> {
        let slot = &self.slots[pooled.slot as usize];
        let page = slot.page.as_ref().filter(|_| !slot.passed);
        Ok(page.map(|page| page.as_fd().try_clone_to_owned()).transpose()?)
    }

    /// Its frame was sent, and its memory with it.
    pub(super) fn sent(&mut self, pooled: &Pooled) {
        let slot = &mut self.slots[pooled.slot as usize];
        (slot.turn, slot.passed) = (pooled.turn, true);
    }
}

/// The slots of a side that receives: those of the peer.
#[derive(Debug, Default)]
pub(super) struct Borrowing {
    slots: [Option<PeerPage>; POOL_SLOTS],
    spare: Arc<Spare>,
}

/// Memory of bodies that nobody needs any more, as many as there are slots.
type Spare = Mutex<Vec<Vec<u8>>>;

/// A body. Dropped, it gives its memory back to its connection, where that is still there.
struct Body {
    bytes: Vec<u8>,
    spare: Weak<Spare>,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let Some(spare) = self.spare.upgrade() else { return };
        let mut spare = spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < POOL_SLOTS {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

impl Borrowing {
    /// Copies a body out, and gives its slot back in our page.
    pub(super) fn take(
        &mut self,
        pooled: &Pooled,
        memory: Option<OwnedFd>,
        own: &OwnPage,
    ) -> Result<Bytes, Stop> {
        let (at, len_bytes) = (pooled.slot as usize, pooled.len_bytes as usize);
        let slot = &mut self.slots[at];
        match (memory, pooled.slot_bytes) {
            (None, 0) => (),
            (Some(memory), 1..) => {
                let page = PeerPage::new(&memory, pooled.slot_bytes as usize);
                *slot = Some(page.map_err(|_| Stop::Passed("a slot that could change its size"))?);
            }
            (Some(_), 0) => return Err(Stop::Passed("memory that no frame speaks of")),
            (None, _) => return Err(Stop::Passed("no memory, though its frame says so")),
        }
        let page = slot.as_ref().filter(|page| len_bytes <= page.len_bytes());
        let page = page.ok_or(FrameError::Short("slot"))?;
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut bytes = spare.unwrap_or_default();
        page.copy_into(0, len_bytes, &mut bytes);
        own.store(RETURNED_AT + at * WORD_BYTES, pooled.turn, Ordering::Release);
        Ok(Bytes::from_owner(Body { bytes, spare: Arc::downgrade(&self.spare) }))
    }
}
