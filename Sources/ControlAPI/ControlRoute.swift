import Model

/// The paths of the control API, shared by the daemon's router and the client.
///
/// Templates use `:name` for a parameter, as Hummingbird's router does. The router hands a parameter
/// over as it stood in the request; `decode(parameter:)` undoes the percent-encoding that the path
/// builders below apply. Within `/v1` only additions are made: a client ignores keys it does not know.
public enum ControlRoute {
    /// GET: `VersionView`.
    public static let version = "/v1/version"
    /// GET: `[PairView]` by name. POST an `EnableRequest`: 202 and the new `PairView`.
    public static let pairs = "/v1/pairs"
    /// GET: `PairView`. DELETE: 202 and the `PairView`; the pair is gone when GET answers 404.
    public static let pair = "/v1/pairs/:name"
    /// POST without a body: 202 and the `PairView` as it was when the request was taken.
    public static let promotePair = "/v1/pairs/:name/promote"
    /// POST a `SwitchoverRequest`: 202 and the `PairView`, whose `switchover` is the one asked for. DELETE: 202
    /// and the `PairView` without it.
    public static let switchover = "/v1/pairs/:name/switchover"
    /// POST a `DrillRequest`: 202 and a `DrillStart`; the fault has been made then, or `command` is to make it.
    public static let drill = "/v1/pairs/:name/drill"
    /// GET: `[DrillReport]`, newest last. POST a `DrillReport` that is finished: 202 and the report.
    public static let drills = "/v1/drills"
    /// GET: `HostDrainView`. POST a `DrainRequest`: 202 and the same. DELETE: into service again.
    public static let drain = "/v1/hosts/:name/drain"
    /// POST a `FenceHostRequest`: 202 and the `HostMembership`, whose `fence` tells how it goes.
    public static let fence = "/v1/hosts/:name/fence"
    /// GET: `[HostView]` by name.
    public static let hosts = "/v1/hosts"
    /// GET: `[ClusterEvent]`, see `EventQuery`.
    public static let events = "/v1/events"
    /// GET: `[PoolView]` in the order of the host's configuration.
    public static let pools = "/v1/pools"
    /// GET: `PoolDetailView`.
    public static let pool = "/v1/pools/:name"

    /// GET: `DoctorReport`; with `?domain=NAME` also of that domain. Takes some seconds.
    public static let doctor = "/v1/doctor"

    /// The parameter in the templates above.
    public static let nameParameter = "name"
    /// `true` in the query of a DELETE of a pair: the state of a guest that cannot go on is given up.
    public static let discardState = "discard-state"

    /// The largest request body that the daemon reads, in bytes.
    public static let requestBodyLimit = 64 * 1024
    /// The largest answer that the client reads, in bytes.
    public static let responseBodyLimit = 16 * 1024 * 1024

    public static func path(pair: PairName) -> String { pairs + "/" + encode(pair.text) }
    public static func promotePath(pair: PairName) -> String { path(pair: pair) + "/promote" }
    public static func switchoverPath(pair: PairName) -> String { path(pair: pair) + "/switchover" }
    public static func drillPath(pair: PairName) -> String { path(pair: pair) + "/drill" }
    public static func drainPath(host: HostName) -> String {
        hosts + "/" + encode(host.text) + "/drain"
    }
    public static func fencePath(host: HostName) -> String {
        hosts + "/" + encode(host.text) + "/fence"
    }
    public static func doctorPath(domain: String?) -> String {
        doctor + (domain.map { "?domain=" + encode($0) } ?? "")
    }
    public static func path(pool: PoolName) -> String { pools + "/" + encode(pool.text) }

    /// One path segment or query value with everything but RFC 3986's unreserved characters
    /// percent-encoded.
    public static func encode(_ text: String) -> String {
        let digits = Array("0123456789ABCDEF".utf8)
        var bytes: [UInt8] = []
        for byte in text.utf8 {
            if isUnreserved(byte) {
                bytes.append(byte)
            } else {
                bytes += [UInt8(ascii: "%"), digits[Int(byte >> 4)], digits[Int(byte & 15)]]
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// A path parameter or query value as it was before `encode`; nil if it is not valid
    /// percent-encoded UTF-8.
    public static func decode(parameter text: some StringProtocol) -> String? {
        var bytes: [UInt8] = []
        var rest = text.utf8.makeIterator()
        while let byte = rest.next() {
            guard byte == UInt8(ascii: "%") else {
                bytes.append(byte)
                continue
            }
            guard let high = rest.next().flatMap(hexValue), let low = rest.next().flatMap(hexValue)
            else { return nil }
            bytes.append(high << 4 | low)
        }
        return String(validating: bytes, as: UTF8.self)
    }

    private static func isUnreserved(_ byte: UInt8) -> Bool {
        switch byte {
        case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
            UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."),
            UInt8(ascii: "_"), UInt8(ascii: "~"):
            true
        default: false
        }
    }

    private static func hexValue(_ byte: UInt8) -> UInt8? {
        switch byte {
        case UInt8(ascii: "0")...UInt8(ascii: "9"): byte - UInt8(ascii: "0")
        case UInt8(ascii: "a")...UInt8(ascii: "f"): byte - UInt8(ascii: "a") + 10
        case UInt8(ascii: "A")...UInt8(ascii: "F"): byte - UInt8(ascii: "A") + 10
        default: nil
        }
    }
}

/// What to read of the event log: the query of `GET /v1/events`.
///
/// With `after`: the oldest `limit` events whose number is larger. Without: the newest `limit` events.
/// Either way the answer is in rising order of number, so a reader goes on from the last one it saw.
public struct EventQuery: Hashable, Sendable {
    public static let limitDefault = 100
    public static let limitMaximum = 1000

    public var after: UInt64?
    /// 1...`limitMaximum`.
    public var limit: Int
    /// Only the events of this pair; nil: all.
    public var pair: PairName?

    public init(after: UInt64? = nil, limit: Int = EventQuery.limitDefault, pair: PairName? = nil) {
        self.after = after
        self.limit = limit
        self.pair = pair
    }

    /// The query as the daemon receives it, each value already percent-decoded.
    ///
    /// - Throws: `FtvmError` `invalidArgument` that names the parameter.
    public init(after: String?, limit: String?, pair: String?) throws(FtvmError) {
        self.init()
        if let after {
            guard let number = UInt64(after) else {
                throw FtvmError(
                    .invalidArgument, "after=\(after) is not the number of an event")
            }
            self.after = number
        }
        if let limit {
            guard let number = Int(limit), (1...EventQuery.limitMaximum).contains(number) else {
                throw FtvmError(
                    .invalidArgument,
                    "limit=\(limit) is not a number from 1 to \(EventQuery.limitMaximum)")
            }
            self.limit = number
        }
        self.pair = pair.map { PairName($0) }
    }

    /// Path and query of the request.
    public var path: String {
        var items = ["limit=\(limit)"]
        if let after { items.append("after=\(after)") }
        if let pair { items.append("pair=\(ControlRoute.encode(pair.text))") }
        return ControlRoute.events + "?" + items.joined(separator: "&")
    }
}
