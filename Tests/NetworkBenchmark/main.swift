import ControlAPI
import EndToEndSupport
import Foundation
import GuestClients
import Lab
import Model

// What protection costs clients, and what they notice of a failover: a real guest in a lab, asked from the lab's switch.
// Prints a Markdown table; ends with status 1 when a client was told anything wrong, or a promise was missed.

let bench = NetworkBench()
var status: Int32 = 0
do {
    try await bench.run()
} catch {
    FileHandle.standardError.write(Data("network benchmark: \(error)\n".utf8))
    status = 1
}
bench.table.print()
exit(bench.table.missed == 0 ? status : 1)
