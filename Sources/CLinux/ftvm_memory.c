#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

int ftvm_memory_filesystem(const char *path, struct ftvm_memory_filesystem_info *info) {
    struct statfs status;
    while (statfs(path, &status) != 0)
        if (errno != EINTR) return -errno;
    uint64_t magic = (uint64_t)status.f_type & 0xffffffffu;
    info->kind = magic == TMPFS_MAGIC                         ? FTVM_MEMORY_FILESYSTEM_TMPFS
                 : magic == (HUGETLBFS_MAGIC & 0xffffffffu) ? FTVM_MEMORY_FILESYSTEM_HUGETLBFS
                                                              : FTVM_MEMORY_FILESYSTEM_OTHER;
    info->magic = magic;
    info->block_bytes = (uint64_t)status.f_bsize;
    info->blocks = status.f_blocks;
    info->free_blocks = status.f_bavail;
    return 0;
}

int ftvm_memory_open(int directory, const char *path, int flags, unsigned mode) {
    int descriptor;
    do descriptor = openat(directory, path, flags | O_CLOEXEC | O_NOFOLLOW, mode);
    while (descriptor < 0 && errno == EINTR);
    return descriptor < 0 ? -errno : descriptor;
}

int ftvm_memory_reserve(int descriptor, uint64_t bytes) {
    while (fallocate(descriptor, 0, 0, (off_t)bytes) != 0)
        if (errno != EINTR) return -errno;
    return 0;
}

int ftvm_memory_map(int descriptor, size_t bytes, bool writable, bool reserve, void **address) {
    int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    void *mapped = mmap(NULL, bytes, protection, MAP_SHARED | (reserve ? 0 : MAP_NORESERVE), descriptor, 0);
    if (mapped == MAP_FAILED) return -errno;
    *address = mapped;
    return 0;
}

int ftvm_memory_map_joined(int first, size_t first_bytes, int second, size_t second_bytes, size_t alignment,
                           bool writable, void **address) {
    int protection = PROT_READ | (writable ? PROT_WRITE : 0);
    size_t bytes = first_bytes + second_bytes;
    /* Mapped too large, so that huge pages can take its place; the ends are cut off. */
    char *space = mmap(NULL, bytes + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (space == MAP_FAILED) return -errno;
    char *start = (char *)(((uintptr_t)space + alignment - 1) & ~((uintptr_t)alignment - 1));
    char *end = start + bytes;
    if (start > space) munmap(space, (size_t)(start - space));
    munmap(end, (size_t)(space + bytes + alignment - end));
    if (mmap(start, first_bytes, protection, MAP_SHARED | MAP_FIXED, first, 0) == MAP_FAILED ||
        mmap(start + first_bytes, second_bytes, protection, MAP_SHARED | MAP_FIXED, second, 0) == MAP_FAILED) {
        int failure = -errno;
        munmap(start, bytes);
        return failure;
    }
    *address = start;
    return 0;
}

int ftvm_memory_link(int descriptor, const char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    return linkat(AT_FDCWD, link, AT_FDCWD, path, AT_SYMLINK_FOLLOW) != 0 ? -errno : 0;
}

int ftvm_memory_discard(int descriptor, uint64_t bytes) {
    while (fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) != 0)
        if (errno != EINTR) return -errno;
    return 0;
}

int ftvm_memory_file_info(int descriptor, struct ftvm_memory_filesystem_info *info) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    return ftvm_memory_filesystem(link, info);
}

int ftvm_memory_unmap(void *address, size_t bytes) {
    return munmap(address, bytes) != 0 ? -errno : 0;
}

int ftvm_memory_populate(void *address, size_t bytes, bool writable) {
    while (madvise(address, bytes, writable ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) != 0)
        if (errno != EINTR && errno != EAGAIN) return -errno;
    return 0;
}

int ftvm_memory_memfd(const char *name, uint64_t huge_page_bytes) {
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
    if (huge_page_bytes != 0)
        flags |= MFD_HUGETLB | ((unsigned)__builtin_ctzll(huge_page_bytes) << MFD_HUGE_SHIFT);
    int descriptor = memfd_create(name, flags);
    return descriptor < 0 ? -errno : descriptor;
}

int ftvm_memory_seal_size(int descriptor) {
    return fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0 ? -errno : 0;
}

ssize_t ftvm_memory_send(int socket, const void *bytes, size_t count, int passed, bool wait) {
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = count};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control.space;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &passed, sizeof(int));
    }
    ssize_t sent;
    do sent = sendmsg(socket, &message, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT));
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

ssize_t ftvm_memory_receive(int socket, void *bytes, size_t capacity, int *passed, bool wait) {
    struct iovec part = {.iov_base = bytes, .iov_len = capacity};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control.space};
    *passed = -1;
    ssize_t received;
    do received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
    while (received < 0 && errno == EINTR);
    if (received < 0) return -errno;
    /* The space holds one descriptor plus padding, into which the kernel fits a second one. */
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t descriptors = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < descriptors; i++) {
            int descriptor;
            memcpy(&descriptor, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
            if (*passed < 0)
                *passed = descriptor;
            else
                close(descriptor);
        }
    }
    if (message.msg_flags & MSG_TRUNC) {
        if (*passed >= 0) close(*passed);
        *passed = -1;
        return -EMSGSIZE;
    }
    return received;
}

static int unix_address(const char *path, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address->sun_path) return -ENAMETOOLONG;
    strcpy(address->sun_path, path);
    return 0;
}

int ftvm_memory_listen(const char *path, int backlog) {
    struct sockaddr_un address;
    int failure = unix_address(path, &address);
    if (failure != 0) return failure;
    int socket_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (socket_ < 0) return -errno;
    /* On Linux bind makes the file with the socket's own mode: never open to others, not for a moment. */
    if (fchmod(socket_, 0600) != 0 || bind(socket_, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(socket_, backlog) != 0) {
        failure = -errno;
        close(socket_);
        return failure;
    }
    return socket_;
}

int ftvm_memory_connect(const char *path) {
    struct sockaddr_un address;
    int failure = unix_address(path, &address);
    if (failure != 0) return failure;
    int socket_ = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (socket_ < 0) return -errno;
    int result;
    do result = connect(socket_, (struct sockaddr *)&address, sizeof address);
    while (result != 0 && errno == EINTR);
    if (result != 0) {
        failure = -errno;
        close(socket_);
        return failure;
    }
    return socket_;
}

int ftvm_memory_eventfd(void) {
    int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return descriptor < 0 ? -errno : descriptor;
}

int ftvm_memory_set_timeouts(int socket, int milliseconds) {
    struct timeval limit = {.tv_sec = milliseconds / 1000, .tv_usec = milliseconds % 1000 * 1000};
    if (setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0 ||
        setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) != 0)
        return -errno;
    return 0;
}

int ftvm_memory_accept(int socket) {
    int accepted;
    do accepted = accept4(socket, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    while (accepted < 0 && errno == EINTR);
    return accepted < 0 ? -errno : accepted;
}

int ftvm_memory_peer_user(int socket, uid_t *user) {
    struct ucred credentials;
    socklen_t length = sizeof credentials;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return -errno;
    *user = credentials.uid;
    return 0;
}
