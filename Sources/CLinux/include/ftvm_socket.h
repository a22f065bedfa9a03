#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Unix stream sockets. Every function returns -errno on failure. Descriptors made here are
 * close-on-exec and non-blocking; whoever wants to wait does so with ftvm_socket_wait. */

/* Connects to the listening socket at `path`; returns the descriptor. -EAGAIN: its backlog is full. */
int ftvm_socket_connect_unix(const char *path);

/* Listens at `path`, which must not exist; returns the descriptor. */
int ftvm_socket_listen_unix(const char *path, int backlog);

/* Accepts one connection; returns its descriptor, -EAGAIN when none waits. */
int ftvm_socket_accept(int descriptor);

/* Sends without blocking and without SIGPIPE; returns the number of bytes taken. `passed` is a
 * descriptor to send along with the first byte (SCM_RIGHTS), or -1. */
long ftvm_socket_send(int descriptor, const void *bytes, size_t length, int passed);

/* Receives without blocking; returns the number of bytes, 0 at the end of the stream. */
long ftvm_socket_receive(int descriptor, void *bytes, size_t length);

/* The same, and takes a descriptor that came along: *passed is it (close-on-exec) or -1. */
long ftvm_socket_receive_descriptor(int descriptor, void *bytes, size_t length, int *passed);

/* Waits until the descriptor can be read (or written), or has an error or a hang-up: returns 1;
 * 0 after `timeout_us` microseconds; -EINTR when a signal came. */
int ftvm_socket_wait(int descriptor, bool for_writing, int64_t timeout_us);

/* Ends both directions: a thread that waits on the descriptor wakes up. The descriptor stays open. */
int ftvm_socket_shutdown(int descriptor);

int ftvm_socket_close(int descriptor);
