#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int unix_address(const char *path, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address->sun_path) return -ENAMETOOLONG;
    strcpy(address->sun_path, path);
    return 0;
}

/* close(2) must not replace the error that is being reported. */
static int close_with(int descriptor, int error) {
    close(descriptor);
    return -error;
}

int ftvm_socket_connect_unix(const char *path) {
    struct sockaddr_un address;
    int result = unix_address(path, &address);
    if (result < 0) return result;
    int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -errno;
    if (connect(descriptor, (struct sockaddr *)&address, sizeof address) < 0)
        return close_with(descriptor, errno);
    return descriptor;
}

int ftvm_socket_listen_unix(const char *path, int backlog) {
    struct sockaddr_un address;
    int result = unix_address(path, &address);
    if (result < 0) return result;
    int descriptor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (descriptor < 0) return -errno;
    if (bind(descriptor, (struct sockaddr *)&address, sizeof address) < 0)
        return close_with(descriptor, errno);
    if (listen(descriptor, backlog) < 0) return close_with(descriptor, errno);
    return descriptor;
}

int ftvm_socket_accept(int descriptor) {
    int accepted = accept4(descriptor, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    return accepted < 0 ? -errno : accepted;
}

/* Room for one descriptor, aligned as the kernel wants it. */
union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
};

long ftvm_socket_send(int descriptor, const void *bytes, size_t length, int passed) {
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    union control control;
    if (passed >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &passed, sizeof passed);
    }
    ssize_t count = sendmsg(descriptor, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    return count < 0 ? -errno : count;
}

long ftvm_socket_receive(int descriptor, void *bytes, size_t length) {
    ssize_t count = recv(descriptor, bytes, length, MSG_DONTWAIT);
    return count < 0 ? -errno : count;
}

long ftvm_socket_receive_descriptor(int descriptor, void *bytes, size_t length, int *passed) {
    struct iovec part = {.iov_base = bytes, .iov_len = length};
    union control control;
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    *passed = -1;
    ssize_t count = recvmsg(descriptor, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (count < 0) return -errno;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        memcpy(passed, CMSG_DATA(header), sizeof *passed);
    }
    return count;
}

int ftvm_socket_wait(int descriptor, bool for_writing, int64_t timeout_us) {
    if (timeout_us < 0) timeout_us = 0;
    struct pollfd entry = {.fd = descriptor, .events = for_writing ? POLLOUT : POLLIN};
    struct timespec limit = {
        .tv_sec = timeout_us / 1000000,
        .tv_nsec = (timeout_us % 1000000) * 1000,
    };
    int result = ppoll(&entry, 1, &limit, NULL);
    return result < 0 ? -errno : result;
}

int ftvm_socket_shutdown(int descriptor) {
    return shutdown(descriptor, SHUT_RDWR) < 0 ? -errno : 0;
}

int ftvm_socket_close(int descriptor) {
    return close(descriptor) < 0 ? -errno : 0;
}
