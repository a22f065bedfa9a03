#define _GNU_SOURCE
#include "CLinux.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* linux-libc-dev of Debian 12 is older than the kernels that have these. */
#ifndef USERFAULTFD_IOC
#define USERFAULTFD_IOC 0xAA
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(USERFAULTFD_IOC, 0x00)
#endif

uint64_t ftvm_uffd_new_request(void) { return USERFAULTFD_IOC_NEW; }

int ftvm_uffd_api(int uffd, uint64_t features) {
    struct uffdio_api api = {.api = UFFD_API, .features = features};
    return ioctl(uffd, UFFDIO_API, &api) < 0 ? -errno : 0;
}

int ftvm_uffd_available_features(uint64_t *features) {
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) return -errno;
    int uffd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    int error = errno;
    close(device);
    if (uffd < 0) return -error;
    struct uffdio_api api = {.api = UFFD_API, .features = 0};
    int result = ioctl(uffd, UFFDIO_API, &api) < 0 ? -errno : 0;
    close(uffd);
    *features = api.features;
    return result;
}

int ftvm_uffd_register_wp(int uffd, uint64_t start, uint64_t length) {
    struct uffdio_register reg = {.range = {start, length}, .mode = UFFDIO_REGISTER_MODE_WP};
    return ioctl(uffd, UFFDIO_REGISTER, &reg) < 0 ? -errno : 0;
}

int ftvm_uffd_unregister(int uffd, uint64_t start, uint64_t length) {
    struct uffdio_range range = {start, length};
    return ioctl(uffd, UFFDIO_UNREGISTER, &range) < 0 ? -errno : 0;
}

static int write_protect(int uffd, uint64_t start, uint64_t length, uint64_t mode) {
    struct uffdio_writeprotect wp = {.range = {start, length}, .mode = mode};
    /* EAGAIN: the address space is being changed by a fork or a remap; the ioctl has done nothing yet. */
    while (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) < 0)
        if (errno != EAGAIN && errno != EINTR) return -errno;
    return 0;
}
int ftvm_uffd_protect(int uffd, uint64_t start, uint64_t length) {
    return write_protect(uffd, start, length, UFFDIO_WRITEPROTECT_MODE_WP);
}
int ftvm_uffd_unprotect(int uffd, uint64_t start, uint64_t length) {
    return write_protect(uffd, start, length, 0);
}

int ftvm_uffd_wake(int uffd, uint64_t start, uint64_t length) {
    struct uffdio_range range = {start, length};
    return ioctl(uffd, UFFDIO_WAKE, &range) < 0 ? -errno : 0;
}

int ftvm_uffd_wake_all(int uffd) {
    /* A range is needed: all of a process's address space, but for what no process may map. */
    return ftvm_uffd_wake(uffd, 1UL << 20, (1UL << 47) - (2UL << 20));
}

int ftvm_uffd_read(int uffd, struct ftvm_fault *faults, int limit) {
    struct uffd_msg messages[64];
    if (limit > 64) limit = 64;
    ssize_t length = read(uffd, messages, sizeof messages[0] * (size_t)limit);
    if (length < 0) return errno == EAGAIN || errno == EINTR ? 0 : -errno;
    int count = (int)(length / (ssize_t)sizeof messages[0]);
    for (int i = 0; i < count; i++) {
        faults[i].kind = messages[i].event == UFFD_EVENT_PAGEFAULT &&
                         (messages[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP);
        faults[i].address = messages[i].arg.pagefault.address;
        faults[i].thread = messages[i].arg.pagefault.feat.ptid;
    }
    return count;
}

int ftvm_eventfd(void) {
    int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return descriptor < 0 ? -errno : descriptor;
}

int ftvm_poll2(int first, int second, int timeout_ms) {
    struct pollfd set[2] = {{.fd = first, .events = POLLIN}, {.fd = second, .events = POLLIN}};
    int count = poll(set, 2, timeout_ms);
    if (count < 0) return errno == EINTR ? 0 : -errno;
    return (set[0].revents ? 1 : 0) | (set[1].revents ? 2 : 0);
}

int ftvm_poll_set(struct pollfd *set, int count, uint64_t timeout_ns) {
    struct timespec time = {(time_t)(timeout_ns / 1000000000), (long)(timeout_ns % 1000000000)};
    int ready = ppoll(set, (nfds_t)count, &time, NULL);
    if (ready < 0) {
        for (int i = 0; i < count; i++) set[i].revents = 0;
        return errno == EINTR ? 0 : -errno;
    }
    return ready;
}

int ftvm_poll_ns(int descriptor, uint64_t timeout_ns) {
    struct pollfd set = {.fd = descriptor, .events = POLLIN};
    return ftvm_poll_set(&set, 1, timeout_ns);
}
