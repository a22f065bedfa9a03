import CLinux
import Glibc
import Model

/// The words of the operating system for a negative errno.
func errorText(_ result: Int32) -> String { String(cString: strerror(-result)) }

/// An error of the operating system, a negative errno, as one of ours.
func diskError(_ result: Int32, _ message: String, advice: String? = nil) -> FtvmError {
    let code: FtvmError.Code =
        switch -result {
        case ENOENT, ENOTDIR: .notFound
        case EACCES, EPERM, EROFS: .permissionDenied
        case ENOSPC, ENOMEM, EDQUOT, EMFILE, ENFILE: .resourceExhausted
        case EEXIST: .alreadyExists
        case ECONNREFUSED, ECONNRESET, EPIPE: .unavailable
        case EAGAIN, ETIMEDOUT: .timedOut
        case EINVAL, ENAMETOOLONG, ENOTBLK: .invalidArgument
        default: .internalError
        }
    return FtvmError(code, message, cause: errorText(result), advice: advice)
}

/// Mistakes that tests plant, to see that the block-level checker finds them. Set once, before any
/// thread starts, and by tests only.
package enum PlantedBug: String, CaseIterable, Sendable {
    /// A promotion does not cut the log.
    case keepsUncommitted
    /// Applies what no commit covers.
    case appliesUnsealed
    /// Says applied before the images are synced.
    case appliedBeforeSync
    /// Merges writes across a flush marker.
    case mergesAcrossFlush
    /// Syncs the last disk of a group only.
    case syncsOneDisk
    /// Takes what the storage has begun to write for stable.
    case trustsWriteback
    /// Of several writes to a block in one group the first wins.
    case oldestWins
    /// Answers before the record is in the log.
    case headTooLate
    /// Publishes the head before the data are there.
    case headTooEarly
    /// Reads do not look into the log.
    case readsImageOnly
    /// The index forgets a group although newer writes cover it.
    case forgetsNewer
    /// Trims are forgotten when they are applied.
    case dropsTrims
    /// Applies without looking at the CRC of the data.
    case ignoresDamage
    /// Takes no notice of a lock that somebody else has.
    case ignoresLock
    /// Applies without looking at the generation.
    case ignoresGeneration
    /// Does not rebuild the index from the log.
    case startsEmpty
    /// Says durable before the journal is synced.
    case journalNotSynced
    /// Leaves an old batch in the journal while younger writes reach the images.
    case staleJournal
    /// Believes what reads show of the journal, which may not be stable.
    case journalNotSettled
    /// A flush of one disk holds no packets.
    case forgetsFlush

    nonisolated(unsafe) package static var active: PlantedBug?
}

/// A mutex with a condition, for data that several threads share; waits have an end.
final class Turnstile: @unchecked Sendable {
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    init() {
        pthread_mutex_init(mutex, nil)
        var attributes = pthread_condattr_t()
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(condition, &attributes)
        pthread_condattr_destroy(&attributes)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    @inline(__always) func lock() { pthread_mutex_lock(mutex) }
    @inline(__always) func unlock() { pthread_mutex_unlock(mutex) }

    /// Wakes all who wait.
    func broadcast() { pthread_cond_broadcast(condition) }

    /// Waits, with the lock held, for a broadcast, at most this long; may end early.
    func wait(milliseconds: Int) {
        let deadline = ftvm_disk_now() + UInt64(milliseconds) * 1_000_000
        var time = timespec(
            tv_sec: Int(deadline / 1_000_000_000), tv_nsec: Int(deadline % 1_000_000_000))
        pthread_cond_timedwait(condition, mutex, &time)
    }
}

/// A readers-writer lock that lets a waiting writer go first.
final class SharedLock: @unchecked Sendable {
    private let lock = UnsafeMutablePointer<pthread_rwlock_t>.allocate(capacity: 1)

    init() {
        var attributes = pthread_rwlockattr_t()
        pthread_rwlockattr_init(&attributes)
        pthread_rwlockattr_setkind_np(
            &attributes, Int32(PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP))
        pthread_rwlock_init(lock, &attributes)
        pthread_rwlockattr_destroy(&attributes)
    }

    deinit {
        pthread_rwlock_destroy(lock)
        lock.deallocate()
    }

    @inline(__always) func read<Result>(_ body: () -> Result) -> Result {
        pthread_rwlock_rdlock(lock)
        defer { pthread_rwlock_unlock(lock) }
        return body()
    }

    @inline(__always) func write<Result>(_ body: () -> Result) -> Result {
        pthread_rwlock_wrlock(lock)
        defer { pthread_rwlock_unlock(lock) }
        return body()
    }
}
