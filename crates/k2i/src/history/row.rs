//! A process as numbers and texts, and back: the form in which changes are small.
//!
//! A place in the list of numbers is part of what stands on disks: places are added, none is moved.

#![allow(clippy::cast_lossless, clippy::unnecessary_cast, reason = "one list for every width")]

use std::sync::Arc;

use crate::table::{Comm, CommandLine, Late, Parts, Process};

/// Numbers of a process.
pub(super) const NUMBERS: usize = 74;

/// A process without its texts. Where a text belongs stands its number, 0 for none.
pub(super) type Numbers = [u64; NUMBERS];

/// Texts of a process: name, arguments, control group, executable.
pub(super) const TEXTS: usize = 4;

const HAVE: usize = 0;
const FLAGS: usize = 1;
const TEXT: usize = 2;
const CPU: usize = TEXT + TEXTS;

const NO_NEW_PRIVS: u64 = 1;
const CMDLINE_CUT: u64 = 2;

/// Each field of a [`Process`] that is a number, its place and its kind.
macro_rules! numbers {
    ($($at:literal $($field:ident).+ $kind:ty;)*) => {
        fn put(row: &Process, numbers: &mut Numbers) {
            $( numbers[$at] = row.$($field).+ as u64; )*
        }

        fn take(numbers: &Numbers, row: &mut Process) {
            $( row.$($field).+ = numbers[$at] as $kind; )*
        }

        #[cfg(test)]
        const PLACES: &[usize] = &[$($at),*];
    };
}

numbers! {
    7 ppid i32;
    8 pgrp i32;
    9 session i32;
    10 tty_nr u32;
    11 tpgid i32;
    12 flags u32;
    13 state u8;
    14 threads u32;
    15 nice i32;
    16 priority i32;
    17 rtprio u32;
    18 policy u32;
    19 processor i32;
    20 exit_signal i32;
    21 start_ns u64;
    22 utime_ns u64;
    23 stime_ns u64;
    24 cutime_ns u64;
    25 cstime_ns u64;
    26 min_flt u64;
    27 maj_flt u64;
    28 cmin_flt u64;
    29 cmaj_flt u64;
    30 vsize u64;
    31 rss_limit u64;
    32 memory.anon u64;
    33 memory.shared u64;
    34 memory.text u64;
    35 memory.data u64;
    36 uid.real u32;
    37 uid.effective u32;
    38 uid.saved u32;
    39 uid.fs u32;
    40 gid.real u32;
    41 gid.effective u32;
    42 gid.saved u32;
    43 gid.fs u32;
    44 nspid i32;
    45 swap u64;
    46 locked u64;
    47 stack u64;
    48 vcsw u64;
    49 ivcsw u64;
    50 caps.inheritable u64;
    51 caps.permitted u64;
    52 caps.effective u64;
    53 caps.bounding u64;
    54 caps.ambient u64;
    55 seccomp u8;
    56 io.rchar u64;
    57 io.wchar u64;
    58 io.read_bytes u64;
    59 io.write_bytes u64;
    60 io.cancelled_write_bytes u64;
    61 run_delay_ns u64;
    62 ns.mnt u32;
    63 ns.pid u32;
    64 ns.net u32;
    65 ns.uts u32;
    66 ns.ipc u32;
    67 ns.user u32;
    68 ns.cgroup u32;
    69 ns.time u32;
    70 loginuid u32;
    71 oom_score_adj i16;
}

/// The numbers of a row, without those of its texts. `cpu_percent` is NaN where it is not known.
pub(super) fn numbers(row: &Process, cpu_percent: f32) -> Numbers {
    let mut numbers = [0; NUMBERS];
    put(row, &mut numbers);
    numbers[HAVE] = u64::from(row.have.without(Parts::LATE).bits());
    numbers[FLAGS] = if row.no_new_privs { NO_NEW_PRIVS } else { 0 };
    // In hundredths, and one more: 0 says that it is not known.
    if !cpu_percent.is_nan() {
        numbers[CPU] = (f64::from(cpu_percent) * 100.0).round().max(0.0) as u64 + 1;
    }
    numbers
}

/// Says in `numbers` which texts the row has, by their numbers; and whether its arguments are only
/// the beginning of them.
pub(super) fn put_texts(numbers: &mut Numbers, texts: [u64; TEXTS], line_is_cut: bool) {
    numbers[TEXT..TEXT + TEXTS].copy_from_slice(&texts);
    if line_is_cut {
        numbers[FLAGS] |= CMDLINE_CUT;
    }
    if texts[1] != 0 {
        numbers[HAVE] |= u64::from(Parts::CMDLINE.bits());
    }
    if texts[3] != 0 {
        numbers[HAVE] |= u64::from(Parts::EXE.bits());
    }
}

/// The numbers of the texts of a row.
pub(super) fn texts(numbers: &Numbers) -> [u64; TEXTS] {
    std::array::from_fn(|index| numbers[TEXT + index])
}

/// The row of `pid`, and its CPU use; NaN where that is not known.
pub(super) fn row(
    pid: i32,
    numbers: &Numbers,
    [comm, _, cgroup, exe]: [Option<&Arc<[u8]>>; TEXTS],
    line: Option<CommandLine>,
) -> (Process, f32) {
    let mut row = Process { pid, ..Process::default() };
    take(numbers, &mut row);
    row.have = Parts::from_bits(numbers[HAVE] as u32);
    row.no_new_privs = numbers[FLAGS] & NO_NEW_PRIVS != 0;
    row.cmdline_cut = numbers[FLAGS] & CMDLINE_CUT != 0;
    row.comm = comm.map_or_else(Comm::default, |comm| Comm::new(comm));
    row.cmdline = line;
    row.cgroup = cgroup.cloned();
    row.late = exe.map(|exe| {
        let exe = Some(exe.to_vec().into_boxed_slice());
        Arc::new(Late { exe, ..Late::default() })
    });
    let percent = match numbers[CPU] {
        0 => f32::NAN,
        hundredths => ((hundredths - 1) as f64 / 100.0) as f32,
    };
    (row, percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_there_once() {
        let mut places: Vec<usize> = PLACES.to_vec();
        places.extend(HAVE..=CPU);
        places.sort_unstable();
        assert_eq!(places, (0..72).collect::<Vec<_>>());
        const { assert!(NUMBERS <= 128, "a change says in 128 bits which they are") };
    }

    #[test]
    fn a_row_reads_back() {
        let mut given: Numbers = std::array::from_fn(|at| at as u64 + 100);
        given[HAVE] = u64::from((Parts::STAT | Parts::MEMORY).bits());
        given[FLAGS] = NO_NEW_PRIVS;
        given[TEXT..=CPU].fill(0);
        given[72..].fill(0);
        // Negative numbers, and those that fill their field.
        given[15] = -20_i64 as u64;
        given[16] = -100_i64 as u64;
        given[71] = -1_000_i64 as u64;
        given[70] = u64::from(u32::MAX);
        given[54] = u64::MAX;
        let (process, percent) = row(7, &given, [None; TEXTS], None);
        assert!(process.pid == 7 && process.nice == -20 && process.oom_score_adj == -1_000);
        assert!(percent.is_nan());
        assert_eq!(numbers(&process, percent), given);
    }

    #[test]
    fn texts_and_cpu_use_read_back() {
        let texts_of: [Arc<[u8]>; TEXTS] =
            [&b"sh"[..], b"sh\0-c\0", b"0::/a\n", b"/bin/sh"].map(Arc::from);
        let mut given = numbers(&Process::default(), 12.345);
        put_texts(&mut given, [1, 2, 3, 4], true);
        assert_eq!(texts(&given), [1, 2, 3, 4]);
        let line = CommandLine::new(&texts_of[1]);
        let (process, percent) =
            row(1, &given, std::array::from_fn(|at| Some(&texts_of[at])), Some(line));
        assert!((percent - 12.35).abs() < 1e-4);
        assert_eq!(process.comm.as_bytes(), b"sh");
        assert!(process.have.contains(Parts::CMDLINE | Parts::EXE) && process.cmdline_cut);
        assert_eq!(process.cmdline.expect("a line").joined(), b"sh -c");
        assert_eq!(process.late.expect("it is").exe.as_deref(), Some(&b"/bin/sh"[..]));
    }
}
