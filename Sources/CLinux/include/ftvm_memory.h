#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* One thin function per system call; all return a negative errno on failure. */

enum ftvm_memory_filesystem {
    FTVM_MEMORY_FILESYSTEM_OTHER = 0,
    FTVM_MEMORY_FILESYSTEM_TMPFS = 1,
    FTVM_MEMORY_FILESYSTEM_HUGETLBFS = 2,
};

struct ftvm_memory_filesystem_info {
    int kind;             /* enum ftvm_memory_filesystem */
    uint64_t magic;       /* the kernel's number, for messages */
    uint64_t block_bytes; /* hugetlbfs: the huge page size */
    uint64_t blocks;      /* 0: the mount has no limit of its own */
    uint64_t free_blocks;
};

/* statfs(2) of the file system that `path` is on. */
int ftvm_memory_filesystem(const char *path, struct ftvm_memory_filesystem_info *info);

/* open(2) with O_CLOEXEC | O_NOFOLLOW; `directory` may be AT_FDCWD. */
int ftvm_memory_open(int directory, const char *path, int flags, unsigned mode);

/* fallocate(2), mode 0, begun again after a signal. */
int ftvm_memory_reserve(int descriptor, uint64_t bytes);

/* mmap(2), MAP_SHARED at offset 0; `reserve` false adds MAP_NORESERVE (no huge pages are set aside). */
int ftvm_memory_map(int descriptor, size_t bytes, bool writable, bool reserve, void **address);
int ftvm_memory_unmap(void *address, size_t bytes);

/* Two files behind each other in one stretch of addresses that begins at a multiple of `alignment`, a power of two;
 * both MAP_SHARED. */
int ftvm_memory_map_joined(int first, size_t first_bytes, int second, size_t second_bytes, size_t alignment,
                           bool writable, void **address);
/* Gives an open file one more name (linkat(2)); -EXDEV when the name is on another mount, -ENOENT when the
 * file has no name any more. */
int ftvm_memory_link(int descriptor, const char *path);
/* Gives the memory behind the file back; its size stays (FALLOC_FL_PUNCH_HOLE). */
int ftvm_memory_discard(int descriptor, uint64_t bytes);
/* As ftvm_memory_filesystem, of an open file. */
int ftvm_memory_file_info(int descriptor, struct ftvm_memory_filesystem_info *info);

/* madvise(2), MADV_POPULATE_WRITE or MADV_POPULATE_READ: fills the page tables. */
int ftvm_memory_populate(void *address, size_t bytes, bool writable);

/* memfd_create(2) with MFD_CLOEXEC | MFD_ALLOW_SEALING; huge_page_bytes 0: base pages, otherwise a
 * power of two that the kernel has huge pages of. */
int ftvm_memory_memfd(const char *name, uint64_t huge_page_bytes);
/* Forbids that the file is ever made smaller or larger (fcntl F_ADD_SEALS). */
int ftvm_memory_seal_size(int descriptor);

/* One message on a connected SOCK_SEQPACKET socket; `passed` -1: no descriptor with it. MSG_NOSIGNAL,
 * and MSG_DONTWAIT when `wait` is false. Returns the bytes sent or received; 0 received is the end.
 * A received descriptor (at most one; *passed is -1 without) is close-on-exec and the caller's. A
 * message that was cut off is -EMSGSIZE. */
ssize_t ftvm_memory_send(int socket, const void *bytes, size_t count, int passed, bool wait);
ssize_t ftvm_memory_receive(int socket, void *bytes, size_t capacity, int *passed, bool wait);

/* A SOCK_SEQPACKET Unix socket that listens on `path` (which must not exist), mode 0600. */
int ftvm_memory_listen(const char *path, int backlog);
int ftvm_memory_connect(const char *path);
/* eventfd(2), non-blocking, close-on-exec. */
int ftvm_memory_eventfd(void);
/* Limits of how long a send or a receive that waits may take (then -EAGAIN). */
int ftvm_memory_set_timeouts(int socket, int milliseconds);
/* accept4(2), non-blocking, close-on-exec. */
int ftvm_memory_accept(int socket);
/* User id of the process at the other end (SO_PEERCRED). */
int ftvm_memory_peer_user(int socket, uid_t *user);

/* Reads one byte, even if nobody wants it: the page is in this process's page tables afterwards. */
static inline void ftvm_memory_touch(const void *address) { (void)*(const volatile char *)address; }
