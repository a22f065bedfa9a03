/* The block checker: random writes, zeroes, trims, flushes and reads on a raw disk, against a model in this program's memory.
 * After a failover memory and disk are of the same commit, or the next read says what is wrong.
 *
 *   blocks DISK SEED COUNT   COUNT operations; a seed other than 0 begins anew, with whatever is on the disk zeroed; "ok OPERATIONS"
 *   verify DISK              reads all of it; "ok BLOCKS"
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { block_bytes = 4096, most_blocks = 4096, most_in_one = 16 };

/* The stamp that a block was last written with; 0: zeroes. */
static uint64_t model[most_blocks];
/* Trimmed since: may be zeroes instead, from the first time on that it is seen to be. */
static unsigned char is_trimmed[most_blocks];
static uint64_t state, stamp, operations;
static char buffer[most_in_one * block_bytes] __attribute__((aligned(4096)));

/* SplitMix64 (Steele et al. 2014). */
static uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

static uint64_t next(void) { return mix(state += 0x9e3779b97f4a7c15); }

static void fill(char *block, uint64_t with, long number) {
    uint64_t *words = (uint64_t *)block;
    for (int i = 0; i < block_bytes / 8; i++)
        words[i] = with == 0 ? 0 : i == 0 ? with : mix(with + (uint64_t)number * 512 + (uint64_t)i);
}

static int is(const char *block, uint64_t with, long number) {
    static char expected[block_bytes] __attribute__((aligned(8)));
    fill(expected, with, number);
    return memcmp(expected, block, block_bytes) == 0;
}

/* 0: as it must be. */
static int look(int file, long first, long count, char *answer, size_t size) {
    if (pread(file, buffer, (size_t)count * block_bytes, (off_t)first * block_bytes) != count * block_bytes) {
        snprintf(answer, size, "error reading block %ld", first);
        return 1;
    }
    for (long i = 0; i < count; i++) {
        const char *block = buffer + i * block_bytes;
        long number = first + i;
        if (is_trimmed[number] && is(block, 0, number)) model[number] = 0;
        is_trimmed[number] = 0;
        if (is(block, model[number], number)) continue;
        uint64_t found;
        memcpy(&found, block, 8);
        snprintf(answer, size, "error block %ld is %llx, not %llx, after %llu operations", number,
                 (unsigned long long)found, (unsigned long long)model[number], (unsigned long long)operations);
        return 1;
    }
    return 0;
}

static int act(int file, long blocks, char *answer, size_t size) {
    unsigned dice = next() % 20;
    long count = 1 + (long)(next() % (next() % 4 == 0 ? most_in_one : 4));
    /* Half of all that happens, happens in a small place. */
    long first = (long)(next() % (uint64_t)(next() % 2 ? blocks - count : 48));
    uint64_t range[2] = {(uint64_t)first * block_bytes, (uint64_t)count * block_bytes};
    int failed = 0;
    operations++;
    if (dice < 10) {
        stamp++;
        for (long i = 0; i < count; i++) fill(buffer + i * block_bytes, stamp, first + i);
        failed = pwrite(file, buffer, range[1], (off_t)range[0]) != (ssize_t)range[1];
        for (long i = 0; i < count; i++) model[first + i] = stamp, is_trimmed[first + i] = 0;
    } else if (dice < 11) {
        failed = ioctl(file, BLKZEROOUT, range) != 0;
        for (long i = 0; i < count; i++) model[first + i] = 0, is_trimmed[first + i] = 0;
    } else if (dice < 12) {
        failed = ioctl(file, BLKDISCARD, range) != 0;
        for (long i = 0; i < count; i++) is_trimmed[first + i] = 1;
    } else if (dice < 15)
        failed = fsync(file) != 0;
    else
        return look(file, first, count, answer, size);
    if (failed) snprintf(answer, size, "error in operation %llu, kind %u", (unsigned long long)operations, dice);
    return failed;
}

static int open_disk(const char *disk, long *blocks) {
    char path[80];
    snprintf(path, sizeof path, "/dev/%s", disk);
    int file = open(path, O_RDWR | O_DIRECT);
    if (file < 0) return file;
    *blocks = (long)(lseek(file, 0, SEEK_END) / block_bytes);
    if (*blocks > most_blocks) *blocks = most_blocks;
    return file;
}

void check_blocks(const char *disk, unsigned long long seed, long count, char *answer, size_t size) {
    long blocks;
    int file = open_disk(disk, &blocks);
    if (file < 0) {
        snprintf(answer, size, "error cannot open %s", disk);
        return;
    }
    if (seed != 0) {
        uint64_t range[2] = {0, (uint64_t)blocks * block_bytes};
        state = seed, stamp = 0, operations = 0;
        memset(model, 0, sizeof model);
        memset(is_trimmed, 0, sizeof is_trimmed);
        if (ioctl(file, BLKZEROOUT, range) != 0) {
            snprintf(answer, size, "error zeroing");
            close(file);
            return;
        }
    }
    snprintf(answer, size, "ok");
    int failed = 0;
    while (!failed && count-- > 0) failed = act(file, blocks, answer, size);
    if (!failed) snprintf(answer, size, "ok %llu", (unsigned long long)operations);
    close(file);
}

void verify_blocks(const char *disk, char *answer, size_t size) {
    long blocks;
    int file = open_disk(disk, &blocks), failed = 0;
    if (file < 0) {
        snprintf(answer, size, "error cannot open %s", disk);
        return;
    }
    for (long first = 0; !failed && first < blocks; first += most_in_one) {
        long count = blocks - first < most_in_one ? blocks - first : most_in_one;
        failed = look(file, first, count, answer, size);
    }
    if (!failed) snprintf(answer, size, "ok %ld", blocks);
    close(file);
}
