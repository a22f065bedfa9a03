#pragma once
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* userfaultfd (Documentation/admin-guide/mm/userfaultfd.rst). A negative result is -errno. */

/* The ioctl number that makes a userfaultfd from /dev/userfaultfd. */
uint64_t ftvm_uffd_new_request(void);
/* Handshake; `features` must all be there, otherwise -EINVAL (and the descriptor is used up). */
int ftvm_uffd_api(int uffd, uint64_t features);
/* The features that the kernel has: made, asked and closed again. */
int ftvm_uffd_available_features(uint64_t *features);
int ftvm_uffd_register_wp(int uffd, uint64_t start, uint64_t length);
int ftvm_uffd_unregister(int uffd, uint64_t start, uint64_t length);
/* Write-protects, or allows writing and wakes who waits. */
int ftvm_uffd_protect(int uffd, uint64_t start, uint64_t length);
int ftvm_uffd_unprotect(int uffd, uint64_t start, uint64_t length);
int ftvm_uffd_wake(int uffd, uint64_t start, uint64_t length);
/* Wakes everybody who waits for this userfaultfd, also in ranges that are not registered any more. */
int ftvm_uffd_wake_all(int uffd);

struct ftvm_fault {
    uint64_t address;
    uint32_t thread;
    uint32_t kind; /* 1: write-protect fault; 0: something else */
};
/* Reads what is there, at most `limit` (<= 64) faults; 0 when there is none. */
int ftvm_uffd_read(int uffd, struct ftvm_fault *faults, int limit);

/* linux-libc-dev of Debian 12 is older than the kernels that have this one (6.4). */
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif

#define FTVM_UFFD_FEATURES                                                                                   \
    (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED |        \
     UFFD_FEATURE_THREAD_ID)
static inline uint64_t ftvm_uffd_features(void) { return FTVM_UFFD_FEATURES; }

/* eventfd for waking a thread that polls; poll on both: bit 0 the first is readable, bit 1 the second. */
int ftvm_eventfd(void);
int ftvm_poll2(int first, int second, int timeout_ms);
/* Waits until `descriptor` is readable or the time has passed: 1 or 0, or -errno. */
int ftvm_poll_ns(int descriptor, uint64_t timeout_ns);
/* The same for several (ppoll(2)): how many have something, 0 after the time or a signal, or -errno. */
int ftvm_poll_set(struct pollfd *set, int count, uint64_t timeout_ns);
