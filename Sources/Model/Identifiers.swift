/// A host of the cluster: one libvirt daemon and one `ftvmd`; a failure domain.
public struct HostName: Hashable, Sendable, Comparable, CustomStringConvertible {
    public let text: String
    public init(_ text: String) { self.text = text }
    public var description: String { text }
    public static func < (left: HostName, right: HostName) -> Bool { left.text < right.text }
}

/// A pair is called like the libvirt domain that it protects; the name is unique in the cluster.
public struct PairName: Hashable, Sendable, Comparable, CustomStringConvertible {
    public let text: String
    public init(_ text: String) { self.text = text }
    public var description: String { text }
    public static func < (left: PairName, right: PairName) -> Bool { left.text < right.text }
}

/// A pool, by the name that it has in every host's configuration.
public struct PoolName: Hashable, Sendable, Comparable, CustomStringConvertible {
    public let text: String
    public init(_ text: String) { self.text = text }
    public var description: String { text }
    public static func < (left: PoolName, right: PoolName) -> Bool { left.text < right.text }
}

/// Number of a primary's term, raised durably before every promotion: the fencing token.
/// Only 24 bits are used, so that it shares a machine word with the epoch (see `SegmentPosition`).
public struct Generation: Hashable, Sendable, Comparable, CustomStringConvertible {
    public static let maximum: UInt64 = (1 << 24) - 1
    public let number: UInt64
    public init(_ number: UInt64) {
        precondition(number <= Generation.maximum, "a generation has 24 bits")
        self.number = number
    }
    public var next: Generation { Generation(number + 1) }
    public var description: String { String(number) }
    public static func < (left: Generation, right: Generation) -> Bool {
        left.number < right.number
    }
}

/// Number of an epoch within the life of a segment; 40 bits. Epoch 0 is "nothing committed yet".
public struct Epoch: Hashable, Sendable, Comparable, CustomStringConvertible {
    public static let maximum: UInt64 = (1 << 40) - 1
    public let number: UInt64
    public init(_ number: UInt64) {
        precondition(number <= Epoch.maximum, "an epoch has 40 bits")
        self.number = number
    }
    public var next: Epoch { Epoch(number + 1) }
    public var description: String { String(number) }
    public static func < (left: Epoch, right: Epoch) -> Bool { left.number < right.number }
}

/// What a segment's compare-and-swap word holds: the generation that may commit and the epoch
/// that was committed last.
public struct SegmentPosition: Hashable, Sendable, CustomStringConvertible {
    public let generation: Generation
    public let epoch: Epoch
    public init(generation: Generation, epoch: Epoch) {
        self.generation = generation
        self.epoch = epoch
    }
    /// The word as it stands in the segment: generation in the upper 24 bits, epoch in the lower 40.
    public init(word: UInt64) {
        self.init(generation: Generation(word >> 40), epoch: Epoch(word & Epoch.maximum))
    }
    public var word: UInt64 { generation.number << 40 | epoch.number }
    public var description: String { "generation \(generation), epoch \(epoch)" }
}

extension HostName: Codable {
    public init(from decoder: any Decoder) throws {
        self.init(try decoder.singleValueContainer().decode(String.self))
    }
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(text)
    }
}

extension PairName: Codable {
    public init(from decoder: any Decoder) throws {
        self.init(try decoder.singleValueContainer().decode(String.self))
    }
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(text)
    }
}

extension PoolName: Codable {
    public init(from decoder: any Decoder) throws {
        self.init(try decoder.singleValueContainer().decode(String.self))
    }
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(text)
    }
}

extension Generation: Codable {
    public init(from decoder: any Decoder) throws {
        let number = try decoder.singleValueContainer().decode(UInt64.self)
        guard number <= Generation.maximum else {
            throw DecodingError.dataCorrupted(
                .init(codingPath: decoder.codingPath, debugDescription: "generation over 24 bits"))
        }
        self.init(number)
    }
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(number)
    }
}

extension Epoch: Codable {
    public init(from decoder: any Decoder) throws {
        let number = try decoder.singleValueContainer().decode(UInt64.self)
        guard number <= Epoch.maximum else {
            throw DecodingError.dataCorrupted(
                .init(codingPath: decoder.codingPath, debugDescription: "epoch over 40 bits"))
        }
        self.init(number)
    }
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(number)
    }
}
