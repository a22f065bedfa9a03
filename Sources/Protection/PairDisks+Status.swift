import DiskLog
import Hypervisor
import Model

/// How fast the log reaches the images, over the last second or so. For one thread at a time.
package struct DiskRate: Sendable {
    private var lastBytes: UInt64 = 0
    private var lastNanoseconds: UInt64 = 0
    package private(set) var bytesPerSecond: Double = 0

    package init() {}

    /// - Parameter applied: bytes ever applied.
    package mutating func note(applied: UInt64, at now: UInt64) {
        guard lastNanoseconds > 0, applied >= lastBytes else {
            (lastBytes, lastNanoseconds) = (applied, now)
            return
        }
        let elapsed = now &- lastNanoseconds
        guard elapsed >= 500_000_000 else { return }
        bytesPerSecond = Double(applied - lastBytes) * 1e9 / Double(elapsed)
        (lastBytes, lastNanoseconds) = (applied, now)
    }
}

extension PairDisks {
    /// What keeps the log from reaching the images; nil when all is well.
    package var trouble: FtvmError? {
        if let failure = log.status.failure {
            return FtvmError(
                .resourceExhausted, "what the guest writes does not reach its disk images",
                cause: failure,
                advice: "nothing is lost: it is kept in the pool and tried again; make room on the "
                    + "images' storage, or repair it, then resume the guest if it has paused")
        }
        return serverFailure
    }
}
