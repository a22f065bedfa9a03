// ftguest: the program inside ftvm's demo and test guests.
//
// It keeps state in memory that gives away any mistake of a failover: a counter, a region of pages
// that check themselves against a table kept elsewhere, and numbers handed out over TCP. It runs on
// an ordinary kernel and knows nothing of ftvm.
//
// Settings come from the kernel command line:
//   ftvm.check_mib=N                size of the checked region in MiB (default 32)
//   ftvm.dirty_pages_per_second=N   pages rewritten per second, all writers together (default 2000)
//   ftvm.verify_pages_per_second=N  pages verified per second (default 8192)
//   ftvm.vcpus=N                    number of writer threads (default: the CPUs that are online)
//
// TCP port 7777, one command a line, one line of answer:
//   status    the JSON object that is also printed on the console every 5 s
//   next      the next number of one counter for all connections: strictly increasing
//   dirty N   sets the rate of the writers in pages per second, answers "ok N"
//   beacon SENDER ADDRESS PORT MICROSECONDS
//             sends UDP beacons from now on (services.c), answers "ok"
//   poweroff  powers the guest off
//   quit      closes the connection
//
// More servers, for clients that watch a failover from outside, are in services.c.

#define _GNU_SOURCE
#include "ftguest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    PAGE_BYTES = 4096,
    PAGE_WORDS = PAGE_BYTES / 8,
    // Pages share locks: page p belongs to lock p % LOCKS.
    LOCKS = 64,
    WRITERS_MAXIMUM = 64,
    CONNECTIONS_MAXIMUM = 64,
    LINE_BYTES_MAXIMUM = 128,
    TICK_MILLISECONDS = 10,
    PORT = 7777,
};

// A page of the checked region. Every word follows from number and version, so a page that mixes
// two versions, or that belongs elsewhere, cannot pass.
struct checked_page {
    uint64_t number;
    uint64_t version;
    uint64_t checksum;
    uint64_t body[PAGE_WORDS - 3];
};
_Static_assert(sizeof(struct checked_page) == PAGE_BYTES, "a checked page is one page");

static struct checked_page *region;
static uint64_t page_count;
// The version that each page must have. Lies far from the region, so that a page and its entry are
// never saved or lost together by being the same page.
static uint64_t *version_table;
static pthread_mutex_t page_locks[LOCKS];

static _Atomic uint64_t counter;
static _Atomic uint64_t request_number;
static _Atomic uint64_t rounds;
static _Atomic uint64_t pages_checked;
static _Atomic uint64_t bad;
// Sum of all versions: changes under a page's lock, with the page and its table entry. A table page
// that was lost together with all of its checked pages still shows here.
static _Atomic uint64_t writes;
static _Atomic uint64_t dirty_pages_per_second;
static _Atomic int connections;
static uint64_t verify_pages_per_second;
static unsigned writer_count;
static char boot_id[64];

void die(const char *what) {
    fprintf(stderr, "ftguest: %s: %s\n", what, strerror(errno));
    exit(1);
}

// ---- checked pages ------------------------------------------------------------------------------

uint64_t mix(uint64_t value) {
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

static uint64_t page_seed(uint64_t number, uint64_t version) {
    return mix(number ^ mix(version));
}

static uint64_t page_checksum(uint64_t number, uint64_t version) {
    return mix(page_seed(number, version) ^ 0x6674766d70616765u);
}

static void fill_page(uint64_t number, uint64_t version) {
    struct checked_page *page = &region[number];
    uint64_t seed = page_seed(number, version);
    page->number = number;
    page->version = version;
    page->checksum = page_checksum(number, version);
    // Cheap per word, so that a software-emulated CPU can still dirty memory hard.
    for (unsigned index = 0; index < PAGE_WORDS - 3; index++) {
        page->body[index] = seed;
        seed += 0x9e3779b97f4a7c15u;
    }
}

static bool page_is_good(uint64_t number, uint64_t version) {
    const struct checked_page *page = &region[number];
    if (page->number != number || page->version != version ||
        page->checksum != page_checksum(number, version))
        return false;
    uint64_t seed = page_seed(number, version);
    for (unsigned index = 0; index < PAGE_WORDS - 3; index++) {
        if (page->body[index] != seed) return false;
        seed += 0x9e3779b97f4a7c15u;
    }
    return true;
}

static void report_bad(const char *what, uint64_t number, uint64_t found, uint64_t expected) {
    uint64_t so_far = atomic_fetch_add(&bad, 1);
    // The console is slow: the first ones tell the story, the count says how many.
    if (so_far < 20)
        printf("ftguest: BAD %s %" PRIu64 ": version %" PRIu64 ", expected %" PRIu64 "\n", what,
               number, found, expected);
}

// Compares a page with its table entry; the caller holds the page's lock.
static void check_page(uint64_t number) {
    uint64_t expected = version_table[number];
    if (page_is_good(number, expected)) return;
    report_bad("page", number, region[number].version, expected);
    // Mended, so that one lost page counts once and not in every round.
    fill_page(number, expected);
}

void sleep_milliseconds(unsigned milliseconds) {
    struct timespec time = {milliseconds / 1000, (milliseconds % 1000) * 1000000L};
    while (nanosleep(&time, &time) != 0 && errno == EINTR) {
    }
}

uint64_t monotonic_nanoseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

// How many pages are due for work at `rate` pages a second; `*carry` keeps the fraction, in
// billionths of a page. Time that was lost (a stopped guest, a slow CPU) is not made up for.
static uint64_t pages_due(uint64_t rate, uint64_t *last, uint64_t *carry) {
    uint64_t now = monotonic_nanoseconds();
    uint64_t elapsed = now - *last;
    *last = now;
    if (elapsed > 10u * TICK_MILLISECONDS * 1000000u) elapsed = 10u * TICK_MILLISECONDS * 1000000u;
    uint64_t due = elapsed * rate + *carry;
    *carry = due % 1000000000u;
    return due / 1000000000u;
}

static void *write_pages(void *argument) {
    uint64_t index = (uint64_t)(uintptr_t)argument;
    uint64_t random = mix(index + 1);
    uint64_t last = monotonic_nanoseconds();
    uint64_t carry = 0;
    for (;;) {
        sleep_milliseconds(TICK_MILLISECONDS);
        uint64_t rate = atomic_load(&dirty_pages_per_second);
        // The first writers take the remainder, so that the shares add up to the rate.
        uint64_t share = rate / writer_count + (index < rate % writer_count ? 1 : 0);
        for (uint64_t due = pages_due(share, &last, &carry); due > 0; due--) {
            random = mix(random);
            uint64_t number = random % page_count;
            pthread_mutex_t *lock = &page_locks[number % LOCKS];
            pthread_mutex_lock(lock);
            // Looked at before it goes: rewriting must not hide a page that was lost.
            check_page(number);
            uint64_t version = version_table[number] + 1;
            fill_page(number, version);
            version_table[number] = version;
            atomic_fetch_add(&writes, 1);
            pthread_mutex_unlock(lock);
        }
    }
    return NULL;
}

static void verify_page(uint64_t number) {
    pthread_mutex_t *lock = &page_locks[number % LOCKS];
    pthread_mutex_lock(lock);
    check_page(number);
    pthread_mutex_unlock(lock);
    atomic_fetch_add(&pages_checked, 1);
}

static void verify_sum(void) {
    for (unsigned index = 0; index < LOCKS; index++) pthread_mutex_lock(&page_locks[index]);
    uint64_t sum = 0;
    for (uint64_t number = 0; number < page_count; number++) sum += version_table[number];
    uint64_t expected = atomic_load(&writes);
    if (sum != expected) {
        report_bad("sum of versions", 0, sum, expected);
        atomic_store(&writes, sum);
    }
    for (unsigned index = LOCKS; index > 0; index--) pthread_mutex_unlock(&page_locks[index - 1]);
}

static void *verify_pages(void *argument) {
    (void)argument;
    uint64_t last = monotonic_nanoseconds();
    uint64_t carry = 0;
    uint64_t number = 0;
    for (;;) {
        sleep_milliseconds(TICK_MILLISECONDS);
        for (uint64_t due = pages_due(verify_pages_per_second, &last, &carry); due > 0; due--) {
            verify_page(number);
            if (++number == page_count) {
                number = 0;
                verify_sum();
                atomic_fetch_add(&rounds, 1);
            }
        }
    }
    return NULL;
}

static void *count(void *argument) {
    (void)argument;
    for (;;) {
        sleep_milliseconds(TICK_MILLISECONDS);
        atomic_fetch_add(&counter, 1);
    }
    return NULL;
}

// ---- status and the server ----------------------------------------------------------------------

static int format_status(char *text, size_t size) {
    uint64_t uptime = monotonic_nanoseconds();
    return snprintf(
        text, size,
        "{\"uptime_seconds\":%" PRIu64 ".%03" PRIu64 ",\"boot_id\":\"%s\",\"counter\":%" PRIu64
        ",\"checker\":{\"mib\":%" PRIu64 ",\"rounds\":%" PRIu64 ",\"pages_checked\":%" PRIu64
        ",\"bad\":%" PRIu64 ",\"writes\":%" PRIu64 "},\"dirty_pages_per_second\":%" PRIu64 "}\n",
        uptime / 1000000000u, uptime / 1000000u % 1000u, boot_id, atomic_load(&counter),
        page_count * PAGE_BYTES / 1048576u, atomic_load(&rounds), atomic_load(&pages_checked),
        atomic_load(&bad), atomic_load(&writes), atomic_load(&dirty_pages_per_second));
}

static void *print_status(void *argument) {
    (void)argument;
    char text[512];
    for (;;) {
        format_status(text, sizeof text);
        fputs(text, stdout);
        sleep_milliseconds(5000);
    }
    return NULL;
}

bool send_all(int descriptor, const void *bytes, size_t length) {
    const char *next = bytes;
    while (length > 0) {
        ssize_t sent = send(descriptor, next, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return false;
        next += sent;
        length -= (size_t)sent;
    }
    return true;
}

static bool answer(int descriptor, const char *text) {
    return send_all(descriptor, text, strlen(text));
}

// Answers one command; false ends the connection.
static bool obey(int descriptor, const char *line, void *state) {
    (void)state;
    char text[512];
    char address[16];
    unsigned sender, port, period;
    uint64_t rate;
    char rest;
    if (strcmp(line, "status") == 0) {
        format_status(text, sizeof text);
    } else if (strcmp(line, "next") == 0) {
        snprintf(text, sizeof text, "%" PRIu64 "\n", atomic_fetch_add(&request_number, 1) + 1);
    } else if (sscanf(line, "dirty %" SCNu64 "%c", &rate, &rest) == 1 && rate <= 100000000u) {
        atomic_store(&dirty_pages_per_second, rate);
        snprintf(text, sizeof text, "ok %" PRIu64 "\n", rate);
    } else if (sscanf(line, "beacon %u %15s %u %u%c", &sender, address, &port, &period, &rest) == 4 &&
               set_beacon(sender, address, port, period)) {
        snprintf(text, sizeof text, "ok\n");
    } else if (strcmp(line, "poweroff") == 0) {
        answer(descriptor, "ok\n");
        sync();
        reboot(RB_POWER_OFF);
        return false;
    } else if (strcmp(line, "quit") == 0) {
        return false;
    } else {
        snprintf(text, sizeof text, "error: status, next, dirty N, beacon S A P M, poweroff or quit\n");
    }
    return answer(descriptor, text);
}

void serve_lines(int descriptor, bool (*obey_line)(int, const char *, void *), void *state) {
    char buffer[LINE_BYTES_MAXIMUM];
    size_t held = 0;
    bool going = true;
    while (going) {
        ssize_t got = recv(descriptor, buffer + held, sizeof buffer - held, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        held += (size_t)got;
        char *end;
        while (going && (end = memchr(buffer, '\n', held)) != NULL) {
            *end = 0;
            if (end > buffer && end[-1] == '\r') end[-1] = 0;
            going = obey_line(descriptor, buffer, state);
            held -= (size_t)(end + 1 - buffer);
            memmove(buffer, end + 1, held);
        }
        if (going && held == sizeof buffer) {
            answer(descriptor, "error: line too long\n");
            going = false;
        }
    }
}

static void serve_commands(int descriptor) { serve_lines(descriptor, obey, NULL); }

struct connection {
    int descriptor;
    void (*serve)(int descriptor);
};

static void *serve_connection(void *argument) {
    struct connection connection = *(struct connection *)argument;
    free(argument);
    connection.serve(connection.descriptor);
    close(connection.descriptor);
    atomic_fetch_sub(&connections, 1);
    return NULL;
}

void start_thread(void *(*body)(void *), void *argument) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    errno = pthread_create(&thread, &attributes, body, argument);
    if (errno != 0) die("pthread_create");
    pthread_attr_destroy(&attributes);
}

void accept_connections(uint16_t port, void (*serve)(int descriptor)) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0) die("socket");
    int one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_ANY)}};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0) die("bind");
    if (listen(listener, 16) != 0) die("listen");
    for (;;) {
        int descriptor = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (descriptor < 0) {
            // Out of descriptors or a client that went away: wait rather than spin.
            sleep_milliseconds(TICK_MILLISECONDS);
            continue;
        }
        struct connection *connection = malloc(sizeof *connection);
        if (connection == NULL || atomic_fetch_add(&connections, 1) >= CONNECTIONS_MAXIMUM) {
            answer(descriptor, "error: too many connections\n");
            close(descriptor);
            if (connection != NULL) atomic_fetch_sub(&connections, 1);
            free(connection);
            continue;
        }
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        *connection = (struct connection){descriptor, serve};
        start_thread(serve_connection, connection);
    }
}

// ---- start --------------------------------------------------------------------------------------

static void read_first_line(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "re");
    if (file == NULL || fgets(text, (int)size, file) == NULL) die(path);
    fclose(file);
    text[strcspn(text, "\n")] = 0;
}

// The value of `name=` on the kernel command line, or `fallback` when it is absent or no number.
static uint64_t setting(const char *command_line, const char *name, uint64_t fallback) {
    size_t length = strlen(name);
    for (const char *word = command_line; *word != 0;) {
        if (strncmp(word, name, length) == 0 && word[length] == '=') {
            char *end;
            uint64_t value = strtoull(word + length + 1, &end, 10);
            if (end != word + length + 1 && (*end == ' ' || *end == 0)) return value;
        }
        word += strcspn(word, " ");
        word += strspn(word, " ");
    }
    return fallback;
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    char command_line[4096];
    read_first_line("/proc/cmdline", command_line, sizeof command_line);
    read_first_line("/proc/sys/kernel/random/boot_id", boot_id, sizeof boot_id);
    uint64_t mib = setting(command_line, "ftvm.check_mib", 32);
    if (mib == 0) mib = 1;
    atomic_store(&dirty_pages_per_second,
                 setting(command_line, "ftvm.dirty_pages_per_second", 2000));
    verify_pages_per_second = setting(command_line, "ftvm.verify_pages_per_second", 8192);
    uint64_t online = (uint64_t)sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t vcpus = setting(command_line, "ftvm.vcpus", online);
    writer_count = vcpus == 0 ? 1 : vcpus > WRITERS_MAXIMUM ? WRITERS_MAXIMUM : (unsigned)vcpus;

    page_count = mib * 1048576u / PAGE_BYTES;
    region = mmap(NULL, page_count * PAGE_BYTES, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    version_table = mmap(NULL, page_count * sizeof *version_table, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (region == MAP_FAILED || version_table == MAP_FAILED) die("mmap");
    for (uint64_t number = 0; number < page_count; number++) fill_page(number, 0);
    for (unsigned index = 0; index < LOCKS; index++) pthread_mutex_init(&page_locks[index], NULL);

    start_thread(count, NULL);
    start_thread(verify_pages, NULL);
    for (uint64_t index = 0; index < writer_count; index++)
        start_thread(write_pages, (void *)(uintptr_t)index);
    start_thread(print_status, NULL);
    start_services(boot_id);
    accept_connections(PORT, serve_commands);
}
