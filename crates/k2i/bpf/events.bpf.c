// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * Processes that begin a program or end, as it happens: records in a ring that one reader empties.
 * `build` beside this file makes the object that is committed.
 *
 * Nothing here decides anything: which records belong together, scaling of CPU times and what a row
 * shows is made of these numbers in src/events, where it can be tested. An exec or exit that finds no
 * room is counted, on its CPU and by its kind; counting never fails, so the counts are exact.
 *
 * CPU time is not in EVENT_EXIT, though the task is at hand: the scheduler has not yet accounted for
 * its last slice, which for a short life is all of it. EVENT_REAP has it, when the kernel frees the task.
 */
#include "kernel.h"
#include "events.h"

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define EXISTS(field) __builtin_preserve_field_info(field, 2 /* BPF_FIELD_EXISTS */)

#define SIGNAL_GROUP_EXIT 0x4

/* Inode of the first PID namespace: PROC_PID_INIT_INO. */
#define FIRST_PID_NS 0xEFFFFFFCU

/* MAX_PID_NS_LEVEL and the first. */
#define PID_LEVELS_MAX 33

/* bpf-helpers(7); their numbers are the kernel's user interface. */
static void *(*const lookup)(void *map, const void *key) = (void *)1;
static long (*const probe_read_user)(void *to, __u32 len, const void *from) = (void *)112;
static long (*const probe_read_kernel)(void *to, __u32 len, const void *from) = (void *)113;
static __u64 (*const ktime_get_boot_ns)(void) = (void *)125;
static long (*const ringbuf_output)(void *ring, void *data, __u64 len, __u64 flags) = (void *)130;

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* PID namespace of the reader, as its inode; set before the programs are loaded. */
const volatile __u32 reader_ns = FIRST_PID_NS;

struct {
	int (*type)[27 /* BPF_MAP_TYPE_RINGBUF */];
	int (*max_entries)[RING_BYTES];
} ring SEC(".maps");

struct {
	int (*type)[6 /* BPF_MAP_TYPE_PERCPU_ARRAY */];
	int (*max_entries)[LOST_KINDS];
	__u32 *key;
	__u64 *value;
} lost SEC(".maps");

/* Room to put a record with its line together; an exec cannot be interrupted by another. */
struct exec_scratch {
	struct exec_event fixed;
	char line[EXEC_LINE_BYTES_MAX];
};

struct {
	int (*type)[6 /* BPF_MAP_TYPE_PERCPU_ARRAY */];
	int (*max_entries)[1];
	__u32 *key;
	struct exec_scratch *value;
} scratch SEC(".maps");

/*
 * Without flags: the reader is woken only if it has read everything before this record. While it
 * pauses between two looks, records pile up without a sound.
 */
INLINE void put(void *record, __u32 len, __u32 kind)
{
	__u64 *count;

	if (ringbuf_output(&ring, record, len, 0) == 0)
		return;
	count = lookup(&lost, &kind);
	if (count)
		__sync_fetch_and_add(count, 1);
}

/* The number of a process in the reader's PID namespace; 0 if it is not seen there. */
INLINE __s32 pid_number(struct pid *pid)
{
	/* As a number, it can be calculated with. */
	__u64 address = (__u64)pid;
	__u32 level = 0;
	__s32 number = 0;

	if (!address)
		return 0;
	probe_read_kernel(&level, sizeof(level), &pid->level);
	for (__u32 at = 0; at < PID_LEVELS_MAX; at++) {
		/* A upid is an int and a pointer. */
		struct upid *upid = (struct upid *)((__u64)&pid->numbers[0] + at * 16ULL);
		struct pid_namespace *ns = 0;
		__u32 inum = 0;

		if (at > level)
			break;
		probe_read_kernel(&ns, sizeof(ns), &upid->ns);
		probe_read_kernel(&inum, sizeof(inum), &ns->ns.inum);
		if (inum == reader_ns) {
			probe_read_kernel(&number, sizeof(number), &upid->nr);
			return number;
		}
	}
	return 0;
}

/* The number of the process of a task, likewise. */
INLINE __s32 process_number(struct task_struct *task)
{
	struct pid *pid = 0;

	if (reader_ns == FIRST_PID_NS)
		return task->tgid; /* Nearly always, and without a helper's call. */
	/* By way of a helper it is a number for the verifier, not a pointer. */
	probe_read_kernel(&pid, sizeof(pid), &task->signal->pids[PIDTYPE_TGID]);
	return pid_number(pid);
}

INLINE void read_head(struct event_head *to, struct task_struct *task, __u32 kind)
{
	to->kind = kind;
	to->flags = 0;
	to->tgid = task->tgid;
	to->pid = 0;
	/* The start of a process is that of its first thread. */
	to->start_ns = task->group_leader->start_boottime;
	to->at_ns = ktime_get_boot_ns();
}

INLINE void read_who(struct event_who *to, struct task_struct *task)
{
	struct task_struct *leader = task->group_leader;
	const struct cred *cred = leader->real_cred;

	to->ppid = process_number(leader->real_parent);
	to->task_flags = leader->flags;
	to->uid[0] = cred->uid.val;
	to->uid[1] = cred->euid.val;
	to->uid[2] = cred->suid.val;
	to->uid[3] = cred->fsuid.val;
	to->gid[0] = cred->gid.val;
	to->gid[1] = cred->egid.val;
	to->gid[2] = cred->sgid.val;
	to->gid[3] = cred->fsgid.val;
	to->cgroup_id = 0;
	if (EXISTS(task->cgroups))
		to->cgroup_id = task->cgroups->dfl_cgrp->kn->id;
	probe_read_kernel(&to->comm, sizeof(to->comm), &leader->comm);
}

SEC("tp_btf/sched_process_exec")
int executed(__u64 *context)
{
	struct task_struct *task = (struct task_struct *)context[0];
	struct exec_scratch *record;
	__u64 start, len;
	__u32 key = 0;
	__s32 pid = process_number(task);

	if (!pid)
		return 0;
	record = lookup(&scratch, &key);
	if (!record)
		return 0;
	read_head(&record->fixed.head, task, EVENT_EXEC);
	record->fixed.head.pid = pid;
	read_who(&record->fixed.who, task);
	start = task->mm->arg_start;
	len = task->mm->arg_end - start;
	record->fixed.line_len = len;
	if (len > EXEC_LINE_BYTES_MAX)
		len = EXEC_LINE_BYTES_MAX;
	/* The kernel has just written it there, so that it is in memory: this never waits. */
	if (probe_read_user(record->line, len, (void *)start)) {
		record->fixed.head.flags = LINE_UNREAD;
		len = 0;
	}
	record->fixed.head.len = sizeof(record->fixed) + len;
	put(record, sizeof(record->fixed) + len, LOST_EXEC);
	return 0;
}

INLINE int ended(struct task_struct *task)
{
	struct signal_struct *signal = task->signal;
	struct exit_event record;
	__s32 pid = process_number(task);

	if (!pid)
		return 0;
	read_head(&record.head, task, EVENT_EXIT);
	record.head.len = sizeof(record);
	record.head.pid = pid;
	read_who(&record.who, task);
	record.unused = 0;
	if (signal->flags & SIGNAL_GROUP_EXIT)
		record.status = signal->group_exit_code;
	else
		record.status = task->group_leader->exit_code;
	record.maxrss_pages = signal->maxrss;
	put(&record, sizeof(record), LOST_EXIT);
	return 0;
}

/* Since Linux 6.16 the kernel tells whether this was the last thread. */
SEC("tp_btf/sched_process_exit")
int exited(__u64 *context)
{
	if (!(context[1] & 1))
		return 0;
	return ended((struct task_struct *)context[0]);
}

/*
 * Before, it must be seen from the number of threads that live. Two that end at the same moment may
 * both see none: who reads takes the first.
 */
SEC("tp_btf/sched_process_exit")
int exited_by_count(__u64 *context)
{
	struct task_struct *task = (struct task_struct *)context[0];

	if (task->signal->live.counter)
		return 0;
	return ended(task);
}

/* A task is freed; of a process the first thread goes last, and its signal_struct has all sums. */
SEC("tp_btf/sched_process_free")
int freed(__u64 *context)
{
	struct task_struct *task = (struct task_struct *)context[0];
	struct signal_struct *signal = task->signal;
	struct reap_event record;
	__u64 exec_ns;

	if (task->pid != task->tgid)
		return 0;
	read_head(&record.head, task, EVENT_REAP);
	record.head.len = sizeof(record);
	record.utime_ns = signal->utime;
	record.stime_ns = signal->stime;
	/* One that reaped itself was added up before its last slice was accounted for. */
	record.exec_ns = signal->sum_sched_runtime;
	exec_ns = task->se.sum_exec_runtime;
	if (exec_ns > record.exec_ns)
		record.exec_ns = exec_ns;
	record.prev_utime_ns = signal->prev_cputime.utime;
	record.prev_stime_ns = signal->prev_cputime.stime;
	record.min_flt = signal->min_flt;
	record.maj_flt = signal->maj_flt;
	record.rchar = record.wchar = 0;
	record.read_bytes = record.write_bytes = record.cancelled_write_bytes = 0;
	if (EXISTS(signal->ioac.rchar) && EXISTS(signal->ioac.read_bytes)) {
		record.head.flags = HAS_IO;
		record.rchar = signal->ioac.rchar;
		record.wchar = signal->ioac.wchar;
		record.read_bytes = signal->ioac.read_bytes;
		record.write_bytes = signal->ioac.write_bytes;
		record.cancelled_write_bytes = signal->ioac.cancelled_write_bytes;
	}
	ringbuf_output(&ring, &record, sizeof(record), 0);
	return 0;
}
