//! Changes of kernel parameters: made, taken back unless confirmed, written down
//! (docs/SYSCTL.md, decision 0009).
//!
//! What is done when is decided in [`rules`]; here are the disk, the kernel and the clock. A change is
//! on the disk before the kernel is asked, and its end is there before anybody is told. No lock is held
//! while the disk or the kernel works: a change that the kernel takes seconds for, as some do, keeps no
//! other from being taken back.

mod disk;
mod rules;
pub(crate) mod waves;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k2i::sysctl::{self, SysctlError};
use kumo_abi::sysctl::{
    AllowList, CONFIRM_WITHIN, Change, ChangeId, ChangeState, NotAllowed, PENDING_MAX,
    ParameterName, SetAnswer, SetResult, ValueError, check_value, same_value,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use self::disk::Disk;
pub(crate) use self::disk::Journal;
use self::rules::{Back, Found, Kept, Kernel, Seen};
use crate::calls::random;

/// A value that could not be taken back is tried again so often: the disk, or whoever made `/proc/sys`
/// read-only, may have room or think again.
const AGAIN_AFTER_NS: u64 = 5_000_000_000;

/// Longest sleep between two looks at the clock: the one that a wait is measured by stands still while
/// the machine sleeps, and the one that changes are due by does not.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Who ends what nobody has confirmed.
const ITSELF: &str = "the host itself";

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    pub(crate) name: ParameterName,
    pub(crate) value: String,
    /// The value that it must have now.
    pub(crate) if_match: Option<String>,
    pub(crate) dry_run: bool,
    pub(crate) confirm_within: Option<Duration>,
    /// Which change it is a part of.
    pub(crate) id: Option<ChangeId>,
    /// Who asks.
    pub(crate) who: String,
}

/// Why a change was not made, not confirmed or not taken back. Where it is not said otherwise, the
/// value is what it was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    #[error(transparent)]
    Value(#[from] ValueError),
    #[error(
        "a change is confirmed within {} s to {} h", CONFIRM_WITHIN.start().as_secs(),
        CONFIRM_WITHIN.end().as_secs() / 3_600
    )]
    Within,
    #[error("`{}` cannot be written, whoever asks: the kernel only shows it", .0.to_string().escape_debug())]
    ReadOnly(ParameterName),
    #[error(
        "`{}` is {now}, and this change is for a host where it is {wanted}; look at it and ask again",
        name.to_string().escape_debug()
    )]
    Mismatch { name: ParameterName, now: String, wanted: String },
    #[error(
        "`{}` is being changed already, and that waits to be confirmed: `kumo sysctl confirm {by}` or \
         `kumo sysctl rollback {by}` first", name.to_string().escape_debug()
    )]
    Pending { name: ParameterName, by: ChangeId },
    #[error("`{}` is being changed at this moment; ask again", .0.to_string().escape_debug())]
    Busy(ParameterName),
    #[error("{PENDING_MAX} changes wait to be confirmed on this host, and that is the most")]
    TooMany,
    #[error("there has been a change {0} on this host already")]
    Twice(ChangeId),
    #[error("there is no change {0} on this host; `kumo sysctl log` lists those there are")]
    NoSuch(ChangeId),
    #[error("the change {} is {} already{}", .0.id, .0.state.name(), because(.0))]
    Ended(Box<Change>),
    #[error(
        "the time of change {0} is over, and the host takes it back; `kumo sysctl log` tells when it has"
    )]
    Late(ChangeId),
    #[error(transparent)]
    Kernel(#[from] SysctlError),
    #[error("cannot take back {id}; the host tries again every {} s", AGAIN_AFTER_NS / 1_000_000_000)]
    Stuck { id: ChangeId, source: SysctlError },
    #[error("the disk of this node does not take what has to be there before a value is changed")]
    Disk(#[source] io::Error),
}

/// Who ends a change, and why.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    pub(crate) who: String,
    /// Why it is taken back, where that was said.
    pub(crate) why: Option<String>,
}

impl Ending {
    fn by(who: &str) -> Ending {
        Ending { who: who.to_owned(), why: None }
    }

    fn unconfirmed() -> Ending {
        Ending { why: Some("it was not confirmed in time".to_owned()), ..Ending::by(ITSELF) }
    }
}

fn because(change: &Change) -> String {
    change.why.as_ref().map_or_else(String::new, |why| format!(": {why}"))
}

/// The changes of one host.
#[derive(Debug)]
pub(crate) struct Shared {
    allowed: AllowList,
    kernel: Kernel,
    disk: Disk,
    state: Mutex<State>,
    /// Told when something is due at another time than before.
    woken: Notify,
    /// Told when a change that waited to be confirmed has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Those that wait to be confirmed.
    pending: BTreeMap<ChangeId, Kept>,
    /// Those that could not be taken back are tried again at this time.
    again_ns: BTreeMap<ChangeId, u64>,
    /// Parameters that somebody is busy with.
    busy: BTreeSet<ParameterName>,
    /// Lines of the journal that could not be written since the node began.
    unwritten: u64,
    /// Changes on the disk that could not be read.
    unreadable: u64,
}

/// Keeps a parameter for whoever is busy with it.
struct Claim<'a> {
    shared: &'a Shared,
    name: ParameterName,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shared.lock().busy.remove(&self.name);
    }
}

impl Shared {
    /// The changes of the node with this state directory: what the last one left is seen to. Blocks for
    /// the disk and the kernel.
    pub(crate) fn open(state_dir: &Path, boot_id: &str, allowed: AllowList) -> Arc<Shared> {
        let kernel =
            Kernel { boot_id: boot_id.to_owned(), network_namespace: sysctl::network_namespace() };
        let disk = Disk::of(state_dir);
        let (state, woken, ended) = (Mutex::default(), Notify::new(), Notify::new());
        let shared = Arc::new(Shared { allowed, kernel, disk, state, woken, ended });
        shared.see_to_what_was_left();
        shared
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see_to_what_was_left(&self) {
        let found = self.disk.under_way().unwrap_or_else(|error| {
            tracing::error!("the changes of kernel parameters under way cannot be read: {error}");
            disk::UnderWay::default()
        });
        self.lock().unreadable = found.unreadable.len() as u64;
        for error in found.unreadable {
            tracing::error!(
                "a change of a kernel parameter cannot be read, and is left alone: {error}"
            );
        }
        for mut kept in found.kept {
            let (id, name) = (kept.change.id.clone(), kept.change.name.clone());
            match rules::at_start(&kept, &self.kernel, boot_ns()) {
                Found::File => self.file(&kept),
                Found::Gone(why) => self.end(kept, ChangeState::Gone, Some(why), ITSELF),
                Found::TakeBack => {
                    // It stands among the pending first: what cannot be taken back now is tried again.
                    self.lock().pending.insert(id.clone(), kept);
                    if let Err(error) = self.take_back(&id, &Ending::unconfirmed()) {
                        tracing::error!("{name}: {}", k2i::chain(&error));
                    }
                }
                Found::Settle => match seen(&name) {
                    Ok(seen) => {
                        let (state, why) = rules::settle(&kept.change, &seen);
                        if let (true, Seen::Value(now)) = (!state.is_end(), &seen) {
                            kept.change.state = state;
                            kept.change.became = Some(now.clone());
                            kept.change.why = Some(why.to_owned());
                            self.keep(&kept);
                            self.lock().pending.insert(id, kept);
                        } else {
                            if let Seen::Value(now) = seen {
                                kept.change.became = Some(now);
                            }
                            self.end(kept, state, Some(why), ITSELF);
                        }
                    }
                    // Then it is looked at when it is due, or by the next node.
                    Err(error) => {
                        tracing::error!("{name}: {}", k2i::chain(&error));
                        self.lock().pending.insert(id, kept);
                    }
                },
                Found::Wait => drop(self.lock().pending.insert(id, kept)),
            }
        }
    }

    /// What may be written.
    pub(crate) fn allowed(&self) -> &AllowList {
        &self.allowed
    }

    /// Lines of the journal that could not be written since the node began, and changes that it found
    /// and could not read.
    pub(crate) fn lost(&self) -> (u64, u64) {
        let state = self.lock();
        (state.unwritten, state.unreadable)
    }

    /// Keeps a parameter from everybody else.
    fn claim(&self, name: &ParameterName, id: Option<&ChangeId>) -> Result<Claim<'_>, ChangeError> {
        let mut state = self.lock();
        let by = state.pending.values().find(|kept| kept.change.name == *name);
        if let Some(by) = by {
            return Err(ChangeError::Pending { name: name.clone(), by: by.change.id.clone() });
        }
        if let Some(id) = id.filter(|id| state.pending.contains_key(*id)) {
            return Err(ChangeError::Twice(id.clone()));
        }
        if state.pending.len() + state.busy.len() >= PENDING_MAX {
            return Err(ChangeError::TooMany);
        }
        if !state.busy.insert(name.clone()) {
            return Err(ChangeError::Busy(name.clone()));
        }
        Ok(Claim { shared: self, name: name.clone() })
    }

    /// The answer to a change that was made and is asked for again, as its answer was lost: so who leads
    /// a change of many may repeat himself.
    fn known(&self, id: &ChangeId, name: &ParameterName, value: &str) -> Option<SetAnswer> {
        let state = self.lock();
        let kept = state.pending.get(id)?;
        let mut change = kept.change.clone();
        if change.name != *name || change.wanted.as_deref() != Some(value) {
            return None;
        }
        change.left_ms = rules::left_ms(kept, boot_ns());
        let (old, new, private) = (change.old.clone(), change.became.clone(), change.private);
        let (name, result, change) = (name.clone(), SetResult::Pending, Some(change));
        Some(SetAnswer { name, old, new, result, change, private })
    }

    /// Makes a change. Blocks for the disk and the kernel.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub(crate) fn set(&self, ask: Set) -> Result<SetAnswer, ChangeError> {
        let Set { name, value, if_match, dry_run, confirm_within, id, who } = ask;
        self.allowed.check(&name)?;
        check_value(&value)?;
        if confirm_within.is_some_and(|within| !CONFIRM_WITHIN.contains(&within)) {
            return Err(ChangeError::Within);
        }
        if let Some(known) = id.as_ref().and_then(|id| self.known(id, &name, &value)) {
            return Ok(known);
        }
        let claim = self.claim(&name, id.as_ref())?;
        if let Some(id) =
            id.as_ref().filter(|id| !matches!(self.ended(id), Err(ChangeError::NoSuch(_))))
        {
            return Err(ChangeError::Twice(id.clone()));
        }
        let before = sysctl::read(&name)?;
        if let Some(wanted) = if_match.filter(|wanted| !same_value(wanted, &before.text)) {
            // Who may write it may see it.
            let (now, wanted) = (quoted(&before.text), quoted(&wanted));
            return Err(ChangeError::Mismatch { name, now, wanted });
        }
        if !before.writable {
            return Err(ChangeError::ReadOnly(name));
        }
        let old = Some(before.text.clone());
        if same_value(&before.text, &value) {
            let result = if dry_run { SetResult::DryRun } else { SetResult::Unchanged };
            return Ok(SetAnswer {
                name,
                new: old.clone(),
                old,
                result,
                change: None,
                private: before.private,
            });
        }
        if dry_run {
            let (new, result) = (Some(value), SetResult::DryRun);
            return Ok(SetAnswer { name, old, new, result, change: None, private: before.private });
        }
        let began_ns = boot_ns();
        let within_ns = confirm_within.map(|within| within.as_nanos() as u64);
        let change = Change {
            id: id.unwrap_or_else(|| ChangeId::new(random())),
            name: name.clone(),
            at: k2i::host::now(),
            who,
            old: old.clone(),
            wanted: Some(value.clone()),
            became: None,
            state: ChangeState::Intended,
            why: None,
            confirm_within_ms: confirm_within.map(crate::web::millis),
            left_ms: None,
            ended_at: None,
            ended_by: None,
            private: before.private,
        };
        let due_ns = within_ns.map(|within_ns| began_ns + within_ns);
        let mut kept = Kept { change, kernel: self.kernel.clone(), began_ns, due_ns };
        self.disk.keep(&kept).map_err(ChangeError::Disk)?;
        match sysctl::write(&name, &value) {
            // What of it was taken is found out below.
            Ok(()) | Err(SysctlError::Cut { .. }) => {}
            Err(error) => return Err(self.not_made(kept, &before.text, error)),
        }
        // That it cannot be read now changes nothing about what was written.
        kept.change.became = sysctl::read(&name).ok().map(|now| now.text);
        tracing::info!(target: "audit", parameter = %name, id = %kept.change.id, who = kept.change.who,
            "kernel parameter changed");
        let new = kept.change.became.clone();
        let (result, mut change) = if confirm_within.is_some() {
            kept.change.state = ChangeState::Pending;
            // Where this cannot be written, the disk says that it was intended: that is taken back, too.
            self.keep(&kept);
            self.journal_line(&kept.change);
            let mut change = kept.change.clone();
            change.left_ms = rules::left_ms(&kept, boot_ns());
            self.lock().pending.insert(change.id.clone(), kept);
            self.woken.notify_one();
            (SetResult::Pending, change)
        } else {
            kept.change.state = ChangeState::Made;
            self.keep(&kept);
            self.file(&kept);
            (SetResult::Made, kept.change)
        };
        drop(claim);
        if let Some(new) = new.as_ref().filter(|new| !same_value(new, &value)) {
            change.why = Some(format!("the kernel made {} of it", quoted(new)));
        }
        Ok(SetAnswer { name, old, new, result, change: Some(change), private: before.private })
    }

    /// The kernel refused. It may have taken the first of several numbers: those are given back.
    fn not_made(&self, mut kept: Kept, before: &str, error: SysctlError) -> ChangeError {
        let name = &kept.change.name;
        let is_partly = sysctl::read(name).is_ok_and(|now| now.text != before);
        let back = if is_partly { sysctl::write(name, before) } else { Ok(()) };
        let mut why = k2i::chain(&error);
        if let Err(error) = &back {
            why = format!("{why}; a part of it was taken, and could not be given back: {error}");
        }
        kept.change.became =
            sysctl::read(name).ok().map(|now| now.text).filter(|now| now != before);
        let state = if back.is_ok() { ChangeState::NotMade } else { ChangeState::Unknown };
        self.end(kept, state, Some(&why), ITSELF);
        error.into()
    }

    /// Says that a change is to stay.
    ///
    /// # Errors
    /// See [`ChangeError`]; one that was confirmed before is confirmed.
    pub(crate) fn confirm(
        &self,
        id: &ChangeId,
        Ending { who, .. }: &Ending,
    ) -> Result<Change, ChangeError> {
        let mut kept = {
            let mut state = self.lock();
            match state.pending.get(id) {
                None => {
                    drop(state);
                    return match self.ended(id)? {
                        change if change.state == ChangeState::Confirmed => Ok(change),
                        change => Err(ChangeError::Ended(Box::new(change))),
                    };
                }
                Some(kept) if rules::is_due(kept, boot_ns()) => {
                    return Err(ChangeError::Late(id.clone()));
                }
                Some(kept) if state.busy.contains(&kept.change.name) => {
                    return Err(ChangeError::Busy(kept.change.name.clone()));
                }
                Some(_) => {}
            }
            // From here on nobody takes it back.
            match state.pending.remove(id) {
                Some(kept) => kept,
                None => return Err(ChangeError::NoSuch(id.clone())),
            }
        };
        let before = kept.clone();
        ended(&mut kept, ChangeState::Confirmed, None, who);
        if let Err(error) = self.disk.keep(&kept) {
            self.lock().pending.insert(id.clone(), before);
            return Err(ChangeError::Disk(error));
        }
        self.file(&kept);
        self.ended.notify_waiters();
        Ok(kept.change)
    }

    /// Waits as long as a change waits to be confirmed.
    pub(crate) async fn end_of(&self, id: &ChangeId) {
        loop {
            let mut told = pin!(self.ended.notified());
            // From here on no end is missed.
            told.as_mut().enable();
            if !self.lock().pending.contains_key(id) {
                return;
            }
            told.await;
        }
    }

    /// Takes a change back: one that waits to be confirmed, or one that was made for good.
    ///
    /// # Errors
    /// See [`ChangeError`]; one that was taken back before is taken back.
    pub(crate) fn rollback(&self, id: &ChangeId, end: &Ending) -> Result<Change, ChangeError> {
        if self.lock().pending.contains_key(id) {
            return self.take_back(id, end);
        }
        let change = self.ended(id)?;
        match change.state {
            ChangeState::RolledBack => return Ok(change),
            ChangeState::Made | ChangeState::Confirmed => {}
            _ => return Err(ChangeError::Ended(Box::new(change))),
        }
        self.allowed.check(&change.name)?;
        // It waits again, and is due: so a node that is killed now is followed by one that goes on.
        let began_ns = boot_ns();
        let mut kept =
            Kept { change, kernel: self.kernel.clone(), began_ns, due_ns: Some(began_ns) };
        kept.change.state = ChangeState::Pending;
        let claim = self.claim(&kept.change.name, Some(id))?;
        self.disk.keep(&kept).map_err(ChangeError::Disk)?;
        self.lock().pending.insert(id.clone(), kept);
        drop(claim);
        self.take_back(id, end)
    }

    /// Gives back the old value where the new one still stands.
    fn take_back(&self, id: &ChangeId, by: &Ending) -> Result<Change, ChangeError> {
        let (kept, claim) = {
            let mut state = self.lock();
            let Some(kept) = state.pending.get(id).cloned() else {
                drop(state);
                return self.ended(id);
            };
            if !state.busy.insert(kept.change.name.clone()) {
                return Err(ChangeError::Busy(kept.change.name));
            }
            let claim = Claim { shared: self, name: kept.change.name.clone() };
            (kept, claim)
        };
        let stuck = |source| {
            self.lock().again_ns.insert(id.clone(), boot_ns() + AGAIN_AFTER_NS);
            ChangeError::Stuck { id: id.clone(), source }
        };
        let name = kept.change.name.clone();
        let now = seen(&name).map_err(stuck)?;
        let (state, why) = match (rules::take_back(&kept.change, &now), &kept.change.old) {
            (Back::End(state, why), _) => (state, why.map(str::to_owned)),
            (Back::Write, Some(old)) => {
                sysctl::write(&name, old).map_err(stuck)?;
                match seen(&name) {
                    Ok(Seen::Value(now)) if now != *old => {
                        // Reasons are for all to see.
                        let now =
                            if kept.change.private { "another".to_owned() } else { quoted(&now) };
                        let why = format!("the kernel made {now} of the old value");
                        (ChangeState::RolledBack, Some(why))
                    }
                    _ => (ChangeState::RolledBack, None),
                }
            }
            // Nothing is changed whose value cannot be read.
            (Back::Write, None) => {
                (ChangeState::Unknown, Some("its old value is not known".to_owned()))
            }
        };
        // What was found says more than what was said.
        let why = why.or_else(|| by.why.clone());
        let who = by.who.as_str();
        let mut done = kept.clone();
        if let (None, ChangeState::RolledBack, Seen::Value(now)) = (&done.change.became, state, now)
            && done.change.old.as_ref() != Some(&now)
        {
            // The node that wrote it did not live to say so.
            done.change.became = Some(now);
        }
        ended(&mut done, state, why.as_deref(), who);
        self.keep(&done);
        // Until the journal has it, it is among those under way: whoever asks finds it somewhere.
        self.file(&done);
        {
            let mut state = self.lock();
            state.pending.remove(id);
            state.again_ns.remove(id);
        }
        self.ended.notify_waiters();
        tracing::info!(target: "audit", parameter = %name, %id, who, state = state.name(),
            "change of a kernel parameter taken back");
        drop(claim);
        Ok(done.change)
    }

    /// What the journal says of a change that is not under way.
    fn ended(&self, id: &ChangeId) -> Result<Change, ChangeError> {
        let journal =
            self.disk.journal(1, &|change| change.id == *id).map_err(ChangeError::Disk)?;
        journal.entries.into_iter().next_back().ok_or_else(|| ChangeError::NoSuch(id.clone()))
    }

    /// The last `most` changes that are wanted, with those under way as they are now.
    pub(crate) fn journal(
        &self,
        most: usize,
        wanted: &dyn Fn(&Change) -> bool,
    ) -> Result<Journal, ChangeError> {
        let mut journal = self.disk.journal(most, wanted).map_err(ChangeError::Disk)?;
        let now_ns = boot_ns();
        let state = self.lock();
        for kept in state.pending.values().filter(|kept| wanted(&kept.change)) {
            let mut change = kept.change.clone();
            change.left_ms = rules::left_ms(kept, now_ns);
            match journal.entries.iter_mut().find(|entry| entry.id == change.id) {
                Some(entry) => *entry = change,
                None => journal.entries.push(change),
            }
        }
        Ok(journal)
    }

    /// Ends a change that nobody waits for any more.
    fn end(&self, mut kept: Kept, state: ChangeState, why: Option<&str>, who: &str) {
        ended(&mut kept, state, why, who);
        self.keep(&kept);
        self.file(&kept);
    }

    /// Writes what is known of a change, where what stands there would do, too.
    fn keep(&self, kept: &Kept) {
        if let Err(error) = self.disk.keep(kept) {
            tracing::error!("a change of a kernel parameter cannot be written down: {error}");
        }
    }

    /// The journal gets its line; then the change is no longer under way.
    fn file(&self, kept: &Kept) {
        if self.journal_line(&kept.change)
            && let Err(error) = self.disk.forget(&kept.change.id)
        {
            tracing::error!("the file of a change that has ended cannot be removed: {error}");
        }
    }

    /// Whether the journal has the line.
    fn journal_line(&self, change: &Change) -> bool {
        let written = self.disk.file(change);
        if let Err(error) = &written {
            self.lock().unwritten += 1;
            tracing::error!("the journal of kernel parameters cannot be written: {error}");
        }
        written.is_ok()
    }

    /// What is due now, and how long nothing else is.
    fn due(&self) -> (Vec<ChangeId>, Option<Duration>) {
        let now_ns = boot_ns();
        let state = self.lock();
        let mut due = Vec::new();
        let mut next_ns: Option<u64> = None;
        for (id, kept) in &state.pending {
            let again_ns = state.again_ns.get(id).copied().filter(|again_ns| *again_ns > now_ns);
            if rules::is_due(kept, now_ns) && again_ns.is_none() {
                due.push(id.clone());
            } else if let Some(at_ns) = again_ns.or(kept.due_ns) {
                next_ns = Some(next_ns.map_or(at_ns, |next_ns| next_ns.min(at_ns)));
            }
        }
        (due, next_ns.map(|next_ns| Duration::from_nanos(next_ns.saturating_sub(now_ns))))
    }

    /// The node stops: nobody would be there to take back what is not confirmed, so that is done now.
    pub(crate) fn close(&self) {
        let ids: Vec<ChangeId> = self.lock().pending.keys().cloned().collect();
        for id in ids {
            if let Err(error) = self.take_back(&id, &Ending::by("the node, as it was stopped")) {
                tracing::error!("{}", k2i::chain(&error));
            }
        }
    }
}

/// Takes back what is not confirmed in time, until the node stops.
pub(crate) async fn keep(shared: Arc<Shared>, mut stopping: watch::Receiver<bool>) {
    tokio::select! {
        () = watch_times(&shared) => {}
        // An error means that the node is gone.
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

async fn watch_times(shared: &Arc<Shared>) {
    loop {
        let (due, next) = shared.due();
        for id in due {
            // Each for itself: one that the kernel takes long for keeps no other waiting. While it is
            // under way its parameter is busy, and the others that find it so do nothing.
            let shared = Arc::clone(shared);
            spawn_blocking(move || match shared.take_back(&id, &Ending::unconfirmed()) {
                Ok(_) | Err(ChangeError::Busy(_)) => {}
                Err(error) => tracing::error!("{}", k2i::chain(&error)),
            });
        }
        match next {
            Some(next) => drop(timeout(next.min(SLEEP_MAX), shared.woken.notified()).await),
            None if shared.lock().pending.is_empty() => shared.woken.notified().await,
            None => sleep(SLEEP_MAX).await,
        }
    }
}

fn ended(kept: &mut Kept, state: ChangeState, why: Option<&str>, who: &str) {
    kept.change.state = state;
    kept.change.why = why.map(str::to_owned);
    kept.change.ended_at = Some(k2i::host::now());
    kept.change.ended_by = Some(who.to_owned());
    kept.change.left_ms = None;
}

fn seen(name: &ParameterName) -> Result<Seen, SysctlError> {
    match sysctl::read(name) {
        Ok(value) => Ok(Seen::Value(value.text)),
        Err(SysctlError::NoSuch(_)) => Ok(Seen::Gone),
        Err(error) => Err(error),
    }
}

fn quoted(value: &str) -> String {
    format!("`{}`", value.escape_debug())
}

/// Nanoseconds since the boot, sleep included.
fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
