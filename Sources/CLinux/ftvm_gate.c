#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

int ftvm_gate_seqpacket(void) { return SOCK_SEQPACKET; }
int ftvm_gate_stream(void) { return SOCK_STREAM; }

int ftvm_gate_socketpair(int type, int buffer_bytes, int ends[2]) {
    if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends) < 0) return -errno;
    for (int i = 0; i < 2; i++) {
        int bytes = buffer_bytes;
        if (setsockopt(ends[i], SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes) < 0)
            setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
        if (setsockopt(ends[i], SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
            setsockopt(ends[i], SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    }
    return 0;
}

int ftvm_gate_set_name(int socket, const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    if (length + 1 > sizeof address.sun_path) return -ENAMETOOLONG;
    memcpy(address.sun_path + 1, name, length);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    return bind(socket, (struct sockaddr *)&address, size) < 0 ? -errno : 0;
}

int ftvm_gate_get_name(int socket, char *name, size_t capacity) {
    struct sockaddr_un address = {0};
    socklen_t size = sizeof address;
    if (getsockname(socket, (struct sockaddr *)&address, &size) < 0) return -errno;
    size_t before = offsetof(struct sockaddr_un, sun_path) + 1;
    if (address.sun_family != AF_UNIX || size <= before || address.sun_path[0] != 0) return 0;
    size_t length = size - before;
    if (length + 1 > capacity) return -ENAMETOOLONG;
    memcpy(name, address.sun_path + 1, length);
    name[length] = 0;
    return (int)length;
}

int ftvm_gate_receive(int socket, void *slots, size_t slot_bytes, uint32_t *lengths) {
    struct mmsghdr messages[FTVM_GATE_BATCH];
    struct iovec parts[FTVM_GATE_BATCH];
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < FTVM_GATE_BATCH; i++) {
        parts[i].iov_base = (char *)slots + (size_t)i * slot_bytes;
        parts[i].iov_len = slot_bytes;
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    int count;
    do {
        count = recvmmsg(socket, messages, FTVM_GATE_BATCH, MSG_DONTWAIT, NULL);
    } while (count < 0 && errno == EINTR);
    if (count < 0) return errno == EAGAIN ? 0 : -errno;
    for (int i = 0; i < count; i++) {
        /* No message is empty: that is the end. */
        if (messages[i].msg_len == 0) return i > 0 ? i : -EPIPE;
        lengths[i] = messages[i].msg_hdr.msg_flags & MSG_TRUNC ? UINT32_MAX : messages[i].msg_len;
    }
    return count;
}

static int two_parts(struct iovec parts[2], const void *first, size_t first_bytes, const void *second,
                     size_t second_bytes) {
    int count = 0;
    if (first_bytes > 0) parts[count++] = (struct iovec){(void *)first, first_bytes};
    if (second_bytes > 0) parts[count++] = (struct iovec){(void *)second, second_bytes};
    return count;
}

ssize_t ftvm_gate_send(int socket, const void *first, size_t first_bytes, const void *second,
                       size_t second_bytes) {
    struct iovec parts[2];
    struct msghdr message = {.msg_iov = parts};
    message.msg_iovlen = (size_t)two_parts(parts, first, first_bytes, second, second_bytes);
    ssize_t count;
    do {
        count = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (count < 0 && errno == EINTR);
    return count < 0 ? -errno : count;
}

ssize_t ftvm_gate_write(int tap, const void *first, size_t first_bytes, const void *second,
                        size_t second_bytes) {
    struct iovec parts[2];
    int parts_count = two_parts(parts, first, first_bytes, second, second_bytes);
    ssize_t count;
    do {
        count = writev(tap, parts, parts_count);
    } while (count < 0 && errno == EINTR);
    return count < 0 ? -errno : count;
}

ssize_t ftvm_gate_read(int tap, void *bytes, size_t capacity) {
    struct pollfd entry = {.fd = tap, .events = POLLIN};
    if (poll(&entry, 1, 0) <= 0 || !(entry.revents & POLLIN)) return 0;
    ssize_t count;
    do {
        count = read(tap, bytes, capacity);
    } while (count < 0 && errno == EINTR);
    if (count < 0) return errno == EAGAIN ? 0 : -errno;
    return count;
}

int ftvm_gate_unread(int socket) {
    int bytes = 0;
    return ioctl(socket, SIOCOUTQ, &bytes) < 0 ? -errno : bytes;
}

int ftvm_tap_interface(int tap, char *name) {
    struct ifreq request = {0};
    if (ioctl(tap, TUNGETIFF, &request) < 0) return -errno;
    memcpy(name, request.ifr_name, IFNAMSIZ);
    name[IFNAMSIZ - 1] = 0;
    return 0;
}

int ftvm_tap_header_bytes(int tap) {
    struct ifreq request = {0};
    int bytes = 0;
    if (ioctl(tap, TUNGETIFF, &request) < 0) return -errno;
    if (!(request.ifr_flags & IFF_VNET_HDR)) return 0;
    return ioctl(tap, TUNGETVNETHDRSZ, &bytes) < 0 ? -errno : bytes;
}

int ftvm_gate_poll(const int *descriptors, int count, int timeout_ms) {
    struct pollfd entries[64];
    if (count > 64) return -E2BIG;
    for (int i = 0; i < count; i++) entries[i] = (struct pollfd){.fd = descriptors[i], .events = POLLIN};
    int result = poll(entries, (nfds_t)count, timeout_ms);
    return result < 0 ? -errno : result;
}
