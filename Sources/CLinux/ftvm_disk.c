#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ftvm_disk.h"

int64_t ftvm_disk_bytes(int descriptor, bool *device) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) return -errno;
    *device = S_ISBLK(status.st_mode);
    if (S_ISREG(status.st_mode)) return status.st_size;
    if (!*device) return -ENOTBLK;
    uint64_t bytes = 0;
    if (ioctl(descriptor, BLKGETSIZE64, &bytes) != 0) return -errno;
    return (int64_t)bytes;
}

static int allocate(int descriptor, int mode, uint64_t offset, uint64_t bytes) {
    while (fallocate(descriptor, mode, (off_t)offset, (off_t)bytes) != 0)
        if (errno != EINTR) return -errno;
    return 0;
}

int ftvm_disk_punch(int descriptor, uint64_t offset, uint64_t bytes) {
    return allocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
}

int ftvm_disk_zero(int descriptor, uint64_t offset, uint64_t bytes) {
    return allocate(descriptor, FALLOC_FL_ZERO_RANGE, offset, bytes);
}

ssize_t ftvm_disk_write(int descriptor, const struct iovec *pieces, int count, uint64_t offset) {
    ssize_t written;
    do written = pwritev(descriptor, pieces, count, (off_t)offset);
    while (written < 0 && errno == EINTR);
    return written < 0 ? -errno : written;
}

ssize_t ftvm_disk_read(int descriptor, void *bytes, size_t count, uint64_t offset) {
    ssize_t got;
    do got = pread(descriptor, bytes, count, (off_t)offset);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

int ftvm_disk_synchronize(int descriptor) {
    while (fdatasync(descriptor) != 0)
        if (errno != EINTR) return -errno;
    return 0;
}

int ftvm_disk_begin_writeback(int descriptor) {
    return sync_file_range(descriptor, 0, 0, SYNC_FILE_RANGE_WRITE) == 0 ? 0 : -errno;
}

int ftvm_disk_forget_cache(int descriptor) {
    struct stat status;
    if (fstat(descriptor, &status) != 0) return -errno;
    if (S_ISBLK(status.st_mode) && ioctl(descriptor, BLKFLSBUF, 0) != 0 && errno != EACCES) return -errno;
    return -posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
}

int ftvm_disk_extent(int descriptor, uint64_t offset, bool *hole, uint64_t *end) {
    off_t data = lseek(descriptor, (off_t)offset, SEEK_DATA);
    if (data < 0) {
        if (errno != ENXIO) return -errno;
        /* Nothing but a hole up to the end of the file, or past it. */
        *hole = true;
        *end = UINT64_MAX;
        return 0;
    }
    *hole = (uint64_t)data > offset;
    if (*hole) {
        *end = (uint64_t)data;
        return 0;
    }
    off_t next = lseek(descriptor, (off_t)offset, SEEK_HOLE);
    if (next < 0) return -errno;
    *end = (uint64_t)next;
    return 0;
}

uint64_t ftvm_disk_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
