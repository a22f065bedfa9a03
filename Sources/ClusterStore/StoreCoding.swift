import Foundation
import Model

/// Values of the store are JSON with sorted keys, so that equal records are equal bytes.
enum StoreCoding {
    static func encode(_ value: some Encodable, _ what: String) throws(FtvmError) -> Data {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        do {
            return try encoder.encode(value)
        } catch {
            throw FtvmError(
                .internalError, "\(what) cannot be written as JSON", cause: "\(error)")
        }
    }

    static func decode<Value: Decodable>(
        _ type: Value.Type, _ data: Data, _ what: String
    ) throws(FtvmError) -> Value {
        do {
            return try JSONDecoder().decode(type, from: data)
        } catch {
            throw FtvmError(
                .dataCorrupted, "\(what) in the cluster store cannot be understood",
                cause: "\(error)", advice: "run the same version of ftvm on every host")
        }
    }
}
