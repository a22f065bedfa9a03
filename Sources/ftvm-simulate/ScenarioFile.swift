import Foundation
import Model
import Simulator

enum ScenarioFile {
    /// - Throws: `notFound` when the file cannot be read; `invalidArgument` for what it says.
    static func play(_ path: String) throws -> String {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else {
            throw FtvmError(.notFound, "cannot read the scenario \(path)")
        }
        return try Scenario.play(text)
    }
}
