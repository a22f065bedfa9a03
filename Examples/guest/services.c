// Servers of the demo and test guest for clients that watch a failover from outside. Whatever they
// answer follows from memory, so that a guest that goes back behind an answer gives itself away.
//
//   TCP 7778  numbers: each line "N" is answered "GLOBAL LOCAL N BOOT": the next number of one
//             counter for all connections, the next one of this connection's, and the line itself.
//   TCP 7779  echo
//   TCP 7780  transfers of a pattern that follows from a seed:
//             "get SEED BYTES" sends that many bytes (0: until the client ends its side) in blocks,
//             "put SEED" takes blocks and answers "BYTES CHECKSUM BAD" after the last one.
//             A block is its length (4 bytes, big endian) and so many bytes of the pattern, at most
//             64 KiB, a multiple of 8. A block of length 0 ends the transfer; from the guest two
//             words follow it, the number of bytes and the checksum, big endian.
//             "raw BYTES" sends that many zeros, to measure the network and not the guest's CPU.
//   UDP 7781  each datagram "N" is answered "GLOBAL N BOOT".
//   UDP beacons, when asked for (`set_beacon`).
#define _GNU_SOURCE
#include "ftguest.h"

#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum {
    NUMBERS_PORT = 7778,
    ECHO_PORT = 7779,
    TRANSFER_PORT = 7780,
    DATAGRAM_PORT = 7781,
    BLOCK_BYTES = 64 * 1024,
    BLOCK_WORDS = BLOCK_BYTES / 8,
    BEACON_SENDERS = 2,
};

static const char *boot_id;

// ---- numbers ------------------------------------------------------------------------------------

static _Atomic uint64_t number;

static bool give_number(int descriptor, const char *line, void *state) {
    uint64_t *local = state;
    char text[256];
    int length = snprintf(text, sizeof text, "%" PRIu64 " %" PRIu64 " %.64s %s\n",
                          atomic_fetch_add(&number, 1) + 1, ++*local, line, boot_id);
    return send_all(descriptor, text, (size_t)length);
}

static void serve_numbers(int descriptor) {
    uint64_t local = 0;
    serve_lines(descriptor, give_number, &local);
}

static void serve_echo(int descriptor) {
    char buffer[16 * 1024];
    for (;;) {
        ssize_t got = recv(descriptor, buffer, sizeof buffer, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0 || !send_all(descriptor, buffer, (size_t)got)) return;
    }
}

// ---- transfers ----------------------------------------------------------------------------------

// A pattern's words, from its first one on. Cheap per word, so that an emulated CPU can fill a
// network with it; no word is that of another place, as blocks begin with mixed numbers.
struct pattern {
    uint64_t seed;
    uint64_t position;
    uint64_t word;
    uint64_t checksum;
};

// FNV-1a over words, and turned: the words of a block differ by one odd step, so that the low bits
// alone would tell little.
static uint64_t add_to_checksum(uint64_t checksum, uint64_t word) {
    checksum = (checksum ^ word) * 0x100000001b3u;
    return checksum << 23 | checksum >> 41;
}

static uint64_t pattern_next(struct pattern *pattern) {
    if (pattern->position % BLOCK_WORDS == 0)
        pattern->word = mix(pattern->seed ^ mix(pattern->position / BLOCK_WORDS));
    pattern->position++;
    pattern->word += 0x9e3779b97f4a7c15u;
    pattern->checksum = add_to_checksum(pattern->checksum, pattern->word);
    return pattern->word;
}

static bool receive_all(int descriptor, void *bytes, size_t length) {
    char *next = bytes;
    while (length > 0) {
        ssize_t got = recv(descriptor, next, length, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        next += got;
        length -= (size_t)got;
    }
    return true;
}

static bool other_side_has_ended(int descriptor) {
    struct pollfd poll_descriptor = {.fd = descriptor, .events = POLLIN | POLLRDHUP};
    return poll(&poll_descriptor, 1, 0) > 0;
}

struct block {
    uint32_t padding;
    // Directly before the words, as it is sent.
    uint32_t length;
    uint64_t words[BLOCK_WORDS];
};

static bool send_block(int descriptor, struct block *block, size_t bytes) {
    block->length = htonl((uint32_t)bytes);
    return send_all(descriptor, &block->length, sizeof block->length + bytes);
}

static bool send_pattern(int descriptor, struct block *block, uint64_t seed, uint64_t bytes) {
    struct pattern pattern = {.seed = seed};
    uint64_t left = bytes == 0 ? UINT64_MAX : bytes;
    while (left > 0 && (bytes != 0 || !other_side_has_ended(descriptor))) {
        size_t length = left < BLOCK_BYTES ? (size_t)left : BLOCK_BYTES;
        for (size_t index = 0; index < length / 8; index++)
            block->words[index] = htobe64(pattern_next(&pattern));
        if (!send_block(descriptor, block, length)) return false;
        left -= length;
    }
    if (!send_block(descriptor, block, 0)) return false;
    block->words[0] = htobe64(pattern.position * 8);
    block->words[1] = htobe64(pattern.checksum);
    return send_all(descriptor, block->words, 16);
}

static bool receive_pattern(int descriptor, struct block *block, uint64_t seed) {
    struct pattern pattern = {.seed = seed};
    uint64_t checksum = 0;
    uint64_t bad = 0;
    for (;;) {
        uint32_t length;
        if (!receive_all(descriptor, &length, sizeof length)) return false;
        length = ntohl(length);
        if (length == 0) break;
        if (length > BLOCK_BYTES || length % 8 != 0) return false;
        if (!receive_all(descriptor, block->words, length)) return false;
        for (size_t index = 0; index < length / 8; index++) {
            uint64_t word = be64toh(block->words[index]);
            // The checksum is of what came, so that it tells something of its own.
            checksum = add_to_checksum(checksum, word);
            if (word != pattern_next(&pattern)) bad++;
        }
    }
    char text[128];
    int text_length = snprintf(text, sizeof text, "%" PRIu64 " %016" PRIx64 " %" PRIu64 "\n",
                               pattern.position * 8, checksum, bad);
    return send_all(descriptor, text, (size_t)text_length);
}

static void send_zeros(int descriptor, struct block *block, uint64_t bytes) {
    memset(block->words, 0, sizeof block->words);
    while (bytes > 0) {
        size_t length = bytes < BLOCK_BYTES ? (size_t)bytes : BLOCK_BYTES;
        if (!send_all(descriptor, block->words, length)) return;
        bytes -= length;
    }
}

static void transfer(int descriptor, const char *line, struct block *block) {
    uint64_t seed, bytes;
    char rest;
    if (sscanf(line, "get %" SCNu64 " %" SCNu64 "%c", &seed, &bytes, &rest) == 2 && bytes % 8 == 0)
        send_pattern(descriptor, block, seed, bytes);
    else if (sscanf(line, "put %" SCNu64 "%c", &seed, &rest) == 1)
        receive_pattern(descriptor, block, seed);
    else if (sscanf(line, "raw %" SCNu64 "%c", &bytes, &rest) == 1)
        send_zeros(descriptor, block, bytes);
    else
        send_all(descriptor, "error\n", 6);
}

static void serve_transfers(int descriptor) {
    struct block *block = malloc(sizeof *block);
    if (block == NULL) return;
    // The command is read byte by byte: what follows it is not for a buffer of lines.
    char line[64];
    size_t held = 0;
    while (held < sizeof line - 1 && receive_all(descriptor, line + held, 1)) {
        if (line[held] == '\n') {
            line[held] = 0;
            transfer(descriptor, line, block);
            break;
        }
        held++;
    }
    free(block);
    // The rest of what the client sends is taken, or closing would reset the connection before the
    // client has our last words.
    shutdown(descriptor, SHUT_WR);
    char rest[1024];
    while (recv(descriptor, rest, sizeof rest, 0) > 0) {
    }
}

// ---- datagrams ----------------------------------------------------------------------------------

static void *serve_datagrams(void *argument) {
    (void)argument;
    int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) die("socket");
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(DATAGRAM_PORT)};
    if (bind(descriptor, (struct sockaddr *)&address, sizeof address) != 0) die("bind");
    uint64_t answered = 0;
    for (;;) {
        char line[65];
        struct sockaddr_in client;
        socklen_t size = sizeof client;
        ssize_t got =
            recvfrom(descriptor, line, sizeof line - 1, 0, (struct sockaddr *)&client, &size);
        if (got < 0) continue;
        line[got] = 0;
        line[strcspn(line, "\n")] = 0;
        char text[256];
        int length =
            snprintf(text, sizeof text, "%" PRIu64 " %s %s\n", ++answered, line, boot_id);
        sendto(descriptor, text, (size_t)length, MSG_DONTWAIT, (struct sockaddr *)&client, size);
    }
    return NULL;
}

// A sequence number from memory and a nonce that no second sending can have: should the guest go back
// behind a beacon that was seen, the same number is seen again with another nonce. The guest's own
// random numbers come from memory too, so the nonce is mixed with the CPU's time stamp, which goes on.
struct beacon {
    char magic[8];
    uint64_t sender;
    uint64_t sequence;
    uint64_t nonce[2];
    uint64_t uptime_nanoseconds;
    char boot[40];
};

struct beacon_sender {
    // Address, port and period in one word, so that a change is seen whole: 32, 16 and 16 bits, the
    // period in units of 100 microseconds.
    _Atomic uint64_t target;
    uint64_t sequence;
    uint64_t number;
};
static struct beacon_sender beacon_senders[BEACON_SENDERS];

static void send_beacon(int descriptor, struct beacon_sender *sender, uint64_t target) {
    struct beacon beacon = {.magic = "ftvm-bcn"};
    beacon.sender = htobe64(sender->number);
    beacon.sequence = htobe64(++sender->sequence);
    uint64_t random = 0;
    getrandom(&random, sizeof random, 0);
    beacon.nonce[0] = htobe64(__rdtsc());
    beacon.nonce[1] = htobe64(random);
    beacon.uptime_nanoseconds = htobe64(monotonic_nanoseconds());
    strncpy(beacon.boot, boot_id, sizeof beacon.boot - 1);
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)(target >> 16)),
        .sin_addr = {htonl((uint32_t)(target >> 32))},
    };
    sendto(descriptor, &beacon, sizeof beacon, MSG_DONTWAIT, (struct sockaddr *)&address,
           sizeof address);
}

static void *send_beacons(void *argument) {
    struct beacon_sender *sender = argument;
    int descriptor = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) die("socket");
    for (;;) {
        uint64_t target = atomic_load(&sender->target);
        uint64_t period = target & 0xffff;
        if (period == 0) {
            sleep_milliseconds(20);
            continue;
        }
        send_beacon(descriptor, sender, target);
        struct timespec time = {(time_t)(period / 10000), (long)(period % 10000) * 100000L};
        nanosleep(&time, NULL);
    }
    return NULL;
}

bool set_beacon(unsigned sender, const char *address, unsigned port, unsigned microseconds) {
    struct in_addr parsed;
    if (sender >= BEACON_SENDERS || port == 0 || port > 65535) return false;
    if (microseconds % 100 != 0 || microseconds > 6000000) return false;
    if (inet_pton(AF_INET, address, &parsed) != 1) return false;
    uint64_t target = (uint64_t)ntohl(parsed.s_addr) << 32 | (uint64_t)port << 16;
    atomic_store(&beacon_senders[sender].target, target | microseconds / 100);
    return true;
}

// ---- start --------------------------------------------------------------------------------------

static void *numbers(void *argument) {
    (void)argument;
    accept_connections(NUMBERS_PORT, serve_numbers);
}

static void *echo(void *argument) {
    (void)argument;
    accept_connections(ECHO_PORT, serve_echo);
}

static void *transfers(void *argument) {
    (void)argument;
    accept_connections(TRANSFER_PORT, serve_transfers);
}

void start_services(const char *boot) {
    boot_id = boot;
    start_thread(numbers, NULL);
    start_thread(echo, NULL);
    start_thread(transfers, NULL);
    start_thread(serve_datagrams, NULL);
    for (unsigned sender = 0; sender < BEACON_SENDERS; sender++) {
        beacon_senders[sender].number = sender;
        start_thread(send_beacons, &beacon_senders[sender]);
    }
}
