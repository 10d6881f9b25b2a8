// SPDX-License-Identifier: (GPL-2.0-only OR MIT)
/*
 * Open files and sockets of all processes, written by the kernel itself in one pass over all tables of
 * files. `build` beside this file makes the object that is committed.
 *
 * Nothing here decides anything: which tables are the same, names of protocols and states and what is
 * shown of an address is made of these numbers in src/sockets/records.rs, where it can be tested.
 *
 * The kernel shows an object again whose records found no room in the reader's page; so the state that is
 * kept between two of them is only changed when everything was written.
 */
#include "kernel.h"
#include "files.h"

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define EXISTS(field) __builtin_preserve_field_info(field, 2 /* BPF_FIELD_EXISTS */)

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_SEQPACKET 5
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_UDPLITE 136
#define TCP_LISTEN 10

/* The kernel's types that only this program reads; see kernel.h. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct files_struct;

struct task_struct___files {
	struct files_struct *files;
};

struct inode {
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
};

struct in6_addr {
	__u8 bytes[16];
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

typedef struct {
	atomic_t refs;
} refcount_t;

struct sk_buff_head {
	__u32 qlen;
};

struct socket;

struct sock {
	struct sock_common __sk_common;
	struct sk_buff_head sk_receive_queue;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	refcount_t sk_wmem_alloc;
	__u16 sk_type;
	__u16 sk_protocol;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	kuid_t sk_uid;
	struct socket *sk_socket;
};

struct socket {
	struct sock *sk;
};

/* A socket and its inode are allocated together. */
struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct tcp_sock {
	__u32 rcv_nxt;
	__u32 copied_seq;
	__u32 write_seq;
	__u32 snd_una;
};

struct udp_sock {
	int forward_deficit;
};

struct sockaddr_un {
	unsigned short sun_family;
	char sun_path[PATH_BYTES_MAX];
};

struct unix_address {
	int len;
	struct sockaddr_un name[1];
};

struct unix_sock {
	struct unix_address *addr;
	struct sock *peer;
	int inq_len; /* Since Linux 6.17. */
};

struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};

#pragma clang attribute pop

/* bpf-helpers(7); their numbers are the kernel's user interface. */
static __u64 (*const get_current_task)(void) = (void *)35;
static long (*const probe_read_kernel)(void *to, __u32 len, const void *from) = (void *)113;
static long (*const seq_write)(struct seq_file *seq, const void *data, __u32 len) = (void *)127;
static struct socket *(*const sock_from_file)(struct file *file) = (void *)162;

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* One scan at a time: the loader's lock sees to it. That makes these plain variables. */
struct socket_record record;

/* PID namespace of the reader, as its depth. */
__u32 reader_level;

/* Whose files come; `is_known` once there was one. */
struct {
	__u64 table;
	__s32 tid;
	__u32 is_known;
} last;

/* Reads a field by way of a helper, so that any address will do: what is not there reads as 0. */
#define READ(to, field) probe_read_kernel(&(to), sizeof(to), &(field))

/* The number of a process in the reader's PID namespace; 0 if it is not seen there. */
INLINE __s32 pid_number(struct pid *pid)
{
	__u64 address = (__u64)pid;
	__u32 level = 0;
	__s32 number = 0;

	if (!address)
		return 0;
	READ(level, pid->level);
	if (level < reader_level)
		return 0;
	/* An upid is an int and a pointer. */
	address = (__u64)&pid->numbers[0] + reader_level * 16ULL;
	READ(number, ((struct upid *)address)->nr);
	return number;
}

INLINE void begin_scan(void)
{
	struct task_struct *reader = (struct task_struct *)get_current_task();
	struct pid *pid = 0;

	last.is_known = 0;
	reader_level = 0;
	READ(pid, reader->thread_pid);
	if (pid)
		READ(reader_level, pid->level);
}

INLINE void read_internet(struct socket_record *to, struct sock *sk)
{
	struct sock_common *common = &sk->__sk_common;
	__u16 port = 0;

	to->flags |= HAS_ADDRESSES;
	READ(to->local_port, common->skc_num);
	READ(port, common->skc_dport);
	to->remote_port = port >> 8 | port << 8;
	if (to->family == AF_INET) {
		probe_read_kernel(to->local, 4, &common->skc_rcv_saddr);
		probe_read_kernel(to->remote, 4, &common->skc_daddr);
	} else {
		probe_read_kernel(to->local, 16, &common->skc_v6_rcv_saddr);
		probe_read_kernel(to->remote, 16, &common->skc_v6_daddr);
	}
}

INLINE void read_memory(struct socket_record *to, struct sock *sk)
{
	__s32 received = 0, sent = 0, deficit = 0;

	READ(received, sk->sk_backlog.rmem_alloc.counter);
	READ(sent, sk->sk_wmem_alloc.refs.counter);
	if (to->protocol == IPPROTO_UDP || to->protocol == IPPROTO_UDPLITE)
		READ(deficit, ((struct udp_sock *)sk)->forward_deficit);
	received -= deficit;
	to->recv_queue = received > 0 ? received : 0;
	to->send_queue = sent > 1 ? sent - 1 : 0; /* The socket itself counts as one. */
	to->flags |= HAS_RECV_QUEUE | HAS_SEND_QUEUE;
}

INLINE void read_tcp_queues(struct socket_record *to, struct sock *sk)
{
	struct tcp_sock *tcp = (struct tcp_sock *)sk;
	__u32 next = 0, copied = 0, written = 0, acknowledged = 0;
	__s32 received, sent;

	READ(next, tcp->rcv_nxt);
	READ(copied, tcp->copied_seq);
	READ(written, tcp->write_seq);
	READ(acknowledged, tcp->snd_una);
	received = next - copied;
	sent = written - acknowledged;
	to->recv_queue = received > 0 ? received : 0;
	to->send_queue = sent > 0 ? sent : 0;
	to->flags |= HAS_RECV_QUEUE | HAS_SEND_QUEUE;
}

/* Who waits to be accepted, and how many may. */
INLINE void read_backlog(struct socket_record *to, struct sock *sk)
{
	__u32 waiting = 0, most = 0;

	READ(waiting, sk->sk_ack_backlog);
	READ(most, sk->sk_max_ack_backlog);
	to->recv_queue = waiting;
	to->send_queue = most;
	to->flags |= HAS_RECV_QUEUE | HAS_SEND_QUEUE;
}

/* Returns the length of the name. */
INLINE __u32 read_unix(struct socket_record *to, struct sock *sk)
{
	struct unix_sock *local = (struct unix_sock *)sk;
	struct unix_address *address = 0;
	struct sock *peer = 0;
	__u32 waiting = 0, most = 0;
	__s32 len = 0, sent = 0;

	READ(peer, local->peer);
	if (peer) {
		struct socket *socket = 0;
		unsigned long inode = 0;

		READ(socket, peer->sk_socket);
		if (socket)
			READ(inode, ((struct socket_alloc *)socket)->vfs_inode.i_ino);
		to->peer_inode = inode;
	}
	if (to->state == TCP_LISTEN) {
		READ(waiting, sk->sk_receive_queue.qlen);
		READ(most, sk->sk_max_ack_backlog);
		to->recv_queue = waiting;
		to->send_queue = most;
		to->flags |= HAS_RECV_QUEUE | HAS_SEND_QUEUE;
	} else {
		READ(sent, sk->sk_wmem_alloc.refs.counter);
		to->send_queue = sent > 1 ? sent - 1 : 0;
		to->flags |= HAS_SEND_QUEUE;
		if ((to->type == SOCK_STREAM || to->type == SOCK_SEQPACKET) &&
		    EXISTS(local->inq_len)) {
			__s32 received = 0;

			READ(received, local->inq_len);
			to->recv_queue = received > 0 ? received : 0;
			to->flags |= HAS_RECV_QUEUE;
		}
	}
	READ(address, local->addr);
	if (!address)
		return 0;
	READ(len, address->len);
	len -= sizeof(unsigned short); /* The family stands in front. */
	if (len <= 0 || len > PATH_BYTES_MAX)
		return 0;
	if (probe_read_kernel(to->path, len & 127, &address->name[0].sun_path))
		return 0;
	return len & 127;
}

/* Returns how many bytes of the record there are, 0 if it is not to be written. */
INLINE __u32 read_socket(struct socket_record *to, struct sock *sk, struct file *file, __u32 fd)
{
	const __u32 fixed = __builtin_offsetof(struct socket_record, path);
	struct net *net = 0;
	__u32 path_len = 0;
	__u8 state = 0;

	__builtin_memset(to, 0, fixed);
	to->file.kind = RECORD_SOCKET;
	to->file.fd = fd;
	to->inode = file->f_inode->i_ino;
	READ(to->family, sk->__sk_common.skc_family);
	READ(state, sk->__sk_common.skc_state);
	READ(net, sk->__sk_common.skc_net.net);
	if (net)
		READ(to->netns, net->ns.inum);
	READ(to->uid, sk->sk_uid.val);
	READ(to->type, sk->sk_type);
	READ(to->protocol, sk->sk_protocol);
	to->state = state;
	if (to->family == AF_UNIX) {
		path_len = read_unix(to, sk);
	} else if (to->family == AF_INET || to->family == AF_INET6) {
		read_internet(to, sk);
		if (to->protocol != IPPROTO_TCP)
			read_memory(to, sk);
		else if (state == TCP_LISTEN)
			read_backlog(to, sk);
		else
			read_tcp_queues(to, sk);
	} else {
		read_memory(to, sk);
	}
	if (path_len > PATH_BYTES_MAX)
		return 0;
	to->path_len = path_len;
	to->file.len = fixed + path_len;
	return fixed + path_len;
}

/* Says whose files come. Returns whether that was written. */
INLINE int write_holder(struct seq_file *seq, struct task_struct *task, __u64 table)
{
	struct holder_record holder;
	struct task_struct *leader = task->group_leader;

	__builtin_memset(&holder, 0, sizeof(holder));
	holder.len = sizeof(holder);
	holder.kind = RECORD_HOLDER;
	holder.pid = pid_number(task->signal->pids[PIDTYPE_TGID]);
	holder.tid = pid_number(task->thread_pid);
	holder.table = table;
	holder.start_ns = leader->start_boottime;
	probe_read_kernel(holder.comm, sizeof(holder.comm), &leader->comm);
	return seq_write(seq, &holder, sizeof(holder)) == 0;
}

SEC("iter/task_file")
int files(struct bpf_iter__task_file *context)
{
	struct seq_file *seq = context->meta->seq;
	struct task_struct *task = context->task;
	struct file *file = context->file;
	struct socket *socket;
	struct sock *sk = 0;
	__u64 table;

	if (!task || !file)
		return 0;
	if (context->meta->seq_num == 0)
		begin_scan();
	table = (__u64)((struct task_struct___files *)task)->files;
	if (!last.is_known || last.tid != task->pid || last.table != table) {
		if (!write_holder(seq, task, table))
			return 0;
	}
	socket = sock_from_file(file);
	if (socket)
		sk = socket->sk;
	if (sk) {
		__u32 len = read_socket(&record, sk, file, context->fd);

		if (len == 0 || len > sizeof(record) || seq_write(seq, &record, len))
			return 0;
	} else {
		struct file_record plain = {
			.len = sizeof(plain), .kind = RECORD_FILE, .fd = context->fd,
		};

		if (seq_write(seq, &plain, sizeof(plain)))
			return 0;
	}
	last.tid = task->pid;
	last.table = table;
	last.is_known = 1;
	return 0;
}
