/// Judges what TCP carries from the guest: a byte of a connection that is sent again must be the same byte.
///
/// A guest that goes back behind a segment that was let out fills the same sequence numbers with something else, as soon
/// as anything in it depends on what has happened since.
package struct StreamJudge: Sendable {
    package struct Flow: Hashable, Sendable {
        package var addresses: UInt64
        package var ports: UInt32

        package init(addresses: UInt64, ports: UInt32) {
            self.addresses = addresses
            self.ports = ports
        }
    }

    /// The newest bytes of a flow: older ones are acknowledged long since and never sent again.
    private struct Window {
        /// The sequence number of the first byte kept, not wrapped.
        var base: UInt64
        var bytes: [UInt8]
        var end: UInt64 { base + UInt64(bytes.count) }
    }
    private var windows: [Flow: Window] = [:]
    package private(set) var findings = Findings()
    package private(set) var repeatedBytes = 0
    private static let keptBytes = 1 << 20

    package init() {}

    /// A connection begins, with the sequence number of its first byte.
    package mutating func begin(_ flow: Flow, at sequence: UInt32) {
        windows[flow] = Window(base: UInt64(sequence) + (1 << 32), bytes: [])
    }

    package mutating func judge(_ flow: Flow, at sequence: UInt32, _ payload: ArraySlice<UInt8>) {
        guard !payload.isEmpty else { return }
        guard var window = windows[flow] else {
            windows[flow] = Window(
                base: UInt64(sequence) + (1 << 32), bytes: Array(payload))
            return
        }
        // The 64-bit number nearest to the end that has these lower 32 bits.
        let distance = Int32(bitPattern: sequence &- UInt32(truncatingIfNeeded: window.end))
        let from = UInt64(Int64(window.end) + Int64(distance))
        if from > window.end {
            // We have missed something (the capture began later): nothing to compare with.
            window = Window(base: from, bytes: [])
        }
        let known = Int(min(UInt64(payload.count), window.end - from))
        let unkept = from < window.base ? Int(min(window.base - from, UInt64(payload.count))) : 0
        if unkept < known {
            let offset = Int(from + UInt64(unkept) - window.base)
            let old = window.bytes[offset..<(offset + known - unkept)]
            let new = payload.dropFirst(unkept).prefix(known - unkept)
            if old.elementsEqual(new) {
                repeatedBytes += known - unkept
            } else {
                findings.add(
                    "TCP bytes from port \(flow.ports >> 16) at \(sequence) were sent twice, differently: "
                        + "\(Self.text(old)) and then \(Self.text(new))")
            }
        }
        window.bytes += payload.dropFirst(known)
        if window.bytes.count > 2 * Self.keptBytes {
            let excess = window.bytes.count - Self.keptBytes
            window.bytes.removeFirst(excess)
            window.base += UInt64(excess)
        }
        windows[flow] = window
    }

    private static func text(_ bytes: ArraySlice<UInt8>) -> String {
        "'" + String(decoding: bytes.prefix(60), as: UTF8.self).filter { !$0.isNewline } + "'"
    }
}
