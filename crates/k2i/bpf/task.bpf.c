// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * The process table, written by the kernel itself: one pass over all tasks, one record for each
 * process and each further thread. `build` beside this file makes the object that is committed.
 *
 * Nothing here decides anything: sums over threads, scaling of CPU times and names of states are
 * made of these numbers in src/collect/records.rs, where they can be tested.
 */
#include "kernel.h"
#include "task.h"

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define EXISTS(field) __builtin_preserve_field_info(field, 2 /* BPF_FIELD_EXISTS */)

#define PF_WQ_WORKER 0x00000020
#define PF_KTHREAD 0x00200000
#define RLIMIT_RSS 5

/* CPUs whose parts of rss_stat are summed here. With more, the sum is left to /proc/<pid>/statm. */
#define CPUS_MAX 64

/* bpf-helpers(7); their numbers are the kernel's user interface. */
static long (*const probe_read_kernel)(void *to, __u32 len, const void *from) = (void *)113;
static long (*const probe_read_kernel_str)(void *to, __u32 len, const void *from) = (void *)115;
static long (*const seq_write)(struct seq_file *seq, const void *data, __u32 len) = (void *)127;
static __u64 (*const get_current_task)(void) = (void *)35;
static long (*const copy_from_user_task)(void *to, __u32 len, const void *from,
					 struct task_struct *task, __u64 flags) = (void *)191;
static void *(*const lookup)(void *map, const void *key) = (void *)1;
static void *(*const lookup_percpu)(void *map, const void *key, __u32 cpu) = (void *)195;

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Possible CPUs; set before the programs are loaded. */
const volatile __u32 cpus = 1;

/*
 * One scan at a time: the loader's lock sees to it. That makes these plain variables, though a
 * sleepable program may be put aside in the middle.
 */
struct {
	struct process_record fixed;
	union {
		struct {
			struct process_more more;
			char tail_of_more[LINE_BYTES_MAX];
		};
		char tail[LINE_BYTES_MAX];
	};
} record;

/* Whether this scan wants the second parts; the loader sets it in `control` before it reads. */
__u32 want_more;

/* PID namespace of the reader, as its depth. */
__u32 reader_level;

/* What to add to a per-CPU pointer to reach the part of a CPU; valid if `offsets_known`. */
__u64 cpu_offset[CPUS_MAX];
__u32 offsets_known;
__u64 address;

/* Only its addresses matter: see learn_offsets. */
struct {
	int (*type)[6 /* BPF_MAP_TYPE_PERCPU_ARRAY */];
	int (*max_entries)[1];
	__u32 *key;
	__u64 *value;
} anchor SEC(".maps");

struct {
	int (*type)[2 /* BPF_MAP_TYPE_ARRAY */];
	int (*max_entries)[1];
	__u32 *key;
	__u32 *value;
} control SEC(".maps");

/* By way of memory, a pointer becomes a number to calculate with. */
INLINE __u64 as_number(void *pointer)
{
	*(void *volatile *)&address = pointer;
	return *(volatile __u64 *)&address;
}

/*
 * The kernel tells no program where the parts of a per-CPU pointer are. But of a per-CPU map we can
 * ask both: the pointer, and the address of each CPU's part. The difference holds for all of them.
 */
INLINE void learn_offsets(void)
{
	__u64 base = 0;
	__u32 key = 0;

	offsets_known = 0;
	if (cpus > CPUS_MAX)
		return;
	probe_read_kernel(&base, sizeof(base),
			  &((struct bpf_array *)as_number((void *)&anchor))->pptrs[0]);
	if (!base)
		return;
	for (__u32 cpu = 0; cpu < CPUS_MAX; cpu++) {
		void *part;

		if (cpu >= cpus)
			break;
		part = lookup_percpu(&anchor, &key, cpu);
		if (!part)
			return;
		cpu_offset[cpu] = as_number(part) - base;
	}
	offsets_known = 1;
}

/* The entry of `pid` for the PID namespace at `level`, as an address; an upid is an int and a pointer. */
INLINE __u64 upid_at(struct pid *pid, __u32 level)
{
	struct pid *at = (struct pid *)as_number(pid);

	return (__u64)&at->numbers[0] + level * 16ULL;
}

/* The number of a process in the PID namespace at `level`; 0 if it is not seen there. */
INLINE __s32 pid_number(struct pid *pid, __u32 level)
{
	/* Volatile: the loads of both branches must not be merged, the verifier tells pointers apart. */
	volatile __s32 number = 0;

	if (!pid)
		return 0;
	if (level == 0)
		return pid->numbers[0].nr; /* Nearly always, and without a helper's call. */
	if (pid->level < level)
		return 0;
	probe_read_kernel((void *)&number, sizeof(number),
			  &((struct upid *)upid_at(pid, level))->nr);
	return number;
}

INLINE void learn_reader(void)
{
	struct task_struct *reader = (struct task_struct *)get_current_task();
	struct pid *pid = 0;

	reader_level = 0;
	probe_read_kernel(&pid, sizeof(pid), &reader->thread_pid);
	if (pid)
		probe_read_kernel(&reader_level, sizeof(reader_level), &pid->level);
}

INLINE void sum_task(struct sums *sums, struct task_struct *task)
{
	sums->utime_ns = task->utime;
	sums->stime_ns = task->stime;
	sums->exec_ns = task->se.sum_exec_runtime;
	sums->min_flt = task->min_flt;
	sums->maj_flt = task->maj_flt;
}

INLINE void sum_more(struct more_sums *sums, struct task_struct *task)
{
	sums->vcsw = task->nvcsw;
	sums->ivcsw = task->nivcsw;
	sums->run_delay_ns = 0;
	if (EXISTS(task->sched_info.run_delay))
		sums->run_delay_ns = task->sched_info.run_delay;
	sums->rchar = sums->wchar = 0;
	if (EXISTS(task->ioac.rchar)) {
		sums->rchar = task->ioac.rchar;
		sums->wchar = task->ioac.wchar;
	}
	sums->read_bytes = sums->write_bytes = sums->cancelled_write_bytes = 0;
	if (EXISTS(task->ioac.read_bytes)) {
		sums->read_bytes = task->ioac.read_bytes;
		sums->write_bytes = task->ioac.write_bytes;
		sums->cancelled_write_bytes = task->ioac.cancelled_write_bytes;
	}
}

INLINE void read_signal(struct process_record *to, struct signal_struct *signal)
{
	struct tty_struct *tty = signal->tty;

	to->pgrp = pid_number(signal->pids[PIDTYPE_PGID], reader_level);
	to->session = pid_number(signal->pids[PIDTYPE_SID], reader_level);
	to->threads = signal->nr_threads;
	/* Threads that have ended, and were not the first. */
	to->sums.utime_ns += signal->utime;
	to->sums.stime_ns += signal->stime;
	to->sums.exec_ns += signal->sum_sched_runtime;
	to->sums.min_flt += signal->min_flt;
	to->sums.maj_flt += signal->maj_flt;
	to->prev_utime_ns = signal->prev_cputime.utime;
	to->prev_stime_ns = signal->prev_cputime.stime;
	to->cutime_ns = signal->cutime;
	to->cstime_ns = signal->cstime;
	to->cmin_flt = signal->cmin_flt;
	to->cmaj_flt = signal->cmaj_flt;
	to->rss_limit = signal->rlim[RLIMIT_RSS].rlim_cur;
	to->tpgid = -1;
	to->tty_nr = 0;
	if (tty) {
		struct tty_driver *driver = tty->driver;
		__u32 major, minor;
		struct pid *foreground = 0;

		major = driver->major;
		minor = driver->minor_start + tty->index;
		/* new_encode_dev() */
		to->tty_nr = (minor & 0xff) | (major << 8) | ((minor & ~0xffU) << 12);
		if (EXISTS(tty->ctrl.pgrp))
			foreground = tty->ctrl.pgrp;
		else if (EXISTS(((struct tty_struct___old *)tty)->pgrp))
			foreground = ((struct tty_struct___old *)tty)->pgrp;
		if (foreground)
			to->tpgid = pid_number(foreground, reader_level);
	}
}

INLINE void read_cred(struct process_record *to, const struct cred *cred)
{
	to->uid[0] = cred->uid.val;
	to->uid[1] = cred->euid.val;
	to->uid[2] = cred->suid.val;
	to->uid[3] = cred->fsuid.val;
	to->gid[0] = cred->gid.val;
	to->gid[1] = cred->egid.val;
	to->gid[2] = cred->sgid.val;
	to->gid[3] = cred->fsgid.val;
}

INLINE void read_caps(struct process_more *to, const struct cred *cred)
{
	struct user_namespace *user_ns = cred->user_ns;

	to->ns[5] = user_ns->ns.inum;
	if (EXISTS(cred->cap_inheritable.val)) {
		to->caps[0] = cred->cap_inheritable.val;
		to->caps[1] = cred->cap_permitted.val;
		to->caps[2] = cred->cap_effective.val;
		to->caps[3] = cred->cap_bset.val;
		to->caps[4] = cred->cap_ambient.val;
	} else {
		/* Two words of 32 bits before Linux 6.3, the lower first. */
		probe_read_kernel(&to->caps[0], 8, &cred->cap_inheritable);
		probe_read_kernel(&to->caps[1], 8, &cred->cap_permitted);
		probe_read_kernel(&to->caps[2], 8, &cred->cap_effective);
		probe_read_kernel(&to->caps[3], 8, &cred->cap_bset);
		probe_read_kernel(&to->caps[4], 8, &cred->cap_ambient);
	}
}

INLINE void read_namespaces(struct process_more *to, struct task_struct *task)
{
	struct nsproxy *ns = task->nsproxy;
	struct pid *pid = task->thread_pid;

	to->nspid = 0;
	to->ns[0] = to->ns[1] = to->ns[2] = to->ns[3] = to->ns[4] = to->ns[6] = to->ns[7] = 0;
	if (pid) {
		__u32 level = pid->level;

		to->nspid = pid_number(pid, level);
		if (level == 0) {
			to->ns[1] = pid->numbers[0].ns->ns.inum;
		} else {
			struct upid *upid = (struct upid *)upid_at(pid, level);
			struct pid_namespace *innermost = 0;

			probe_read_kernel(&innermost, sizeof(innermost), &upid->ns);
			probe_read_kernel(&to->ns[1], sizeof(to->ns[1]), &innermost->ns.inum);
		}
	}
	if (!ns)
		return; /* A zombie has left them. */
	to->ns[0] = ns->mnt_ns->ns.inum;
	to->ns[2] = ns->net_ns->ns.inum;
	if (EXISTS(ns->uts_ns))
		to->ns[3] = ns->uts_ns->ns.inum;
	if (EXISTS(ns->ipc_ns))
		to->ns[4] = ns->ipc_ns->ns.inum;
	if (EXISTS(ns->cgroup_ns))
		to->ns[6] = ns->cgroup_ns->ns.inum;
	if (EXISTS(ns->time_ns))
		to->ns[7] = ns->time_ns->ns.inum;
}

INLINE void mix(__u64 *hash, __u64 value)
{
	*hash = (*hash ^ value) * 0x100000001b3ULL;
}

#define MIX_SUBSYS(index)                                                   \
	if (EXISTS(set->subsys[index])) {                                   \
		struct cgroup_subsys_state *state = set->subsys[index];     \
		mix(&hash, state->cgroup->kn->id);                          \
	}

/*
 * Tasks of one css_set are in the same control groups of all hierarchies. Its address may be given
 * again to another set later; the ids of the groups tell the two apart, but for the hierarchies that
 * have a name only, and for subsystems beyond these eight. Who reads must not trust them for ever.
 */
INLINE void read_cgroups(struct process_more *to, struct task_struct *task)
{
	__u64 hash = 0xcbf29ce484222325ULL;

	to->cgroup_set = to->cgroup_ids = 0;
	if (EXISTS(task->cgroups)) {
		struct css_set *set = task->cgroups;

		to->cgroup_set = as_number(task->cgroups);
		mix(&hash, set->dfl_cgrp->kn->id);
		MIX_SUBSYS(0)
		MIX_SUBSYS(1)
		MIX_SUBSYS(2)
		MIX_SUBSYS(3)
		MIX_SUBSYS(4)
		MIX_SUBSYS(5)
		MIX_SUBSYS(6)
		MIX_SUBSYS(7)
		to->cgroup_ids = hash;
	}
}

/* Adds the parts of all CPUs to one counter. */
INLINE void sum_parts(__s64 *count, __u64 parts)
{
	for (__u32 cpu = 0; cpu < CPUS_MAX; cpu++) {
		__s32 part = 0;

		if (cpu >= cpus)
			break;
		probe_read_kernel(&part, sizeof(part), (void *)(parts + cpu_offset[cpu]));
		*count += part;
	}
}

/* The same for four counters whose parts are neighbours: a quarter of the calls. */
INLINE void sum_neighbours(__s64 *counts, __u64 parts)
{
	for (__u32 cpu = 0; cpu < CPUS_MAX; cpu++) {
		__s32 part[4] = {};

		if (cpu >= cpus)
			break;
		probe_read_kernel(part, sizeof(part), (void *)(parts + cpu_offset[cpu]));
		counts[0] += part[0];
		counts[1] += part[1];
		counts[2] += part[2];
		counts[3] += part[3];
	}
}

/*
 * Resident memory is counted in parts by each CPU (Linux 6.2); the counter alone is wrong by up to a
 * batch for each of them. The kernel allocates the parts of all four side by side since 6.6.
 */
INLINE void read_rss(struct process_record *to, struct mm_struct *mm)
{
	__u64 parts[4];

	to->rss[0] = mm->rss_stat[0].count;
	to->rss[1] = mm->rss_stat[1].count;
	to->rss[2] = mm->rss_stat[2].count;
	to->rss[3] = mm->rss_stat[3].count;
	if (!offsets_known)
		return;
	to->flags |= RSS_EXACT;
	parts[0] = as_number(mm->rss_stat[0].counters);
	parts[1] = as_number(mm->rss_stat[1].counters);
	parts[2] = as_number(mm->rss_stat[2].counters);
	parts[3] = as_number(mm->rss_stat[3].counters);
	if (parts[1] == parts[0] + 4 && parts[2] == parts[0] + 8 && parts[3] == parts[0] + 12) {
		sum_neighbours(to->rss, parts[0]);
		return;
	}
	sum_parts(&to->rss[0], parts[0]);
	sum_parts(&to->rss[1], parts[1]);
	sum_parts(&to->rss[2], parts[2]);
	sum_parts(&to->rss[3], parts[3]);
}

#define READ_RSS_OLD(index)                                                                      \
	to->rss[index] = ((struct mm_struct___old *)mm)->rss_stat.count[index].counter

INLINE void read_memory(struct process_record *to, struct mm_struct *mm)
{
	to->flags |= HAS_MM;
	to->total_vm = mm->total_vm;
	to->locked_vm = mm->locked_vm;
	to->data_vm = mm->data_vm;
	to->stack_vm = mm->stack_vm;
	to->start_code = mm->start_code;
	to->end_code = mm->end_code;
	to->arg_start = mm->arg_start;
	to->arg_end = mm->arg_end;
	if (EXISTS(mm->rss_stat[0].counters)) {
		read_rss(to, mm);
	} else if (EXISTS(((struct mm_struct___old *)mm)->rss_stat.count)) {
		/* Threads keep up to 64 pages back each, but /proc shows no more than this either. */
		to->flags |= RSS_EXACT;
		READ_RSS_OLD(0);
		READ_RSS_OLD(1);
		READ_RSS_OLD(2);
		READ_RSS_OLD(3);
	}
}

/* The whole name of a kernel thread, as /proc/<pid>/comm shows it. Returns its length with NUL. */
INLINE __u32 read_kernel_name(char *tail, struct task_struct *task, __u32 flags)
{
	struct kthread *kthread;
	char *full_name = 0;
	long len;

	if (!EXISTS(task->worker_private) || !EXISTS(kthread->full_name))
		return 0;
	kthread = task->worker_private;
	if (!kthread)
		return 0;
	if (flags & PF_WQ_WORKER) {
		struct worker *worker = 0;
		struct work_struct *work = 0;
		void *rescues = 0;

		if (!EXISTS(worker->desc))
			return 0;
		probe_read_kernel(&worker, sizeof(worker), &kthread->data);
		probe_read_kernel(&work, sizeof(work), &worker->current_work);
		if (EXISTS(worker->rescue_wq))
			probe_read_kernel(&rescues, sizeof(rescues), &worker->rescue_wq);
		len = probe_read_kernel_str(tail, sizeof(task->comm), &task->comm);
		if (len < 1 || len > 16)
			return 0;
		tail[len - 1] = work ? '+' : '-';
		long desc = probe_read_kernel_str(tail + len, 32, &worker->desc);
		if (!rescues && desc > 1 && desc <= 32)
			return len + desc;
		/* It has not worked yet; or it is a rescuer, which is named after what it rescues. */
	}
	probe_read_kernel(&full_name, sizeof(full_name), &kthread->full_name);
	if (!full_name)
		return 0;
	len = probe_read_kernel_str(tail, NAME_BYTES_MAX, full_name);
	return len > 1 && len <= NAME_BYTES_MAX ? len : 0;
}

/* What few questions ask: a third of the work. */
INLINE void read_more(struct process_more *to, struct task_struct *task)
{
	struct signal_struct *signal = task->signal;

	to->has = 0;
	if (EXISTS(task->ioac.rchar) && EXISTS(task->ioac.read_bytes))
		to->has |= MORE_IO;
	if (EXISTS(task->sched_info.run_delay))
		to->has |= MORE_DELAY;
	sum_more(&to->sums, task);
	if (EXISTS(signal->ioac.rchar)) {
		to->sums.rchar += signal->ioac.rchar;
		to->sums.wchar += signal->ioac.wchar;
	}
	if (EXISTS(signal->ioac.read_bytes)) {
		to->sums.read_bytes += signal->ioac.read_bytes;
		to->sums.write_bytes += signal->ioac.write_bytes;
		to->sums.cancelled_write_bytes += signal->ioac.cancelled_write_bytes;
	}
	read_caps(to, task->real_cred);
	read_namespaces(to, task);
	read_cgroups(to, task);
	to->seccomp = 0;
	if (EXISTS(task->seccomp.mode))
		to->seccomp = task->seccomp.mode;
	to->no_new_privs = task->atomic_flags & 1; /* PFA_NO_NEW_PRIVS */
	to->loginuid = ~0U;
	if (EXISTS(task->loginuid))
		to->loginuid = task->loginuid.val;
	to->oom_score_adj = signal->oom_score_adj;
}

/* Reads the command line into the tail. Returns its length. */
INLINE __u32 read_line(struct process_record *to, char *tail, struct task_struct *task)
{
	__u64 len = to->arg_end - to->arg_start;

	if (to->arg_end <= to->arg_start)
		return 0;
	if (len >= LINE_BYTES_MAX ||
	    copy_from_user_task(tail, len & (LINE_BYTES_MAX - 1), (void *)to->arg_start, task, 0) ||
	    tail[(len - 1) & (LINE_BYTES_MAX - 1)]) {
		/*
		 * Too long; or not readable just now; or not ended by NUL, which means that the process
		 * wrote a title over it that may go on behind it. The kernel knows how to read that.
		 */
		to->flags |= LINE_ELSEWHERE;
		return 0;
	}
	to->flags |= TAIL_LINE;
	return len;
}

/* Fills in what follows the numbers. Returns its length. */
INLINE __u32 read_tail(struct process_record *to, char *tail, struct task_struct *task, int lines)
{
	__u32 len = 0;

	if (to->flags & HAS_MM) {
		if (lines)
			len = read_line(to, tail, task);
	} else if (to->task_flags & PF_KTHREAD) {
		len = read_kernel_name(tail, task, to->task_flags);
		if (len)
			to->flags |= TAIL_NAME;
	}
	return len;
}

INLINE void write_process(struct bpf_iter__task *context, struct task_struct *task, int lines)
{
	struct process_record *to = &record.fixed;
	struct mm_struct *mm = task->mm;
	struct task_struct___old *old = (void *)task;
	__u32 len;

	to->kind = RECORD_PROCESS;
	to->flags = 0;
	to->pid = pid_number(task->thread_pid, reader_level);
	if (!to->pid)
		return; /* It was reaped while we looked. */
	to->ppid = 0;
	if (reader_level == 0)
		to->ppid = task->real_parent->tgid;
	else
		to->ppid = pid_number(task->real_parent->signal->pids[PIDTYPE_TGID],
				      reader_level);
	to->task_flags = task->flags;
	if (EXISTS(task->__state))
		to->state = task->__state;
	else if (EXISTS(old->state))
		to->state = old->state;
	to->exit_state = task->exit_state;
	to->prio = task->prio;
	to->static_prio = task->static_prio;
	to->rtprio = task->rt_priority;
	to->policy = task->policy;
	if (EXISTS(task->thread_info.cpu))
		to->cpu = task->thread_info.cpu;
	else if (EXISTS(old->cpu))
		to->cpu = old->cpu;
	to->exit_signal = task->exit_signal;
	to->start_ns = task->start_boottime;
	to->exec_id = task->self_exec_id;
	sum_task(&to->sums, task);
	read_signal(to, task->signal);
	read_cred(to, task->real_cred);
	probe_read_kernel(&to->comm, sizeof(to->comm), &task->comm);
	__builtin_memset(&to->total_vm, 0,
			 __builtin_offsetof(struct process_record, comm) -
				 __builtin_offsetof(struct process_record, total_vm));
	/* A kernel thread may work in the memory of a process for a while (vhost before Linux 6.4). */
	if (mm && !(to->task_flags & PF_KTHREAD))
		read_memory(to, mm);
	if (want_more) {
		to->flags |= HAS_MORE;
		read_more(&record.more, task);
		len = read_tail(to, record.tail_of_more, task, lines);
		if (len > LINE_BYTES_MAX)
			return;
		to->len = sizeof(*to) + sizeof(record.more) + len;
		seq_write(context->meta->seq, &record, sizeof(*to) + sizeof(record.more) + len);
	} else {
		len = read_tail(to, record.tail, task, lines);
		if (len > LINE_BYTES_MAX)
			return;
		to->len = sizeof(*to) + len;
		seq_write(context->meta->seq, &record, sizeof(*to) + len);
	}
}

INLINE void write_thread(struct bpf_iter__task *context, struct task_struct *task)
{
	struct thread_record thread;

	thread.len = sizeof(thread) - sizeof(thread.more);
	thread.kind = RECORD_THREAD;
	thread.flags = 0;
	thread.tid = task->pid;
	thread.pid = task->tgid;
	if (reader_level)
		thread.pid = pid_number(task->signal->pids[PIDTYPE_TGID], reader_level);
	sum_task(&thread.sums, task);
	if (want_more) {
		thread.len = sizeof(thread);
		thread.flags = HAS_MORE;
		sum_more(&thread.more, task);
		seq_write(context->meta->seq, &thread, sizeof(thread));
	} else {
		seq_write(context->meta->seq, &thread, sizeof(thread) - sizeof(thread.more));
	}
}

/* What holds for the whole scan. */
INLINE void begin_scan(struct task_struct *task)
{
	__u32 key = 0, *wanted = lookup(&control, &key);

	want_more = wanted ? *wanted : 1;
	learn_reader();
	if (EXISTS(task->mm->rss_stat[0].counters))
		learn_offsets();
}

INLINE int write_task(struct bpf_iter__task *context, int lines)
{
	struct task_struct *task = context->task;

	if (!task)
		return 0;
	if (context->meta->seq_num == 0)
		begin_scan(task);
	if (task->pid == task->tgid)
		write_process(context, task, lines);
	else
		write_thread(context, task);
	return 0;
}

SEC("iter/task")
int numbers(struct bpf_iter__task *context)
{
	return write_task(context, 0);
}

SEC("iter.s/task")
int numbers_and_lines(struct bpf_iter__task *context)
{
	return write_task(context, 1);
}
