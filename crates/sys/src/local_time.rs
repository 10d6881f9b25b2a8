//! Wall-clock time in the time zone of the user.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// A moment in the local time zone, to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// Year of the common era.
    pub year: i32,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, 1 to 31.
    pub day: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 60.
    pub second: u8,
}

impl LocalTime {
    /// The local time of `unix_s`, seconds since 1970 in UTC. The zone is that of `TZ`, else
    /// `/etc/localtime`, else UTC. `None` when the year does not fit 32 bits.
    #[must_use]
    pub fn at(unix_s: i64) -> Option<LocalTime> {
        let time: libc::time_t = unix_s;
        let mut parts = MaybeUninit::<libc::tm>::uninit();
        // SAFETY: both pointers are to live, aligned locals that nothing else refers to. The C
        // library may read `TZ`; Rust's `set_var` is the only writer there could be, and nothing in
        // this workspace calls it.
        let filled = unsafe { libc::localtime_r(&raw const time, parts.as_mut_ptr()) };
        if filled.is_null() {
            return None;
        }
        // SAFETY: a result that is not null says that `localtime_r` has filled the structure.
        let parts = unsafe { parts.assume_init() };
        Some(LocalTime {
            year: parts.tm_year.checked_add(1900)?,
            month: parts.tm_mon as u8 + 1,
            day: parts.tm_mday as u8,
            hour: parts.tm_hour as u8,
            minute: parts.tm_min as u8,
            second: parts.tm_sec as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_later_is_an_hour_later() {
        // The zone of the machine is not ours to choose, so only what holds in all is checked: the
        // day that begins the year 2001 in UTC is the last of 2000, or the first or second of 2001.
        let noon = LocalTime::at(978_350_400).expect("the year 2001 fits");
        assert!(
            [(2000, 12, 31), (2001, 1, 1), (2001, 1, 2)]
                .contains(&(noon.year, noon.month, noon.day))
        );
        let later = LocalTime::at(978_350_400 + 60).expect("a minute later fits too");
        assert_eq!((noon.minute + 1) % 60, later.minute);
    }

    #[test]
    fn a_year_beyond_all_bounds_is_none() {
        assert_eq!(LocalTime::at(i64::MAX), None);
    }
}
