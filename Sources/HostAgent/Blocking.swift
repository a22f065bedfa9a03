import Dispatch

/// Runs work that blocks (libvirt, QMP, copying memory) on a thread of its own, so that it takes none of the
/// few threads that `await` shares.
func blocking<Value: Sendable>(
    _ work: @escaping @Sendable () throws -> Value
) async throws -> Value {
    try await withCheckedThrowingContinuation { continuation in
        blockingQueue.async { continuation.resume(with: Result { try work() }) }
    }
}

private let blockingQueue = DispatchQueue(
    label: "ftvm.blocking", qos: .userInitiated, attributes: .concurrent)
