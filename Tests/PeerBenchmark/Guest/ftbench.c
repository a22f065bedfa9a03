// ftbench: what the guest of the peers' benchmark does, on command over TCP port 7790. One command a line, one line of
// answer; an "error ..." where it cannot.
//
//   status          "WRITES NANOSECONDS": pages written since the start, and the guest's monotonic clock
//   dirty RATE MIB  from now on writes one word of RATE random pages a second, of a region of MIB MiB; "ok"
//   fill MIB        fills so much more memory with what does not compress; "ok"
//   churn SECONDS   runs /bin/busybox true, one process after the other; "COUNT"
//   mount DEVICE    mounts its ext4 file system at /disk; "ok"
//   fsync FILE BYTES SECONDS   writes so many bytes in turn through 16 MiB of the file, and syncs after each; "COUNT"
//   sqlite FILE SECONDS        inserts rows into a new database, each in a transaction of its own; "COUNT"
//
// All times are the guest's own, which stands still while the guest does: who asks has to take his own.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    PORT = 7790,
    PAGE_BYTES = 4096,
    MIB = 1 << 20,
    TICK_NANOSECONDS = 2000000,
    FILE_BYTES = 16 * MIB,
    BLOCK_BYTES_MAXIMUM = MIB,
};

static _Atomic uint64_t writes;
static pthread_mutex_t region_lock = PTHREAD_MUTEX_INITIALIZER;
// Under region_lock:
static char *region;
static uint64_t region_pages;
static uint64_t region_bytes;
static uint64_t rate;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void *write_pages(void *unused) {
    (void)unused;
    uint64_t random = 88172645463325252u, last = now(), carry = 0;
    for (;;) {
        struct timespec tick = {0, TICK_NANOSECONDS};
        nanosleep(&tick, NULL);
        pthread_mutex_lock(&region_lock);
        uint64_t time = now(), elapsed = time - last;
        last = time;
        // Time that was lost is not made up for, but for a little.
        if (elapsed > 10u * TICK_NANOSECONDS) elapsed = 10u * TICK_NANOSECONDS;
        uint64_t due = elapsed * rate + carry;
        carry = due % 1000000000u;
        due /= 1000000000u;
        for (uint64_t left = due; left > 0; left--) {
            uint64_t value = next_random(&random);
            *(volatile uint64_t *)(region + value % region_pages * PAGE_BYTES) = value;
        }
        atomic_fetch_add(&writes, due);
        pthread_mutex_unlock(&region_lock);
    }
    return NULL;
}

static char *allocate(uint64_t bytes) {
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void fill(char *memory, uint64_t bytes) {
    uint64_t random = now() | 1;
    // A word in eight is enough for no page to be all zeros, or like another.
    for (uint64_t at = 0; at < bytes; at += 64) *(uint64_t *)(memory + at) = next_random(&random);
}

static int set_dirty(uint64_t new_rate, uint64_t mib) {
    if (mib == 0 || mib > 1024 * 1024) return 0;
    pthread_mutex_lock(&region_lock);
    if (region_bytes != mib * MIB) {
        if (region != NULL) munmap(region, region_bytes);
        region = allocate(mib * MIB);
        region_bytes = region == NULL ? 0 : mib * MIB;
        region_pages = region_bytes / PAGE_BYTES;
    }
    rate = region == NULL ? 0 : new_rate;
    int done = region != NULL;
    pthread_mutex_unlock(&region_lock);
    return done;
}

static uint64_t churn(uint64_t seconds) {
    uint64_t end = now() + seconds * 1000000000u, count = 0;
    while (now() < end) {
        pid_t child = fork();
        if (child == 0) {
            execl("/bin/busybox", "true", (char *)NULL);
            _exit(127);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 0;
        count++;
    }
    return count;
}

static uint64_t sync_writes(const char *path, uint64_t bytes, uint64_t seconds) {
    static char block[BLOCK_BYTES_MAXIMUM];
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || bytes == 0 || bytes > BLOCK_BYTES_MAXIMUM) return 0;
    uint64_t end = now() + seconds * 1000000000u, count = 0;
    while (now() < end) {
        off_t place = (off_t)(count * bytes % FILE_BYTES);
        memset(block, (int)(count % 255 + 1), bytes);
        if (pwrite(file, block, bytes, place) != (ssize_t)bytes || fdatasync(file) != 0) {
            count = 0;
            break;
        }
        count++;
    }
    close(file);
    return count;
}

static uint64_t insert_rows(const char *path, uint64_t seconds) {
    sqlite3 *database;
    unlink(path);
    uint64_t count = 0;
    if (sqlite3_open(path, &database) == SQLITE_OK &&
        sqlite3_exec(database,
                     "pragma synchronous = full;"
                     "create table rows(id integer primary key, text text not null)",
                     NULL, NULL, NULL) == SQLITE_OK) {
        for (uint64_t end = now() + seconds * 1000000000u; now() < end; count++) {
            const char *insert = "insert into rows(text) values('a line of an ordinary length, as in a log')";
            if (sqlite3_exec(database, insert, NULL, NULL, NULL) != SQLITE_OK) {
                count = 0;
                break;
            }
        }
    }
    sqlite3_close(database);
    return count;
}

static void obey(const char *line, char *answer, size_t size) {
    uint64_t first, second;
    char path[128];
    uint64_t count = 0;
    snprintf(answer, size, "ok\n");
    if (strcmp(line, "status") == 0) {
        snprintf(answer, size, "%" PRIu64 " %" PRIu64 "\n", atomic_load(&writes), now());
        return;
    }
    if (sscanf(line, "dirty %" SCNu64 " %" SCNu64, &first, &second) == 2) {
        if (!set_dirty(first, second)) snprintf(answer, size, "error no memory\n");
        return;
    }
    if (sscanf(line, "fill %" SCNu64, &first) == 1) {
        char *memory = allocate(first * MIB);
        if (memory == NULL)
            snprintf(answer, size, "error no memory\n");
        else
            fill(memory, first * MIB);
        return;
    }
    if (sscanf(line, "mount %127s", path) == 1) {
        mkdir("/disk", 0700);
        if (mount(path, "/disk", "ext4", 0, "") != 0)
            snprintf(answer, size, "error %s\n", strerror(errno));
        return;
    }
    if (sscanf(line, "churn %" SCNu64, &first) == 1)
        count = churn(first);
    else if (sscanf(line, "fsync %127s %" SCNu64 " %" SCNu64, path, &first, &second) == 3)
        count = sync_writes(path, first, second);
    else if (sscanf(line, "sqlite %127s %" SCNu64, path, &first) == 2)
        count = insert_rows(path, first);
    if (count == 0)
        snprintf(answer, size, "error %s\n", strerror(errno));
    else
        snprintf(answer, size, "%" PRIu64 "\n", count);
}

static void *serve(void *argument) {
    int descriptor = (int)(intptr_t)argument;
    char line[256], answer[256];
    size_t held = 0;
    for (;;) {
        ssize_t got = recv(descriptor, line + held, 1, 0);
        if (got <= 0 || held + 1 == sizeof line) break;
        if (line[held] != '\n') {
            held++;
            continue;
        }
        line[held] = 0;
        held = 0;
        obey(line, answer, sizeof answer);
        if (send(descriptor, answer, strlen(answer), MSG_NOSIGNAL) < 0) break;
    }
    close(descriptor);
    return NULL;
}

int main(void) {
    // By itself: a shell needs /dev/null to start anything in the background, which is not there yet.
    if (fork() != 0) return 0;
    if (!set_dirty(0, 1)) return 1;
    pthread_t thread;
    if (pthread_create(&thread, NULL, write_pages, NULL) != 0) return 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr = {htonl(INADDR_ANY)}};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0) return 1;
    if (listen(listener, 16) != 0) return 1;
    for (;;) {
        int descriptor = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (descriptor < 0) continue;
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)descriptor) != 0)
            close(descriptor);
        else
            pthread_detach(thread);
    }
}
