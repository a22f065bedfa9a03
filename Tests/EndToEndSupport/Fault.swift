import Foundation
import Lab
import Model
import Testing

/// A named fault point at which the `ftvmd` of one of some hosts dies, once.
package struct Fault: CustomStringConvertible {
    package let lab: TestLab
    package let point: String
    /// The how-manieth time it is reached.
    package let pass: Int
    /// There until the fault has struck.
    private var file: String { lab.layout.directory + "/fault" }
    package var description: String { "fault \(point):\(pass)" }

    package init(_ lab: TestLab, _ point: String, pass: Int) {
        self.lab = lab
        self.point = point
        self.pass = pass
    }

    /// The hosts' `ftvmd` is started anew, with the fault. It may strike at once.
    package func arm(_ hosts: [HostName]) async throws {
        try "".write(toFile: file, atomically: true, encoding: .utf8)
        for host in hosts {
            try lab.setDaemonVariables(
                ["FTVM_FAULT='\(point):\(pass)'", "FTVM_FAULT_ONCE='\(file)'"], of: host)
            try await lab.killDaemon(host)
        }
    }

    /// Waits until the fault has struck: whoever it was has died, and not by our hand.
    package func strikes() async throws {
        try await eventually("\(self) strikes", seconds: 60) { () async throws -> Void? in
            FileManager.default.fileExists(atPath: file) ? nil : ()
        }
    }

    /// The names of all fault points.
    package static func pointsInSources() throws -> Set<String> {
        let sources = Settings.repository("Sources")
        let files = FileManager.default.enumerator(atPath: sources)?.compactMap { $0 as? String }
        var found: Set<String> = []
        for file in files ?? [] where file.hasSuffix(".swift") {
            let text = try String(contentsOfFile: "\(sources)/\(file)", encoding: .utf8)
            for match in text.matches(of: /FaultPoint\.reached\("([^"]+)"\)/) {
                found.insert(String(match.1))
            }
        }
        return found
    }

    package func disarm() async throws {
        for host in lab.hosts { try lab.setDaemonVariables([], of: host) }
    }
}
