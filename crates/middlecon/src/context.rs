//! What nested calls inherit: the budget, the trace, the priority, the way they came, and the caller that
//! waits above.
//!
//! A handler runs in its call's context; a call that is made there finds it by itself. Who starts a
//! thread or a task of its own takes the context along with [`Context::current`] and
//! [`Context::enter`], or its calls begin a trace of their own.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kumo_abi::call::{BUDGET_MS_DEFAULT, BUDGET_NS_MAX, HOPS_MAX, InstanceId, RootId};
use kumo_abi::frame::{BAGGAGE_BYTES_MAX, Chain};

use crate::carrier::local::is_ended;
use crate::time::now_ns;

/// The end of a connection that a caller waits at: readable for "hung up" once it no longer does.
pub(crate) type Upstream = Arc<dyn AsFd + Send + Sync>;

/// What a call gives to the calls that are made for it. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) root: RootId,
    /// The call that is being handled; 0 at the root.
    pub(crate) call: u64,
    /// Its hop; 0 at the root.
    pub(crate) hop: u8,
    pub(crate) priority: u8,
    pub(crate) deadline_ns: u64,
    /// The instances it came through, with the one that handles it.
    pub(crate) chain: Bytes,
    pub(crate) baggage: Option<Bytes>,
    pub(crate) instance: Option<InstanceId>,
    pub(crate) upstream: Option<Upstream>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { root, call, hop, .. } = &*self.0;
        write!(f, "Context {{ root: {root}, call: {call:016x}, hop: {hop} }}")
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Context>> = const { RefCell::new(None) };
    static DICE: Cell<u64> = const { Cell::new(0) };
}

impl Context {
    pub(crate) fn new(inner: Inner) -> Context {
        Context(Arc::new(inner))
    }

    /// The context of a call at the root, with a budget for all that is done in it.
    pub fn root(budget: Duration) -> Context {
        Context::traced(random_root(), 0, budget)
    }

    /// The context of a call that somebody outside of here wants, within a trace of theirs: `parent` is
    /// the span that it is part of.
    pub fn traced(root: RootId, parent: u64, budget: Duration) -> Context {
        Context::traced_from(root, parent, budget, now_ns())
    }

    fn traced_from(root: RootId, parent: u64, budget: Duration, now_ns: u64) -> Context {
        let budget_ns = u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX).min(BUDGET_NS_MAX);
        Context::new(Inner {
            root,
            call: parent,
            hop: 0,
            priority: 0,
            deadline_ns: now_ns.saturating_add(budget_ns),
            chain: Bytes::new(),
            baggage: None,
            instance: None,
            upstream: None,
        })
    }

    /// The context that this thread or task is in, if it is in one.
    pub fn current() -> Option<Context> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// The context that this thread or task is in, or one at the root with this budget from now on.
    pub(crate) fn current_or_root(budget: Option<Duration>, now_ns: u64) -> Context {
        let budget = budget.unwrap_or(Duration::from_millis(BUDGET_MS_DEFAULT));
        Context::current().unwrap_or_else(|| Context::traced_from(random_root(), 0, budget, now_ns))
    }

    /// Runs something in this context, on this thread.
    pub fn enter<T>(&self, run: impl FnOnce() -> T) -> T {
        let _back = Entered::new(self.clone());
        run()
    }

    /// Polls a future in this context, on whatever thread it is polled.
    pub fn run<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        let (context, mut future) = (self.clone(), Box::pin(future));
        std::future::poll_fn(move |cx| context.enter(|| future.as_mut().poll(cx)))
    }

    /// The trace.
    pub fn trace(&self) -> RootId {
        self.0.root
    }

    /// The same, given up as soon as the other end of `upstream`, a pipe or a socket, is closed: for who
    /// begins a chain and may want to end it.
    #[must_use]
    pub fn given_up_with(&self, upstream: OwnedFd) -> Context {
        let Inner { root, call, hop, priority, deadline_ns, instance, .. } = *self.inner();
        let (chain, baggage) = (self.0.chain.clone(), self.0.baggage.clone());
        let upstream: Option<Upstream> = Some(Arc::new(upstream));
        Context::new(Inner {
            root,
            call,
            hop,
            priority,
            deadline_ns,
            chain,
            baggage,
            instance,
            upstream,
        })
    }

    /// The connection that the caller above waits at, for handlers that wait for something else: it polls
    /// as `RDHUP` or `HUP` once nobody waits there any more. Nothing at the root.
    pub fn caller(&self) -> Option<BorrowedFd<'_>> {
        self.upstream()
    }

    /// The context as a text without blanks, for a process that a handler starts: it shall have the same
    /// trace, budget and way. Only good on this host, and until it starts anew.
    pub fn export(&self) -> String {
        let Inner { root, call, hop, priority, deadline_ns, .. } = self.inner();
        let chain = hex(&self.0.chain);
        let baggage = hex(self.0.baggage.as_deref().unwrap_or_default());
        format!("1.{root}.{call:016x}.{hop}.{priority}.{deadline_ns}.{chain}.{baggage}")
    }

    /// Reads what [`Context::export`] wrote. Whoever lies in it harms its own calls alone: it can give
    /// them no rights, and no budget above the longest.
    pub fn import(text: &str) -> Option<Context> {
        let parts: Vec<&str> = text.split('.').collect();
        let &["1", root, call, hop, priority, deadline_ns, chain, baggage] = parts.as_slice()
        else {
            return None;
        };
        let root: [u8; 16] = unhex(root)?.try_into().ok()?;
        let call: [u8; 8] = unhex(call)?.try_into().ok()?;
        let hop: u8 = hop.parse().ok().filter(|hop| *hop <= HOPS_MAX)?;
        let (chain, baggage) = (unhex(chain)?, unhex(baggage)?);
        Chain::decode(&chain).ok().filter(|_| baggage.len() <= BAGGAGE_BYTES_MAX)?;
        let deadline_ns: u64 = deadline_ns.parse().ok()?;
        Some(Context::new(Inner {
            root: RootId(root),
            call: u64::from_be_bytes(call),
            hop,
            priority: priority.parse().ok()?,
            deadline_ns: deadline_ns.min(now_ns().saturating_add(BUDGET_NS_MAX)),
            chain: chain.into(),
            baggage: (!baggage.is_empty()).then(|| baggage.into()),
            instance: None,
            upstream: None,
        }))
    }

    /// What is left of the budget.
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.0.deadline_ns.saturating_sub(now_ns()))
    }

    /// Whether nobody waits above any more: the caller has gone, has cancelled, or the budget is spent.
    /// For handlers that compute for long without a call of their own.
    pub fn is_over(&self) -> bool {
        now_ns() >= self.0.deadline_ns || self.upstream().is_some_and(is_ended)
    }

    pub(crate) fn upstream(&self) -> Option<BorrowedFd<'_>> {
        self.0.upstream.as_ref().map(|upstream| upstream.as_fd())
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(crate) fn chain(&self) -> Chain<'_> {
        // They were checked when they came in, or put together by us.
        Chain::decode(&self.0.chain).unwrap_or_default()
    }
}

/// Puts the former context back, also when what runs in it panics or is dropped.
pub(crate) struct Entered(Option<Context>);

impl Entered {
    pub(crate) fn new(context: Context) -> Entered {
        Entered(CURRENT.replace(Some(context)))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// A random number, never 0: good enough to be unique, and not to be guessed by chance. Not a secret.
pub(crate) fn random() -> u64 {
    DICE.with(|dice| {
        let mut state = dice.get();
        if state == 0 {
            state = seed();
        }
        // SplitMix64: every state once, so no number twice in a thread.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        dice.set(state);
        let mut mixed = state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31).max(1)
    })
}

fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut bytes = [0; 8];
    match rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()) {
        Ok(8) => u64::from_le_bytes(bytes).max(1),
        // An old container that forbids it: the standard library has its own ways.
        _ => RandomState::new().build_hasher().finish().max(1),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or('0');
        text.extend([digit(byte >> 4), digit(byte & 15)]);
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let (pairs, rest) = digits.as_deref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

fn random_root() -> RootId {
    let mut root = [0; 16];
    root[..8].copy_from_slice(&random().to_le_bytes());
    root[8..].copy_from_slice(&random().to_le_bytes());
    RootId(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_there_while_it_is_entered_and_also_after_a_panic_not_longer() {
        assert!(Context::current().is_none());
        let context = Context::root(Duration::from_secs(1));
        let trace = context.enter(|| Context::current().map(|current| current.trace()));
        assert_eq!(trace, Some(context.trace()));
        let panics = || context.enter(|| panic!("on purpose"));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics));
        assert!(panic.is_err() && Context::current().is_none());
    }

    #[test]
    fn a_spent_budget_is_over() {
        assert!(Context::root(Duration::ZERO).is_over());
        let long = Context::root(Duration::MAX);
        assert!(!long.is_over() && long.left() <= Duration::from_nanos(BUDGET_NS_MAX));
    }

    #[test]
    fn a_context_goes_to_another_process_as_a_text() {
        let mut chain = Vec::new();
        Chain::push(&mut chain, InstanceId(7), &"web".parse().expect("a name"));
        let context = Context::new(Inner {
            root: RootId([0xab; 16]),
            call: 0x1234,
            hop: 3,
            priority: 9,
            deadline_ns: now_ns() + 1_000_000_000,
            chain: chain.into(),
            baggage: Some(Bytes::from_static(b"tenant=a")),
            instance: Some(InstanceId(7)),
            upstream: None,
        });
        let text = context.export();
        assert!(!text.contains(char::is_whitespace), "{text}");
        let read = Context::import(&text).expect("what was written");
        assert_eq!(read.export(), text);
        assert!(read.chain().contains(InstanceId(7)) && read.inner().instance.is_none());
        // Cut anywhere, or with more behind it, it is none, or one that still says something whole.
        for cut in 0..text.len() - 18 {
            assert!(Context::import(&text[..cut]).is_none(), "cut at {cut}");
        }
        let far = text.replace(&read.inner().deadline_ns.to_string(), &u64::MAX.to_string());
        let far = Context::import(&far).expect("one for a day");
        assert!(far.left() <= Duration::from_nanos(BUDGET_NS_MAX));
        for bad in
            ["", "1", "2.00.00.0.0.0..", &text.replace(".3.9.", ".17.9."), &format!("{text}.")]
        {
            assert!(Context::import(bad).is_none(), "for {bad:?}");
        }
    }

    #[test]
    fn a_chain_is_given_up_when_the_other_end_is_closed() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let context = Context::root(Duration::from_secs(60)).given_up_with(reader.into());
        assert!(!context.is_over() && context.caller().is_some());
        drop(writer);
        assert!(context.is_over());
    }

    #[test]
    fn random_numbers_differ() {
        let mut seen: Vec<u64> = (0..1_000).map(|_| random()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1_000);
    }
}
