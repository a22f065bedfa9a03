// swift-format-ignore-file: AlwaysUseLowerCamelCase

import Foundation

// etcd's JSON gateway (etcd 3.4, Documentation/dev-guide/api_grpc_gateway.md): keys and values are
// base64, 64-bit numbers are strings, and what has its default value is left out.

/// A 64-bit number, which the gateway writes as a string.
struct EtcdNumber: Codable, Sendable, Hashable {
    var value: Int64

    init(_ value: Int64) { self.value = value }

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        if let text = try? container.decode(String.self) {
            guard let number = Int64(text) else {
                throw DecodingError.dataCorruptedError(
                    in: container, debugDescription: "\(text) is not a 64-bit number")
            }
            value = number
        } else {
            value = try container.decode(Int64.self)
        }
    }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(String(value))
    }
}

struct EtcdHeader: Decodable, Sendable {
    var revision: EtcdNumber?
}

struct EtcdKeyValue: Decodable, Sendable {
    var key: Data
    var value: Data?
    var mod_revision: EtcdNumber?
}

struct EtcdRange: Encodable, Sendable {
    var key: Data
    var range_end: Data?
    var limit: EtcdNumber?
    var sort_order: String?
    var keys_only: Bool?
}

struct EtcdRangeAnswer: Decodable, Sendable {
    var header: EtcdHeader?
    var kvs: [EtcdKeyValue]?
}

struct EtcdPut: Encodable, Sendable {
    var key: Data
    var value: Data
    var lease: EtcdNumber?
}

struct EtcdDelete: Encodable, Sendable {
    var key: Data
    var range_end: Data?
}

/// The answer to a put or a delete.
struct EtcdWriteAnswer: Decodable, Sendable {
    var header: EtcdHeader?
}

struct EtcdCompare: Encodable, Sendable {
    var key: Data
    var target = "MOD"
    /// 0: the key does not exist.
    var mod_revision: EtcdNumber
    var result = "EQUAL"
}

struct EtcdOperation: Encodable, Sendable {
    var request_put: EtcdPut?
    var request_range: EtcdRange?
    var request_delete_range: EtcdDelete?
}

struct EtcdTransaction: Encodable, Sendable {
    var compare: [EtcdCompare]
    var success: [EtcdOperation]
    var failure: [EtcdOperation]
}

struct EtcdTransactionAnswer: Decodable, Sendable {
    struct Response: Decodable, Sendable {
        var response_range: EtcdRangeAnswer?
    }
    var header: EtcdHeader?
    var succeeded: Bool?
    var responses: [Response]?
}

struct EtcdLeaseGrant: Encodable, Sendable {
    /// Seconds.
    var TTL: EtcdNumber
}

struct EtcdLeaseID: Encodable, Sendable {
    var ID: EtcdNumber
}

struct EtcdLeaseAnswer: Decodable, Sendable {
    var ID: EtcdNumber?
    /// Seconds; left out for a lease that is gone.
    var TTL: EtcdNumber?
}

/// A line of an answer that streams.
struct EtcdStreamed<Value: Decodable & Sendable>: Decodable, Sendable {
    var result: Value?
    var error: EtcdGatewayError?
}

struct EtcdWatchRequest: Encodable, Sendable {
    struct Create: Encodable, Sendable {
        var key: Data
        var range_end: Data
        var start_revision: EtcdNumber
    }
    var create_request: Create
}

struct EtcdWatchAnswer: Decodable, Sendable {
    struct Event: Decodable, Sendable {
        /// Left out for a put.
        var type: String?
        var kv: EtcdKeyValue
    }
    var header: EtcdHeader?
    var canceled: Bool?
    var cancel_reason: String?
    /// Set when the revision that was asked for is no longer kept.
    var compact_revision: EtcdNumber?
    var events: [Event]?
}

struct EtcdAuthenticate: Encodable, Sendable {
    var name: String
    var password: String
}

struct EtcdToken: Decodable, Sendable {
    var token: String?
}

struct EtcdNothing: Codable, Sendable {}

struct EtcdStatus: Decodable, Sendable {
    var leader: EtcdNumber?
    var errors: [String]?
}

/// How the gateway says that something failed: a gRPC status.
struct EtcdGatewayError: Decodable, Sendable {
    var code: Int?
    var grpc_code: Int?
    var message: String?
    var error: String?

    /// The gRPC code; 2 (unknown) when there is none.
    var status: Int { code ?? grpc_code ?? 2 }
    var text: String { message ?? error ?? "no reason given" }
}

extension Data {
    /// The first key after all that begin with this one: the last byte raised by one. Keys are
    /// UTF-8, in which 0xFF does not occur.
    var etcdPrefixEnd: Data {
        var end = self
        guard let last = end.popLast() else { return Data([0]) }
        precondition(last < 0xFF, "keys are UTF-8")
        end.append(last + 1)
        return end
    }
}
