/// Follows from which port of the switch the guest's frames come. Each failover and each switchover moves the guest once,
/// so a port that comes up again in between means that two QEMUs were sending.
package struct PortJudge: Sendable {
    package private(set) var stretches: [CaptureReport.Stretch] = []

    package init() {}

    package mutating func judge(port: String, at time: UInt64) {
        if let last = stretches.indices.last, stretches[last].port == port {
            stretches[last].to = time
            stretches[last].frames += 1
        } else {
            stretches.append(.init(port: port, from: time, to: time, frames: 1))
        }
    }
}
