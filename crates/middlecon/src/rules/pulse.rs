//! Pulses that wait to be sent, or to be handled: of each method the last one only.
//!
//! A pulse never blocks its sender. What cannot leave, or begin, at once stays here, and a later pulse of the
//! same method takes its place: it says how something *is*, so only the newest is worth having.

use bytes::Bytes;
use kumo_abi::call::Method;

/// Most methods whose pulses wait. Beyond that the oldest is dropped, and counted.
pub const PULSES_WAITING_MAX: usize = 64;

/// Pulses that wait, oldest first.
#[derive(Debug)]
pub struct Pulses<T = Bytes> {
    waiting: Vec<(Method, T)>,
    replaced: u64,
    dropped: u64,
}

impl<T> Default for Pulses<T> {
    fn default() -> Pulses<T> {
        Pulses { waiting: Vec::new(), replaced: 0, dropped: 0 }
    }
}

impl<T> Pulses<T> {
    /// Adds a pulse in the place of an older one of its method.
    pub fn put(&mut self, method: &Method, body: T) {
        if let Some((_, waiting)) = self.waiting.iter_mut().find(|(other, _)| other == method) {
            *waiting = body;
            self.replaced += 1;
            return;
        }
        if self.waiting.len() == PULSES_WAITING_MAX {
            self.waiting.remove(0);
            self.dropped += 1;
        }
        self.waiting.push((method.clone(), body));
    }

    /// Takes the oldest out: a pulse that comes from now on is later, and goes after it.
    pub fn take(&mut self) -> Option<(Method, T)> {
        (!self.waiting.is_empty()).then(|| self.waiting.remove(0))
    }

    /// Whether one of this method waits.
    pub fn has(&self, method: &Method) -> bool {
        self.waiting.iter().any(|(waiting, _)| waiting == method)
    }

    /// How many were replaced by newer ones, and how many were dropped.
    pub fn lost(&self) -> (u64, u64) {
        (self.replaced, self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str) -> Method {
        name.parse().expect("a name")
    }

    #[test]
    fn of_each_method_the_last_one_leaves_in_the_order_of_the_first() {
        let mut pulses = Pulses::default();
        pulses.put(&method("a"), Bytes::from_static(b"1"));
        pulses.put(&method("b"), Bytes::from_static(b"2"));
        pulses.put(&method("a"), Bytes::from_static(b"3"));
        assert!(pulses.has(&method("b")) && !pulses.has(&method("c")));
        assert_eq!(pulses.take(), Some((method("a"), Bytes::from_static(b"3"))));
        assert_eq!(pulses.take(), Some((method("b"), Bytes::from_static(b"2"))));
        assert_eq!((pulses.take(), pulses.lost()), (None, (1, 0)));
    }

    #[test]
    fn more_than_may_wait_are_dropped_and_counted() {
        let mut pulses = Pulses::default();
        for n in 0..=PULSES_WAITING_MAX {
            pulses.put(&method(&format!("m{n}")), Bytes::new());
        }
        assert_eq!(pulses.take().map(|(taken, _)| taken), Some(method("m1")));
        assert_eq!(pulses.lost(), (0, 1));
    }
}
