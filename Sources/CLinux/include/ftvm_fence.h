#pragma once
#include <stdint.h>
#include <sys/types.h>

/* Starts `path` with `arguments` and `environment` (both NULL-terminated) in a session of its own (its pid is its
 * process group), `input` as its standard input, `output` as its standard output and `errors` as its standard error,
 * no other descriptors, all signals at their defaults and none blocked. Gives the pid, a child of ours, or -errno. */
int ftvm_fence_spawn(const char *path, char *const arguments[], char *const environment[], int input, int output,
                     int errors);

/* waitpid(2) with WNOHANG: 0 while it runs; otherwise the pid. *status is the exit status, or 256 + the signal that
 * ended it. */
int ftvm_fence_reap(pid_t pid, int *status);

/* /dev/watchdog (Documentation/watchdog/watchdog-api.rst). */

/* Whether the driver can be told to stop by "V" (WDIOF_MAGICCLOSE): 1 or 0; -ENOTTY when it is no watchdog. */
int ftvm_watchdog_can_stop(int descriptor);
/* Asks for a time in seconds (WDIOC_SETTIMEOUT); gives the one that is in force, or -errno. */
int ftvm_watchdog_set_timeout(int descriptor, int seconds);
