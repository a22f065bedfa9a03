import Model

extension FtvmError.Code {
    /// Status of the HTTP answer that carries an error of this code. Several codes share a status; the
    /// answer's body (`FtvmError` as JSON) has the exact one.
    public var httpStatus: Int {
        switch self {
        case .invalidArgument: 400
        case .permissionDenied: 403
        case .notFound: 404
        case .alreadyExists, .conflict: 409
        case .failedPrecondition: 412
        case .unsupported: 422
        case .internalError, .dataCorrupted: 500
        case .unavailable: 503
        case .timedOut: 504
        case .resourceExhausted: 507
        }
    }

    /// The code for an answer whose body is not ours (a proxy's, a router's).
    public init(httpStatus: Int) {
        self =
            switch httpStatus {
            case 401, 403: .permissionDenied
            case 404: .notFound
            case 408, 504: .timedOut
            case 409: .conflict
            case 412: .failedPrecondition
            case 405, 415, 422, 501: .unsupported
            case 413, 429, 507: .resourceExhausted
            case 400..<500: .invalidArgument
            case 502, 503: .unavailable
            default: .internalError
            }
    }
}

extension FtvmError {
    /// The error that a failed answer stands for: its body where that is an `FtvmError`.
    public init(httpStatus: Int, body: some Collection<UInt8>) {
        if let known = try? ControlJSON.decode(FtvmError.self, from: body) {
            self = known
            return
        }
        let text = String(decoding: body.prefix(400), as: UTF8.self)
        self.init(
            FtvmError.Code(httpStatus: httpStatus),
            "ftvmd answered with HTTP status \(httpStatus)", cause: text.isEmpty ? nil : text)
    }
}
