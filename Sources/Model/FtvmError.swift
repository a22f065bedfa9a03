/// Every error that a user can meet: what happened to what (`message`), why (`cause`) and what to do
/// next (`advice`). The code decides the exit status of `ftvm` and the status of the HTTP answer.
public struct FtvmError: Error, Hashable, Sendable, Codable, CustomStringConvertible {
    public enum Code: String, Sendable, Codable, CaseIterable {
        /// The request itself is wrong: bad argument, bad configuration.
        case invalidArgument = "invalid-argument"
        /// The named domain, pair, host, pool or segment does not exist.
        case notFound = "not-found"
        /// It is already so: already enabled, already disabled, exists.
        case alreadyExists = "already-exists"
        /// The domain, host or kernel cannot be protected as it is.
        case unsupported = "unsupported"
        /// Not possible in the present state; it may be later (no secondary, promotion under way).
        case failedPrecondition = "failed-precondition"
        /// Pool, log or limit is full.
        case resourceExhausted = "resource-exhausted"
        /// The daemon, libvirt, QEMU or the store does not answer.
        case unavailable = "unavailable"
        /// It took longer than allowed.
        case timedOut = "timed-out"
        /// Not root, or not allowed.
        case permissionDenied = "permission-denied"
        /// Somebody else was first: a compare-and-swap lost, or this generation has been fenced.
        case conflict = "conflict"
        /// A segment's contents fail their checks.
        case dataCorrupted = "data-corrupted"
        /// A defect of ftvm.
        case internalError = "internal"
    }

    public var code: Code
    /// What happened, to what. One sentence without a full stop.
    public var message: String
    /// Why, as far as known: the lower layer's words.
    public var cause: String?
    /// What to do next.
    public var advice: String?

    public init(_ code: Code, _ message: String, cause: String? = nil, advice: String? = nil) {
        self.code = code
        self.message = message
        self.cause = cause
        self.advice = advice
    }

    /// `message: cause (advice)`, for logs; the CLI prints the three parts on lines of their own.
    public var description: String {
        var text = message
        if let cause { text += ": \(cause)" }
        if let advice { text += " (\(advice))" }
        return text
    }

    /// Exit status of `ftvm`, documented in `Documentation/ExitCodes.md`.
    public var exitStatus: Int32 { code.exitStatus }
}

extension FtvmError.Code {
    public var exitStatus: Int32 {
        switch self {
        case .internalError: 1
        case .invalidArgument: 2
        case .notFound: 3
        case .alreadyExists: 4
        case .unsupported: 5
        case .failedPrecondition: 6
        case .resourceExhausted: 7
        case .unavailable: 8
        case .timedOut: 9
        case .permissionDenied: 10
        case .conflict: 11
        case .dataCorrupted: 12
        }
    }
}

extension FtvmError {
    /// Any error as one of ours, so that nothing reaches a user as a bare enum case.
    public init(wrapping error: any Error, _ message: String) {
        if let known = error as? FtvmError {
            self.init(
                known.code, message,
                cause: known.cause.map { "\(known.message): \($0)" }
                    ?? known.message, advice: known.advice)
        } else {
            self.init(.internalError, message, cause: "\(error)")
        }
    }
}
