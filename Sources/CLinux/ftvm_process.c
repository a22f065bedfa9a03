#define _GNU_SOURCE
#include "CLinux.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/timex.h>
#include <unistd.h>

#ifndef PTRACE_GETSIGMASK
#define PTRACE_GETSIGMASK 0x420a
#define PTRACE_SETSIGMASK 0x420b
#endif

static long result_of(long value) { return value < 0 ? -errno : value; }

unsigned ftvm_direct_flag(void) { return O_DIRECT; }

int ftvm_pidfd_open(pid_t pid) { return (int)result_of(syscall(SYS_pidfd_open, pid, 0)); }

int ftvm_pidfd_getfd(int pidfd, int target) {
    return (int)result_of(syscall(SYS_pidfd_getfd, pidfd, target, 0));
}

int ftvm_pidfd_send_signal(int pidfd, int signal) {
    return (int)result_of(syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}

int ftvm_ptrace_seize(pid_t tid) { return (int)result_of(ptrace(PTRACE_SEIZE, tid, NULL, NULL)); }
int ftvm_ptrace_interrupt(pid_t tid) {
    return (int)result_of(ptrace(PTRACE_INTERRUPT, tid, NULL, NULL));
}
int ftvm_ptrace_detach(pid_t tid) { return (int)result_of(ptrace(PTRACE_DETACH, tid, NULL, NULL)); }
int ftvm_ptrace_singlestep(pid_t tid) {
    return (int)result_of(ptrace(PTRACE_SINGLESTEP, tid, NULL, NULL));
}
int ftvm_ptrace_getregs(pid_t tid, struct user_regs_struct *registers) {
    return (int)result_of(ptrace(PTRACE_GETREGS, tid, NULL, registers));
}
int ftvm_ptrace_setregs(pid_t tid, const struct user_regs_struct *registers) {
    return (int)result_of(ptrace(PTRACE_SETREGS, tid, NULL, (void *)registers));
}
int ftvm_ptrace_getsigmask(pid_t tid, uint64_t *mask) {
    return (int)result_of(ptrace(PTRACE_GETSIGMASK, tid, (void *)sizeof *mask, mask));
}
int ftvm_ptrace_setsigmask(pid_t tid, uint64_t mask) {
    return (int)result_of(ptrace(PTRACE_SETSIGMASK, tid, (void *)sizeof mask, &mask));
}

int ftvm_wait_nohang(pid_t tid, int *status) {
    return (int)result_of(waitpid(tid, status, __WALL | WNOHANG));
}
int ftvm_wait_stop(int status) { return WIFSTOPPED(status) ? status >> 8 : 0; }

ssize_t ftvm_process_vm_read(pid_t pid, void *local, uint64_t remote, size_t length) {
    struct iovec here = {local, length}, there = {(void *)(uintptr_t)remote, length};
    return result_of(process_vm_readv(pid, &here, 1, &there, 1, 0));
}
ssize_t ftvm_process_vm_write(pid_t pid, const void *local, uint64_t remote, size_t length) {
    struct iovec here = {(void *)local, length}, there = {(void *)(uintptr_t)remote, length};
    return result_of(process_vm_writev(pid, &here, 1, &there, 1, 0));
}
ssize_t ftvm_process_vm_readv(pid_t pid, const struct iovec *local, size_t local_count,
                              const struct iovec *remote, size_t remote_count) {
    return result_of(process_vm_readv(pid, local, local_count, remote, remote_count, 0));
}

int ftvm_spawn(const char *path, char *const arguments[], const int *descriptors, size_t count,
               int output) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    pid_t child = -1;
    char *const environment[] = {NULL};
    sigset_t none;
    int moved[32], error = 0;
    if (count > 31) return -E2BIG;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
    /* First out of the way of the numbers that are wanted, so that no dup2 overwrites a source. */
    for (size_t i = 0; i <= count; i++) moved[i] = -1;
    for (size_t i = 0; i <= count && !error; i++) {
        moved[i] = fcntl(i < count ? descriptors[i] : output, F_DUPFD_CLOEXEC, 64);
        if (moved[i] < 0) error = errno;
    }
    if (!error) {
        posix_spawn_file_actions_adddup2(&actions, moved[count], 1);
        posix_spawn_file_actions_adddup2(&actions, moved[count], 2);
        for (size_t i = 0; i < count; i++)
            posix_spawn_file_actions_adddup2(&actions, moved[i], 3 + (int)i);
        /* Whatever was not marked must not outlive us in the child: locks and listening sockets. */
        posix_spawn_file_actions_addclosefrom_np(&actions, 3 + (int)count);
        error = posix_spawn(&child, path, &actions, &attributes, arguments, environment);
    }
    for (size_t i = 0; i <= count; i++)
        if (moved[i] >= 0) close(moved[i]);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error ? -error : child;
}

int ftvm_pin_to_cpu(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return (int)result_of(sched_setaffinity(0, sizeof set, &set));
}
int ftvm_gettid(void) { return (int)syscall(SYS_gettid); }

int ftvm_process_send_descriptor(int socket, int descriptor) {
    char byte = 0;
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = control.space,
                             .msg_controllen = sizeof control.space};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    *(int *)CMSG_DATA(header) = descriptor;
    return (int)result_of(sendmsg(socket, &message, MSG_NOSIGNAL));
}

int ftvm_memory_file(const char *name) { return (int)result_of(memfd_create(name, MFD_CLOEXEC)); }
int ftvm_pipe(int ends[2]) { return (int)result_of(pipe2(ends, O_CLOEXEC)); }
int ftvm_pipe_resize(int descriptor, int bytes) {
    return (int)result_of(fcntl(descriptor, F_SETPIPE_SZ, bytes));
}
void ftvm_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }
void ftvm_set_timer_slack(unsigned long nanoseconds) { prctl(PR_SET_TIMERSLACK, nanoseconds); }
unsigned ftvm_device_major(dev_t device) { return major(device); }
unsigned ftvm_device_minor(dev_t device) { return minor(device); }

int ftvm_clock_is_synchronized(void) {
    struct timex time = {0};
    int state = adjtimex(&time);
    if (state < 0) return -errno;
    return state != TIME_ERROR && !(time.status & STA_UNSYNC);
}
