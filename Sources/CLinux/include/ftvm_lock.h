#pragma once
#include <stdbool.h>
#include <stdint.h>

/* Open-file-description locks (fcntl(2), F_OFD_SETLK and F_OFD_GETLK; variadic, so not callable
 * from Swift). Such a lock belongs to the open file description: every descriptor that was
 * duplicated, inherited or passed from the one that took it holds it too, and the kernel drops it
 * when the last of them is closed, at the latest when the last process that has one is gone. A
 * length of 0 means up to the end of the file, however long it becomes. */

/* Takes the lock without waiting. 0, or -EAGAIN when another open file description holds a lock
 * that conflicts, or another -errno. An exclusive lock needs a descriptor open for writing. */
int ftvm_lock_set(int descriptor, int64_t start, int64_t length, bool exclusive);

/* Gives the lock back, for every descriptor of the same open file description. 0 or -errno. */
int ftvm_lock_clear(int descriptor, int64_t start, int64_t length);

/* Whether an exclusive lock could be taken through `descriptor`: 0 it could (no other open file
 * description holds one), 1 it could not, or -errno. A lock of the descriptor's own open file
 * description is not seen: ask through one opened for the purpose; open for reading is enough. */
int ftvm_lock_query(int descriptor, int64_t start, int64_t length);
