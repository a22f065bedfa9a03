#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* Disk images: files and block devices. Every function returns -errno on failure. */

/* Size in bytes of a regular file or a block device; *device says which it is. */
int64_t ftvm_disk_bytes(int descriptor, bool *device);

/* Makes the range read as zeroes and gives its storage back (fallocate(2), FALLOC_FL_PUNCH_HOLE; of a
 * block device only if the device itself makes the zeroes). The file's size stays. */
int ftvm_disk_punch(int descriptor, uint64_t offset, uint64_t bytes);

/* Makes the range read as zeroes, keeping its storage (FALLOC_FL_ZERO_RANGE); a file grows if need be. */
int ftvm_disk_zero(int descriptor, uint64_t offset, uint64_t bytes);

/* One pwritev(2) or pread(2), begun again after a signal; may do less than asked. */
ssize_t ftvm_disk_write(int descriptor, const struct iovec *pieces, int count, uint64_t offset);
ssize_t ftvm_disk_read(int descriptor, void *bytes, size_t count, uint64_t offset);

/* fdatasync(2). */
int ftvm_disk_synchronize(int descriptor);

/* Has the storage begin with all that is dirty (sync_file_range(2)): no promise that any of it is stable. */
int ftvm_disk_begin_writeback(int descriptor);

/* Forgets what this kernel has cached of the file or device, as far as it is not dirty. */
int ftvm_disk_forget_cache(int descriptor);

/* Whether `offset` is in a hole, and where that hole, or the data, ends. */
int ftvm_disk_extent(int descriptor, uint64_t offset, bool *hole, uint64_t *end);

/* fallocate(2) for memory files is in ftvm_memory.h. CLOCK_MONOTONIC in nanoseconds. */
uint64_t ftvm_disk_now(void);
