import CLibvirt
import Model

/// libvirt's errors as ours. libvirt keeps the last error for each thread: it must be read on the
/// thread that made the call, before anything else.
enum LibvirtError {
    /// Keeps libvirt from printing every error on standard error.
    static let silence: Void = {
        virSetErrorFunc(nil, { _, _ in })
    }()

    /// The last error of this thread.
    /// - Parameter message: what was to be done, to what.
    static func last(_ message: String) -> FtvmError {
        guard let pointer = virGetLastError() else {
            return FtvmError(.internalError, message, cause: "libvirt does not say why")
        }
        let error = pointer.pointee
        let text = error.message.map { String(cString: $0) } ?? "libvirt error \(error.code)"
        return make(number: error.code, domain: error.domain, text: text, message: message)
    }

    static func make(number: Int32, domain: Int32, text: String, message: String) -> FtvmError {
        var advice: String?
        let code: FtvmError.Code
        switch virErrorNumber(rawValue: UInt32(bitPattern: number)) {
        case VIR_ERR_NO_DOMAIN: code = .notFound
        case VIR_ERR_NO_DOMAIN_METADATA: code = .notFound
        case VIR_ERR_DOM_EXIST: code = .alreadyExists
        case VIR_ERR_INVALID_ARG, VIR_ERR_XML_ERROR, VIR_ERR_XML_DETAIL, VIR_ERR_XML_INVALID_SCHEMA,
            VIR_ERR_OS_TYPE, VIR_ERR_INVALID_DOMAIN:
            code = .invalidArgument
        case VIR_ERR_NO_SUPPORT, VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_OPERATION_UNSUPPORTED,
            VIR_ERR_ARGUMENT_UNSUPPORTED, VIR_ERR_CPU_INCOMPATIBLE:
            code = .unsupported
        case VIR_ERR_OPERATION_INVALID: code = .failedPrecondition
        case VIR_ERR_OPERATION_TIMEOUT, VIR_ERR_AGENT_UNRESPONSIVE: code = .timedOut
        case VIR_ERR_NO_CONNECT, VIR_ERR_INVALID_CONN, VIR_ERR_RPC, VIR_ERR_LIBSSH:
            code = .unavailable
            advice = "see whether libvirtd runs on this host"
        // A socket that cannot be connected to.
        case VIR_ERR_SYSTEM_ERROR where domain == VIR_FROM_RPC.value:
            code = .unavailable
            advice = "see whether libvirtd runs on this host"
        case VIR_ERR_AUTH_FAILED, VIR_ERR_OPERATION_DENIED, VIR_ERR_ACCESS_DENIED,
            VIR_ERR_AUTH_UNAVAILABLE, VIR_ERR_AUTH_CANCELLED:
            code = .permissionDenied
        case VIR_ERR_NO_MEMORY, VIR_ERR_RESOURCE_BUSY: code = .resourceExhausted
        default: code = .failedPrecondition
        }
        return FtvmError(code, message, cause: text, advice: advice)
    }
}

extension virErrorDomain {
    fileprivate var value: Int32 { Int32(bitPattern: rawValue) }
}
