import CLibvirt
import Foundation
import Model
import Synchronization

/// One open connection. libvirt's connections may be used from any thread; calls block.
final class LibvirtConnection: @unchecked Sendable {
    let pointer: virConnectPtr
    private let callbacks = Mutex<[Int32]>([])

    /// Takes over a reference.
    init(owning pointer: virConnectPtr) { self.pointer = pointer }

    deinit { virConnectClose(pointer) }

    /// Opens a connection and makes sure that a dead daemon is noticed.
    /// - Parameter keepAliveSeconds: after about three times this long without an answer the
    ///   connection is closed. Drivers without a daemon have no use for it.
    static func open(uri: String, keepAliveSeconds: Int32) throws -> LibvirtConnection {
        LibvirtEventLoop.start()
        guard let pointer = virConnectOpen(uri) else {
            throw LibvirtError.last("cannot connect to libvirt at \(uri)")
        }
        let connection = LibvirtConnection(owning: pointer)
        if virConnectSetKeepAlive(pointer, keepAliveSeconds, 2) < 0 {
            let error = LibvirtError.last("cannot watch the connection to libvirt at \(uri)")
            // A driver within this process has no connection that could go dead.
            guard error.code == .unsupported else { throw error }
        }
        return connection
    }

    var isAlive: Bool { virConnectIsAlive(pointer) == 1 }

    /// Has events of all domains, and the end of the connection, sent to `target`.
    func register(_ target: EventTarget) throws {
        let numbers = [
            ftvm_libvirt_register_lifecycle(
                pointer, EventTarget.lifecycle, target.retained(), EventTarget.release),
            ftvm_libvirt_register_reboot(
                pointer, EventTarget.reboot, target.retained(), EventTarget.release),
        ]
        callbacks.withLock { $0 = numbers.filter { $0 >= 0 } }
        guard numbers.allSatisfy({ $0 >= 0 }) else {
            throw LibvirtError.last("cannot listen to libvirt's events")
        }
        // Drivers without a daemon have no connection that could end.
        _ = virConnectRegisterCloseCallback(
            pointer, EventTarget.close, target.retained(), EventTarget.release)
    }

    /// Takes the callbacks back. Each of them holds a reference to the connection: without this it
    /// would never be closed.
    func unregister() {
        for number in callbacks.withLock({ $0 }) {
            virConnectDomainEventDeregisterAny(pointer, number)
        }
        callbacks.withLock { $0 = [] }
        virConnectUnregisterCloseCallback(pointer, EventTarget.close)
    }

    /// The domain that is meant; throws `.notFound`.
    func domain(_ identifier: DomainIdentifier) throws -> LibvirtDomain {
        let found =
            switch identifier {
            case .name(let name): virDomainLookupByName(pointer, name)
            case .uuid(let uuid): virDomainLookupByUUIDString(pointer, uuid)
            }
        guard let found else {
            let error = LibvirtError.last("there is no domain \(identifier)")
            guard error.code == .notFound else {
                throw FtvmError(
                    error.code, "cannot look up domain \(identifier)", cause: error.cause)
            }
            throw error
        }
        return LibvirtDomain(owning: found)
    }
}

/// How a caller names a domain.
package enum DomainIdentifier: Hashable, Sendable, CustomStringConvertible {
    case name(String)
    /// Lower case with dashes.
    case uuid(String)

    package var description: String {
        switch self {
        case .name(let name): name
        case .uuid(let uuid): uuid
        }
    }
}

/// A reference to a domain.
final class LibvirtDomain: @unchecked Sendable {
    let pointer: virDomainPtr
    // Read once: even asking for the name resets libvirt's last error, which is then lost for the
    // message that was to have both.
    let name: String
    let uuid: String

    /// Takes over a reference.
    init(owning pointer: virDomainPtr) {
        self.pointer = pointer
        self.name = virDomainGetName(pointer).map { String(cString: $0) } ?? "?"
        self.uuid = LibvirtDomain.uuid(pointer) ?? "?"
    }

    deinit { virDomainFree(pointer) }

    static func uuid(_ pointer: virDomainPtr?) -> String? {
        guard let pointer else { return nil }
        return withUnsafeTemporaryAllocation(of: CChar.self, capacity: Int(VIR_UUID_STRING_BUFLEN))
        {
            buffer in
            guard let base = buffer.baseAddress, virDomainGetUUIDString(pointer, base) == 0 else {
                return nil
            }
            return String(cString: base)
        }
    }

    /// Throws libvirt's error when `result` says that a call failed.
    @discardableResult
    func check(_ result: Int32, _ what: String) throws -> Int32 {
        guard result >= 0 else { throw LibvirtError.last("cannot \(what) domain \(name)") }
        return result
    }

    func xml(_ flags: virDomainXMLFlags...) throws -> String {
        let bits = flags.reduce(0) { $0 | $1.rawValue }
        guard let text = virDomainGetXMLDesc(pointer, bits) else {
            throw LibvirtError.last("cannot read the XML of domain \(name)")
        }
        defer { free(text) }
        return String(cString: text)
    }
}

/// libvirt's event loop: one for the process, on a thread of its own. Keep-alive, events and the
/// notice of a closed connection depend on it.
enum LibvirtEventLoop {
    /// Starts it before the first connection is opened; later calls do nothing.
    static func start() { _ = started }

    private static let started: Void = {
        _ = LibvirtError.silence
        precondition(virInitialize() == 0, "libvirt cannot be initialised")
        precondition(virEventRegisterDefaultImpl() == 0, "libvirt has no event loop")
        let thread = Thread {
            while true {
                // An error here (EINTR in poll, for example) concerns one round only.
                if virEventRunDefaultImpl() < 0 { Thread.sleep(forTimeInterval: 0.01) }
            }
        }
        thread.name = "libvirt-events"
        thread.start()
    }()
}
