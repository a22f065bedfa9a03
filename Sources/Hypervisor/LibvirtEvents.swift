import CLibvirt
import Logging
import Model
import Synchronization

/// Hands libvirt's events to everybody who listens. Called on libvirt's event thread: it never
/// waits.
package final class EventHub: Sendable {
    private struct State {
        var next = 0
        var streams: [Int: AsyncStream<HostEvent>.Continuation] = [:]
        var dropped = 0
        var isFinished = false
    }

    private let limit: Int
    private let logger: Logger
    private let state = Mutex(State())

    /// - Parameter limit: events that a slow listener may leave waiting; then its oldest are
    ///   dropped.
    package init(limit: Int, logger: Logger) {
        self.limit = limit
        self.logger = logger
    }

    /// Events dropped so far, over all listeners.
    package var dropped: Int { state.withLock(\.dropped) }

    /// Events from now on; a stream that ends at once after `finish`.
    package func subscribe() -> AsyncStream<HostEvent> {
        let (stream, continuation) = AsyncStream.makeStream(
            of: HostEvent.self, bufferingPolicy: .bufferingNewest(limit))
        let number: Int? = state.withLock { state in
            guard !state.isFinished else { return nil }
            state.next += 1
            state.streams[state.next] = continuation
            return state.next
        }
        guard let number else {
            continuation.finish()
            return stream
        }
        continuation.onTermination = { [weak self] _ in
            self?.state.withLock { $0.streams[number] = nil }
        }
        return stream
    }

    package func send(_ event: HostEvent) {
        let continuations = state.withLock { Array($0.streams.values) }
        for continuation in continuations {
            guard case .dropped = continuation.yield(event) else { continue }
            let count = state.withLock { state in
                state.dropped += 1
                return state.dropped
            }
            logger.warning(
                "libvirt event dropped: a listener is too slow", metadata: ["all": "\(count)"])
        }
    }

    /// Ends all streams, present and future ones.
    package func finish() {
        let continuations = state.withLock { state in
            state.isFinished = true
            return Array(state.streams.values)
        }
        for continuation in continuations { continuation.finish() }
    }
}

/// What libvirt's callbacks get as their opaque pointer; libvirt holds a reference until the
/// callback is taken back.
final class EventTarget: Sendable {
    let hub: EventHub
    /// Called once when libvirt says that the connection is closed.
    let closed: @Sendable (String) -> Void

    init(hub: EventHub, closed: @escaping @Sendable (String) -> Void) {
        self.hub = hub
        self.closed = closed
    }

    /// One more reference for libvirt, to be given back through `release`.
    func retained() -> UnsafeMutableRawPointer { Unmanaged.passRetained(self).toOpaque() }

    private static func of(_ opaque: UnsafeMutableRawPointer?) -> EventTarget? {
        opaque.map { Unmanaged<EventTarget>.fromOpaque($0).takeUnretainedValue() }
    }

    static let release: virFreeCallback = { opaque in
        guard let opaque else { return }
        Unmanaged<EventTarget>.fromOpaque(opaque).release()
    }

    static let lifecycle: virConnectDomainEventCallback = { _, domain, event, detail, opaque in
        if let kind = DomainEvent.Kind(event: event, detail: detail) {
            EventTarget.of(opaque)?.send(domain, kind)
        }
        return 0
    }

    static let reboot: virConnectDomainEventGenericCallback = { _, domain, opaque in
        EventTarget.of(opaque)?.send(domain, .rebooted)
    }

    static let close: virConnectCloseFunc = { _, reason, opaque in
        let text =
            switch virConnectCloseReason(rawValue: UInt32(bitPattern: reason)) {
            case VIR_CONNECT_CLOSE_REASON_EOF: "the daemon ended the connection"
            case VIR_CONNECT_CLOSE_REASON_KEEPALIVE: "the daemon does not answer"
            case VIR_CONNECT_CLOSE_REASON_CLIENT: "closed by ftvmd"
            default: "the connection failed"
            }
        EventTarget.of(opaque)?.closed(text)
    }

    private func send(_ domain: virDomainPtr?, _ kind: DomainEvent.Kind) {
        guard let domain, let name = virDomainGetName(domain),
            let uuid = LibvirtDomain.uuid(domain)
        else { return }
        hub.send(.domain(DomainEvent(name: String(cString: name), uuid: uuid, kind: kind)))
    }
}
