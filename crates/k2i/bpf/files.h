/* SPDX-License-Identifier: (GPL-2.0-only OR MIT) */
/*
 * What the iterator over open files writes: a stream of records, each `len` bytes long. A holder comes
 * first, then a record for each file in its table; that of a socket says what the socket is.
 * `src/sockets/records.rs` reads them and must agree with every field. Little endian as the machine is;
 * no padding that is not named.
 */
#ifndef KUMO_FILES_H
#define KUMO_FILES_H

/* A name in the Unix family, `sun_path`. */
#define PATH_BYTES_MAX 108

enum record_kind {
	RECORD_HOLDER = 1,
	RECORD_FILE = 2,
	RECORD_SOCKET = 3,
};

/* A process, or a thread that has a table of files of its own. */
struct holder_record {
	__u16 len;
	__u16 kind;
	__s32 pid;
	__s32 tid;
	__u32 zero;
	__u64 table; /* the same for all that share it */
	__u64 start_ns; /* of the process */
	char comm[16]; /* of the process */
};

struct file_record {
	__u16 len;
	__u16 kind;
	__u32 fd;
};

enum socket_flags {
	HAS_ADDRESSES = 1 << 0,
	HAS_RECV_QUEUE = 1 << 1,
	HAS_SEND_QUEUE = 1 << 2,
};

struct socket_record {
	struct file_record file;
	__u64 inode;
	__u64 peer_inode; /* Unix; 0 without a peer */
	__u64 recv_queue;
	__u64 send_queue;
	__u32 netns;
	__u32 uid;
	__u16 family;
	__u16 type;
	__u16 protocol;
	__u16 state;
	__u16 local_port; /* both in the order of the machine */
	__u16 remote_port;
	__u16 flags; /* enum socket_flags */
	__u16 path_len;
	__u8 local[16]; /* IPv4: the first four bytes */
	__u8 remote[16];
	char path[PATH_BYTES_MAX]; /* `path_len` bytes of it are written */
	__u32 unused; /* makes it a multiple of 8 */
};

#endif
