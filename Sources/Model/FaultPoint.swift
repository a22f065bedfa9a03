/// A named place in a protocol where tests may end the process. `FaultPoint.reached` costs one
/// optional check when no hook is set, and the hook is set only once, before any thread starts.
public enum FaultPoint {
    nonisolated(unsafe) public static var hook: (@Sendable (String) -> Void)?
    /// Stands for the kernel that this process runs on, where tests play several machines on one: locks on a
    /// segment are then seen by processes with the same number only. Set once, before any thread starts.
    nonisolated(unsafe) public static var foreignKernel: Int64 = 0

    @inline(__always)
    public static func reached(_ name: StaticString) {
        if let hook { hook(String(describing: name)) }
    }
}
