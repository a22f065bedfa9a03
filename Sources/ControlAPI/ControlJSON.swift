import FoundationEssentials
import Model

/// The one JSON of API and CLI: lowerCamelCase keys, sorted, pretty; absent means nil.
public enum ControlJSON {
    public static let contentType = "application/json; charset=utf-8"

    /// - Parameter pretty: false for one value a line (`ftvm events --follow -o json`).
    public static func encode(_ value: some Encodable, pretty: Bool = true) throws -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        if pretty { encoder.outputFormatting.insert(.prettyPrinted) }
        return Array(try encoder.encode(value))
    }

    /// The same as text, without a line end.
    public static func text(_ value: some Encodable, pretty: Bool = true) throws -> String {
        String(decoding: try encode(value, pretty: pretty), as: UTF8.self)
    }

    public static func decode<Value: Decodable>(
        _ type: Value.Type = Value.self, from bytes: some Sequence<UInt8>
    ) throws -> Value {
        try JSONDecoder().decode(type, from: Data(bytes))
    }
}
