#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The network gate's sockets and taps. A negative result is -errno. */

/* A Unix socket pair, close-on-exec; `type` is SOCK_SEQPACKET or SOCK_STREAM. Both ends take
 * `buffer_bytes` of unread data (SO_SNDBUFFORCE, or as much as the process may ask for). */
int ftvm_gate_socketpair(int type, int buffer_bytes, int ends[2]);
int ftvm_gate_seqpacket(void);
int ftvm_gate_stream(void);

/* Gives a Unix socket an abstract name (unix(7)), also one end of a pair; and reads it: its length, 0 for a
 * socket that has none or is no Unix socket, or -errno. */
int ftvm_gate_set_name(int socket, const char *name);
int ftvm_gate_get_name(int socket, char *name, size_t capacity);

enum { FTVM_GATE_BATCH = 64 };
/* recvmmsg(2) without waiting: takes up to FTVM_GATE_BATCH messages, message i to slots + i * slot_bytes. lengths[i] is
 * its length, or UINT32_MAX when it did not fit. Gives their number, 0 when none waits, -EPIPE when the other end is
 * closed and nothing is left. */
int ftvm_gate_receive(int socket, void *slots, size_t slot_bytes, uint32_t *lengths);

/* Sends all of two parts in one call, without blocking and without SIGPIPE; gives the bytes taken. */
ssize_t ftvm_gate_send(int socket, const void *first, size_t first_bytes, const void *second, size_t second_bytes);
/* writev(2) of two parts: one frame for a tap device. */
ssize_t ftvm_gate_write(int tap, const void *first, size_t first_bytes, const void *second, size_t second_bytes);

/* Reads one frame that waits in a tap, with its header; 0 when none does. */
ssize_t ftvm_gate_read(int tap, void *bytes, size_t capacity);

/* Bytes that the other end of a Unix socket has not read yet (SIOCOUTQ). */
int ftvm_gate_unread(int socket);

/* A tap's or macvtap's interface (TUNGETIFF); `name` has room for 16 bytes. */
int ftvm_tap_interface(int tap, char *name);
/* Bytes of the virtio-net header before each frame of a tap (TUNGETVNETHDRSZ); 0: none. */
int ftvm_tap_header_bytes(int tap);

/* poll(2) for reading; `timeout_ms` -1: for ever. */
int ftvm_gate_poll(const int *descriptors, int count, int timeout_ms);
