/// A lease: keys that were written with it vanish when it ends, which is when nobody has kept it
/// alive for its time to live.
///
/// It may end later than that (etcd gives every lease its full time again when the leader changes),
/// never earlier. So a holder that counts, on its own monotonic clock, from before the call that
/// granted or kept the lease to `timeToLiveMilliseconds` later knows how long it certainly has it;
/// others know that it has ended when the keys are gone.
package struct StoreLease: Sendable, Hashable {
    package let number: Int64
    /// What the store granted, which may be more than was asked for: etcd counts in seconds and has
    /// a minimum (2 s with its default settings).
    package let timeToLiveMilliseconds: Int

    package init(number: Int64, timeToLiveMilliseconds: Int) {
        self.number = number
        self.timeToLiveMilliseconds = timeToLiveMilliseconds
    }
}
