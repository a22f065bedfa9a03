#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "CLinux.h"

// Between fork and exec only async-signal-safe functions may be called: another thread of the
// caller may have held any lock.
static void become(int output, const char *const *arguments, const char *const *environment) {
    sigset_t none;
    struct sigaction standard = {.sa_handler = SIG_DFL};
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (int signal = 1; signal < NSIG; signal++) sigaction(signal, &standard, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    if (null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0) return;
    if (syscall(SYS_close_range, 3u, ~0u, CLOSE_RANGE_CLOEXEC) != 0) return;
    if (chdir("/") != 0) return;
    execve(arguments[0], (char *const *)arguments, (char *const *)environment);
}

int ftvm_namespace_spawn(int cgroup, int output, const char *const *arguments,
                         const char *const *environment) {
    // One word through the pipe is the pid, or -errno of whatever failed; -errno wins over the pid.
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC) != 0) return -errno;
    pid_t middle = fork();
    if (middle < 0) {
        int error = -errno;
        close(pipes[0]);
        close(pipes[1]);
        return error;
    }
    if (middle == 0) {
        struct clone_args clone_args = {
            .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC |
                     CLONE_INTO_CGROUP,
            .exit_signal = SIGCHLD,
            .cgroup = (uint64_t)(unsigned)cgroup,
        };
        int32_t word = (int32_t)syscall(SYS_clone3, &clone_args, sizeof clone_args);
        if (word < 0) word = -errno;
        if (word == 0) {
            become(output, arguments, environment);
            word = -errno;
        }
        ssize_t written = write(pipes[1], &word, sizeof word);
        _exit(written == sizeof word ? 0 : 1);
    }
    close(pipes[1]);
    int32_t word;
    int32_t result = -EPIPE;
    for (;;) {
        ssize_t got = read(pipes[0], &word, sizeof word);
        if (got < 0 && errno == EINTR) continue;
        if (got != sizeof word) break;
        if (result == -EPIPE || word < 0) result = word;
    }
    close(pipes[0]);
    while (waitpid(middle, NULL, 0) < 0 && errno == EINTR) {
    }
    return result;
}

int ftvm_namespace_mount(const char *source, const char *target, const char *type,
                         unsigned long flags, const char *data) {
    return mount(source, target, type, flags, data) == 0 ? 0 : -errno;
}

int ftvm_namespace_unmount(const char *target, int detach) {
    return umount2(target, detach ? MNT_DETACH : 0) == 0 ? 0 : -errno;
}

static const char own_network[] = "/proc/thread-self/ns/net";

// The calling thread must not go on in a namespace that it does not know of.
static void return_to(int network) {
    if (setns(network, CLONE_NEWNET) != 0) abort();
    close(network);
}

int ftvm_namespace_keep_network(const char *path) {
    int own = open(own_network, O_RDONLY | O_CLOEXEC);
    if (own < 0) return -errno;
    int result = 0;
    if (unshare(CLONE_NEWNET) != 0) {
        result = -errno;
        close(own);
        return result;
    }
    if (mount(own_network, path, NULL, MS_BIND, NULL) != 0) result = -errno;
    return_to(own);
    return result;
}

int ftvm_namespace_socket(int network, int domain, int type, int protocol) {
    int own = open(own_network, O_RDONLY | O_CLOEXEC);
    if (own < 0) return -errno;
    if (setns(network, CLONE_NEWNET) != 0) {
        int error = -errno;
        close(own);
        return error;
    }
    int descriptor = socket(domain, type | SOCK_CLOEXEC, protocol);
    int result = descriptor < 0 ? -errno : descriptor;
    return_to(own);
    return result;
}

int ftvm_namespace_claim(const char *name) {
    // An abstract socket address: the kernel frees it with the process.
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    if (length == 0 || length >= sizeof address.sun_path) return -EINVAL;
    memcpy(address.sun_path + 1, name, length);
    int descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) return -errno;
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    if (bind(descriptor, (struct sockaddr *)&address, size) != 0) {
        int error = -errno;
        close(descriptor);
        return error;
    }
    return descriptor;
}
