/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What the iterators write: a stream of records, each `len` bytes long and of one of two kinds.
 * `src/collect/records.rs` reads them and must agree with every field. Little endian as the machine
 * is; no padding that is not named.
 */
#ifndef KUMO_TASK_H
#define KUMO_TASK_H

/* Longest command line inside of a record; longer ones are fetched one by one. */
#define LINE_BYTES_MAX 2048

/* Room for the whole name of a kernel thread. */
#define NAME_BYTES_MAX 64

enum record_kind {
	RECORD_PROCESS = 1,
	RECORD_THREAD = 2,
};

enum record_flags {
	/* The tail is the command line. */
	TAIL_LINE = 1 << 0,
	/* The tail is the whole name of a kernel thread, ended by NUL. */
	TAIL_NAME = 1 << 1,
	/* It has a command line that is not in the tail. */
	LINE_ELSEWHERE = 1 << 2,
	/* It has an address space. */
	HAS_MM = 1 << 3,
	/* rss[] is exact. */
	RSS_EXACT = 1 << 4,
	/* The second part is there. */
	HAS_MORE = 1 << 5,
};

/* What of the second part this kernel counts; a kernel may be built without. */
enum more_flags {
	MORE_IO = 1 << 0,
	MORE_DELAY = 1 << 1,
};

/* What is summed over the threads of a process. */
struct sums {
	__u64 utime_ns;
	__u64 stime_ns;
	__u64 exec_ns;
	__u64 min_flt;
	__u64 maj_flt;
};

/* The same, for what few questions ask. */
struct more_sums {
	__u64 vcsw;
	__u64 ivcsw;
	__u64 run_delay_ns;
	__u64 rchar;
	__u64 wchar;
	__u64 read_bytes;
	__u64 write_bytes;
	__u64 cancelled_write_bytes;
};

/* A thread that is not the first of its process; `more` follows if HAS_MORE. */
struct thread_record {
	__u32 len;
	__u16 kind;
	__u16 flags;
	__s32 pid;
	__s32 tid;
	struct sums sums;
	struct more_sums more;
};

/* What follows a process_record if HAS_MORE; before the tail. */
struct process_more {
	__u64 caps[5]; /* inheritable permitted effective bounding ambient */
	struct more_sums sums;
	__u64 cgroup_set;
	__u64 cgroup_ids; /* a hash */
	__u32 ns[8]; /* mnt pid net uts ipc user cgroup time */
	__s32 nspid;
	__u32 seccomp;
	__u32 no_new_privs;
	__u32 loginuid;
	__s32 oom_score_adj;
	__u32 has; /* enum more_flags */
};

struct process_record {
	__u32 len;
	__u16 kind;
	__u16 flags;
	__s32 pid;
	__s32 ppid;
	__s32 pgrp;
	__s32 session;
	__s32 tpgid;
	__u32 tty_nr;
	__u32 task_flags;
	__u32 state;
	__u32 exit_state;
	__u32 threads;
	__s32 prio;
	__s32 static_prio;
	__u32 rtprio;
	__u32 policy;
	__u32 cpu;
	__s32 exit_signal;
	__u32 uid[4];
	__u32 gid[4];
	__u64 start_ns;
	__u64 exec_id;
	struct sums sums; /* the first thread, and the threads that have ended */
	__u64 prev_utime_ns;
	__u64 prev_stime_ns;
	__u64 cutime_ns;
	__u64 cstime_ns;
	__u64 cmin_flt;
	__u64 cmaj_flt;
	__u64 rss_limit;
	__u64 total_vm;
	__u64 locked_vm;
	__u64 data_vm;
	__u64 stack_vm;
	__u64 start_code;
	__u64 end_code;
	__u64 arg_start;
	__u64 arg_end;
	__s64 rss[4]; /* file anon swap shmem, pages */
	char comm[16];
};

#endif
