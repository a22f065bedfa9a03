#pragma once
#include <stdint.h>
#include <sys/types.h>

/* Namespaces, mounts and cgroups: what the lab's hosts are made of. Every function returns
 * -errno on failure. */

/* Starts arguments[0] (a path) as the first process of new mount, pid, network, UTS and IPC
 * namespaces and gives its pid as the caller sees it. It starts in the cgroup (v2) directory
 * that `cgroup` is open on. It is no child of the caller (whoever adopts orphans reaps it),
 * leads its own session, reads /dev/null, writes to `output`, has no other descriptors and no
 * blocked or ignored signals. An error of the child before exec is returned as well. */
int ftvm_namespace_spawn(int cgroup, int output, const char *const *arguments,
                         const char *const *environment);

/* mount(2); `type` and `data` may be NULL. */
int ftvm_namespace_mount(const char *source, const char *target, const char *type,
                         unsigned long flags, const char *data);

/* umount2(2) with MNT_DETACH when `detach` is not 0. */
int ftvm_namespace_unmount(const char *target, int detach);

/* Makes a new network namespace and keeps it alive by a bind mount on the file `path`, which
 * exists. The caller stays where it is. */
int ftvm_namespace_keep_network(const char *path);

/* A socket (close-on-exec) in the network namespace that `network` is open on; the caller stays
 * where it is. */
int ftvm_namespace_socket(int network, int domain, int type, int protocol);

/* Takes a name, unique in this network namespace, for this process: a descriptor that holds it
 * until it is closed or the process ends; -EADDRINUSE: another process has it. Leaves nothing
 * behind in any file system. */
int ftvm_namespace_claim(const char *name);
