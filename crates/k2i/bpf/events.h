/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What the tracepoints write into the ring: one record an event, `len` bytes long.
 * `src/events/records.rs` reads them and must agree with every field. Little endian as the machine
 * is; no padding that is not named.
 */
#ifndef KUMO_EVENTS_H
#define KUMO_EVENTS_H

/* Room for records: two seconds of starts as fast as two CPUs can make them, and nobody reads. */
#define RING_BYTES (4 << 20)

/* Longest beginning of a command line inside of a record. */
#define EXEC_LINE_BYTES_MAX 512

enum event_kind {
	/* A process executes a program. */
	EVENT_EXEC = 1,
	/* The last thread of a process has ended. */
	EVENT_EXIT = 2,
	/* An ended process was waited for and is gone: its times are final. */
	EVENT_REAP = 3,
};

/*
 * Indices of `lost`: records that found no room, of each kind. Reaps are not counted: who reads sees
 * that a process is gone and its reap did not come, and so finds also those that were never written.
 */
enum lost_index {
	LOST_EXEC = 0,
	LOST_EXIT = 1,
	LOST_KINDS = 2,
};

enum event_flags {
	/* The line could not be read where it should be. */
	LINE_UNREAD = 1 << 0,
	/* This kernel counts I/O. */
	HAS_IO = 1 << 1,
};

/* Who it is: the number in the first PID namespace and the start never change. */
struct event_head {
	__u32 len;
	__u16 kind;
	__u16 flags;
	__s32 tgid;
	__s32 pid; /* in the reader's PID namespace; 0 in EVENT_REAP, which no longer knows it */
	__u64 start_ns;
	__u64 at_ns;
};

/* What exec and exit have in common. */
struct event_who {
	__s32 ppid;
	__u32 task_flags;
	__u32 uid[4];
	__u32 gid[4];
	__u64 cgroup_id; /* in the unified hierarchy; 0 without one */
	char comm[16];
};

/* `line` follows, as much of it as there is room for. */
struct exec_event {
	struct event_head head;
	struct event_who who;
	__u64 line_len; /* of the whole line */
};

struct exit_event {
	struct event_head head;
	struct event_who who;
	__u32 status; /* as wait(2) gives it */
	__u32 unused;
	__u64 maxrss_pages;
};

struct reap_event {
	struct event_head head;
	__u64 utime_ns;
	__u64 stime_ns;
	__u64 exec_ns;
	__u64 prev_utime_ns;
	__u64 prev_stime_ns;
	__u64 min_flt;
	__u64 maj_flt;
	__u64 rchar;
	__u64 wchar;
	__u64 read_bytes;
	__u64 write_bytes;
	__u64 cancelled_write_bytes;
};

#endif
