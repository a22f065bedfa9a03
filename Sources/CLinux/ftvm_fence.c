#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/watchdog.h>
#include <signal.h>
#include <spawn.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "CLinux.h"

int ftvm_fence_spawn(const char *path, char *const arguments[], char *const environment[], int input, int output,
                     int errors) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    pid_t child = -1;
    int sources[3] = {input, output, errors}, moved[3] = {-1, -1, -1}, error = 0;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
    /* First out of the way of the numbers that are wanted, so that no dup2 overwrites a source. */
    for (int i = 0; i < 3 && !error; i++) {
        moved[i] = fcntl(sources[i], F_DUPFD_CLOEXEC, 3);
        if (moved[i] < 0) error = errno;
    }
    for (int i = 0; i < 3 && !error; i++) error = posix_spawn_file_actions_adddup2(&actions, moved[i], i);
    if (!error) error = posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    if (!error) error = posix_spawn(&child, path, &actions, &attributes, arguments, environment);
    for (int i = 0; i < 3; i++)
        if (moved[i] >= 0) close(moved[i]);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error ? -error : child;
}

int ftvm_fence_reap(pid_t pid, int *status) {
    int raw = 0;
    pid_t result = waitpid(pid, &raw, WNOHANG);
    if (result < 0) return -errno;
    if (result == 0) return 0;
    *status = WIFSIGNALED(raw) ? 256 + WTERMSIG(raw) : WEXITSTATUS(raw);
    return result;
}

int ftvm_watchdog_can_stop(int descriptor) {
    struct watchdog_info information;
    if (ioctl(descriptor, WDIOC_GETSUPPORT, &information) < 0) return -errno;
    return (information.options & WDIOF_MAGICCLOSE) != 0;
}

int ftvm_watchdog_set_timeout(int descriptor, int seconds) {
    int granted = seconds;
    if (ioctl(descriptor, WDIOC_SETTIMEOUT, &granted) < 0) return -errno;
    return granted;
}
