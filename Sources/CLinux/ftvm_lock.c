#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "ftvm_lock.h"

/* l_pid must be 0 for the F_OFD_ commands. */
static struct flock range(int64_t start, int64_t length, short type) {
    struct flock lock;
    memset(&lock, 0, sizeof lock);
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    lock.l_start = start;
    lock.l_len = length;
    return lock;
}

int ftvm_lock_set(int descriptor, int64_t start, int64_t length, bool exclusive) {
    struct flock lock = range(start, length, exclusive ? F_WRLCK : F_RDLCK);
    if (fcntl(descriptor, F_OFD_SETLK, &lock) == 0) return 0;
    /* POSIX lets a conflict be reported either way. */
    return errno == EACCES ? -EAGAIN : -errno;
}

int ftvm_lock_clear(int descriptor, int64_t start, int64_t length) {
    struct flock lock = range(start, length, F_UNLCK);
    return fcntl(descriptor, F_OFD_SETLK, &lock) == 0 ? 0 : -errno;
}

int ftvm_lock_query(int descriptor, int64_t start, int64_t length) {
    struct flock lock = range(start, length, F_WRLCK);
    if (fcntl(descriptor, F_OFD_GETLK, &lock) != 0) return -errno;
    return lock.l_type == F_UNLCK ? 0 : 1;
}
