/* The guest's database server: SQLite on the root disk, one command a line over TCP.
 *
 *   commit N      inserts the number in a transaction of its own; "ok N" when SQLite says that it is durable
 *   count         "count ROWS LAST WRONG": rows, the last number, rows whose number is not their place
 *   check         PRAGMA integrity_check
 *   fill DISK M   writes M MiB to the device, as fast as it goes, and syncs; "ok SECONDS"
 *   pair N        numbers N on two raw disks, vdb first, each flushed
 *   pairs         "pairs B C": the last number of either disk
 *   get DISK      "got N": the number that the disk begins with
 *   scatter DISK N, gather DISK N
 *                 writes, or reads, N blocks of 4 KiB all over the disk, each a request of its own
 *   blocks ..., verify ...
 *                 the block checker, blocks.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

void check_blocks(const char *disk, unsigned long long seed, long count, char *answer, size_t size);
void verify_blocks(const char *disk, char *answer, size_t size);

static sqlite3 *database;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

static void query(const char *sql, char *answer, size_t size, const char *prefix) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(database, sql, -1, &statement, NULL) != SQLITE_OK) {
        snprintf(answer, size, "error %s", sqlite3_errmsg(database));
        return;
    }
    size_t used = (size_t)snprintf(answer, size, "%s", prefix);
    while (sqlite3_step(statement) == SQLITE_ROW)
        for (int i = 0; i < sqlite3_column_count(statement) && used < size; i++) {
            const unsigned char *text = sqlite3_column_text(statement, i);
            used += (size_t)snprintf(answer + used, size - used, " %s", text ? (char *)text : "0");
        }
    sqlite3_finalize(statement);
}

static void commit(long long number, char *answer, size_t size) {
    char sql[128], *message = NULL;
    snprintf(sql, sizeof sql, "insert into numbers(number) values(%lld)", number);
    if (sqlite3_exec(database, sql, NULL, NULL, &message) == SQLITE_OK)
        snprintf(answer, size, "ok %lld", number);
    else
        snprintf(answer, size, "error %s", message);
    sqlite3_free(message);
}

static void fill(const char *disk, long mebibytes, char *answer, size_t size) {
    char path[64];
    static char block[1 << 20];
    struct timespec began, ended;
    snprintf(path, sizeof path, "/dev/%s", disk);
    int file = open(path, O_WRONLY);
    if (file < 0) {
        snprintf(answer, size, "error cannot open %s", path);
        return;
    }
    clock_gettime(CLOCK_MONOTONIC, &began);
    for (long i = 0; i < mebibytes; i++) {
        memset(block, (int)(i % 251) + 1, sizeof block);
        if (pwrite(file, block, sizeof block, (off_t)i << 20) != sizeof block) {
            snprintf(answer, size, "error writing MiB %ld", i);
            close(file);
            return;
        }
    }
    int failed = fsync(file);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    close(file);
    if (failed)
        snprintf(answer, size, "error syncing");
    else
        snprintf(answer, size, "ok %.3f", (double)(ended.tv_sec - began.tv_sec) +
                 (double)(ended.tv_nsec - began.tv_nsec) / 1e9);
}

static int put(const char *path, long long number) {
    static char block[4096] __attribute__((aligned(4096)));
    int file = open(path, O_WRONLY | O_DIRECT), good;
    if (file < 0) return 0;
    memset(block, 0, sizeof block);
    memcpy(block, &number, sizeof number);
    good = pwrite(file, block, sizeof block, 0) == sizeof block && fsync(file) == 0;
    close(file);
    return good;
}

static long long get(const char *path) {
    static char block[4096] __attribute__((aligned(4096)));
    long long number = -1;
    int file = open(path, O_RDONLY | O_DIRECT);
    if (file < 0) return -1;
    if (pread(file, block, sizeof block, 0) == sizeof block) memcpy(&number, block, sizeof number);
    close(file);
    return number;
}

static void scatter(const char *disk, long count, int writes, char *answer, size_t size) {
    static char block[4096] __attribute__((aligned(4096)));
    static long long number;
    char path[64];
    snprintf(path, sizeof path, "/dev/%s", disk);
    int file = open(path, O_RDWR | O_DIRECT);
    long long blocks = file < 0 ? 0 : lseek(file, 0, SEEK_END) / (long long)sizeof block;
    snprintf(answer, size, "ok %ld", count);
    for (long i = 0; i < count; i++) {
        off_t place = blocks > 0 ? (off_t)(i * 7919 % blocks) * (off_t)sizeof block : 0;
        number++;
        memcpy(block, &number, sizeof number);
        if ((writes ? pwrite(file, block, sizeof block, place)
                    : pread(file, block, sizeof block, place)) != sizeof block) {
            snprintf(answer, size, "error at request %ld", i);
            break;
        }
    }
    if (file >= 0) close(file);
}

static void answer_line(char *line, char *answer, size_t size) {
    char word[64];
    long long number;
    unsigned long long seed;
    if (sscanf(line, "commit %lld", &number) == 1)
        commit(number, answer, size);
    else if (!strcmp(line, "count"))
        query("select count(*), max(number), sum(number <> id) from numbers", answer, size, "count");
    else if (!strcmp(line, "check"))
        query("pragma integrity_check", answer, size, "check");
    else if (sscanf(line, "fill %63s %lld", word, &number) == 2)
        fill(word, (long)number, answer, size);
    else if (sscanf(line, "pair %lld", &number) == 1)
        snprintf(answer, size, put("/dev/vdb", number) && put("/dev/vdc", number) ? "ok %lld"
                 : "error %lld", number);
    else if (!strcmp(line, "pairs"))
        snprintf(answer, size, "pairs %lld %lld", get("/dev/vdb"), get("/dev/vdc"));
    else if (sscanf(line, "get %63s", word) == 1) {
        char path[80];
        snprintf(path, sizeof path, "/dev/%s", word);
        snprintf(answer, size, "got %lld", get(path));
    } else if (sscanf(line, "scatter %63s %lld", word, &number) == 2)
        scatter(word, (long)number, 1, answer, size);
    else if (sscanf(line, "gather %63s %lld", word, &number) == 2)
        scatter(word, (long)number, 0, answer, size);
    else if (sscanf(line, "blocks %63s %llu %lld", word, &seed, &number) == 3)
        check_blocks(word, seed, (long)number, answer, size);
    else if (sscanf(line, "verify %63s", word) == 1)
        verify_blocks(word, answer, size);
    else
        snprintf(answer, size, "error what?");
}

static void *serve(void *argument) {
    int client = (int)(intptr_t)argument;
    FILE *stream = fdopen(client, "r+");
    char line[256], answer[512];
    while (stream && fgets(line, sizeof line, stream)) {
        line[strcspn(line, "\r\n")] = 0;
        pthread_mutex_lock(&turn);
        answer_line(line, answer, sizeof answer);
        pthread_mutex_unlock(&turn);
        if (dprintf(client, "%s\n", answer) < 0) break;
    }
    if (stream) fclose(stream);
    return NULL;
}

int main(void) {
    if (sqlite3_open("/data/numbers.db", &database) != SQLITE_OK) return 1;
    /* "extra": with "full" SQLite itself may lose the last transaction in a power cut, since it does not sync the directory
       from which it has removed its journal (sqlite.org/pragma.html#pragma_synchronous). */
    sqlite3_exec(database,
                 "pragma journal_mode = delete; pragma synchronous = extra;"
                 "create table if not exists numbers(id integer primary key autoincrement, "
                 "number integer not null)",
                 NULL, NULL, NULL);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(7790)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) return 2;
    for (;;) {
        int client = accept(listener, NULL, NULL);
        pthread_t thread;
        if (client < 0) continue;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)client)) close(client);
        else pthread_detach(thread);
    }
}
