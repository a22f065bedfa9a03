#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>

/* Looking into, and acting in, another process: pidfd, ptrace, process_vm. Each function is one system
   call; a negative result is -errno. */

/* O_DIRECT, which Glibc's module does not export. */
unsigned ftvm_direct_flag(void);
int ftvm_pidfd_open(pid_t pid);
/* A duplicate of descriptor `target` of the process, close-on-exec. */
int ftvm_pidfd_getfd(int pidfd, int target);
int ftvm_pidfd_send_signal(int pidfd, int signal);

int ftvm_ptrace_seize(pid_t tid);
int ftvm_ptrace_interrupt(pid_t tid);
int ftvm_ptrace_detach(pid_t tid);
int ftvm_ptrace_singlestep(pid_t tid);
int ftvm_ptrace_getregs(pid_t tid, struct user_regs_struct *registers);
int ftvm_ptrace_setregs(pid_t tid, const struct user_regs_struct *registers);
int ftvm_ptrace_getsigmask(pid_t tid, uint64_t *mask);
int ftvm_ptrace_setsigmask(pid_t tid, uint64_t mask);
/* waitpid(tid, __WALL) that does not block: 0 when nothing has happened yet. */
int ftvm_wait_nohang(pid_t tid, int *status);
/* The stop signal if `status` says stopped, otherwise 0; the event number in bits 8 and up. */
int ftvm_wait_stop(int status);

ssize_t ftvm_process_vm_read(pid_t pid, void *local, uint64_t remote, size_t length);
ssize_t ftvm_process_vm_write(pid_t pid, const void *local, uint64_t remote, size_t length);
/* Many remote ranges at once; both arrays as for process_vm_readv(2). */
ssize_t ftvm_process_vm_readv(pid_t pid, const struct iovec *local, size_t local_count,
                              const struct iovec *remote, size_t remote_count);

/* Starts `path` with `arguments` (NULL-terminated); descriptors[i] becomes descriptor 3 + i in the
   child, `output` its standard output and error, everything else closed on exec as marked. Own session,
   no signals blocked. Gives the child's pid, or -errno. */
int ftvm_spawn(const char *path, char *const arguments[], const int *descriptors, size_t count,
               int output);

/* Pins the calling thread to one CPU. */
int ftvm_pin_to_cpu(int cpu);
int ftvm_gettid(void);
/* Sends one byte with `descriptor` (SCM_RIGHTS). */
int ftvm_process_send_descriptor(int socket, int descriptor);
/* memfd_create(2), close-on-exec. */
int ftvm_memory_file(const char *name);
/* How much the pipe holds from here on (whole pages): the bytes, or -errno. Writers that wait go on when there is room. */
int ftvm_pipe_resize(int descriptor, int bytes);
/* pipe2(2), close-on-exec. */
int ftvm_pipe(int ends[2]);
/* Names the calling thread, at most 15 bytes. */
void ftvm_name_thread(const char *name);
/* How late the calling thread's waits may end (prctl(2), PR_SET_TIMERSLACK); 50 us unless told. */
void ftvm_set_timer_slack(unsigned long nanoseconds);
unsigned ftvm_device_major(dev_t device);
unsigned ftvm_device_minor(dev_t device);

/* Whether somebody keeps this machine's clock (adjtimex(2)): 1 or 0, or -errno. */
int ftvm_clock_is_synchronized(void);
