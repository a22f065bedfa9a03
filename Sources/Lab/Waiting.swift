import Model

/// Polls until `condition` gives a value.
/// - Throws: `FtvmError` `timedOut` with `message` after `limit`, or what `condition` throws.
package func waitFor<Value>(
    _ message: String, limit: Duration, period: Duration = .milliseconds(10),
    _ condition: () async throws -> Value?
) async throws -> Value {
    let clock = ContinuousClock()
    let deadline = clock.now + limit
    while true {
        if let value = try await condition() { return value }
        guard clock.now < deadline else {
            throw FtvmError(.timedOut, "waited \(limit) in vain: \(message)")
        }
        try await Task.sleep(for: period)
    }
}
