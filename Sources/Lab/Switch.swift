import CLinux
import Foundation
import Model

/// The lab's switch: a bridge in a network namespace of its own, with one port per host that is
/// called like the host. Clients run in that namespace too.
struct Switch {
    let layout: LabLayout

    func make() async throws {
        try Files.write("", to: layout.switchNetwork)
        let result = ftvm_namespace_keep_network(layout.switchNetwork)
        guard result == 0 else {
            throw systemFailure("cannot make the switch's network namespace", -result)
        }
        let bridge = LabLayout.switchBridge
        try await ip(["link", "set", "lo", "up"])
        // An address of its own: the kernel would give it one of its ports', and another one when that host dies, and
        // guests would go on sending to the old one.
        try await ip([
            "link", "add", bridge, "address", LabLayout.switchHardwareAddress, "type", "bridge",
            "forward_delay", "0",
        ])
        try await ip([
            "address", "add", "\(LabLayout.switchAddress)/\(LabLayout.prefixLength)", "dev",
            bridge,
        ])
        try await ip(["link", "set", bridge, "up"])
    }

    /// Removes what is left of a dead host's cable: the kernel does so too, but some time later.
    func unplug(_ host: HostName) async throws {
        guard try await ports()[host] != nil else { return }
        let outcome = try await Tool.attempt(command(["ip", "link", "delete", host.text]))
        guard outcome.status != 0, try await ports()[host] != nil else { return }
        throw FtvmError(
            .internalError, "cannot remove port \(host) of the switch", cause: outcome.errorOutput)
    }

    func setPort(of host: HostName, up: Bool) async throws {
        try await ip(["link", "set", host.text, up ? "up" : "down"])
    }

    /// Every host that has a port, and whether the port is up.
    func ports() async throws -> [HostName: Bool] {
        struct Link: Decodable {
            let ifname: String
            let flags: [String]
            let master: String?
        }
        let text = try await ip(["-json", "link", "show"])
        let links = try JSONDecoder().decode([Link].self, from: Data(text.utf8))
        var ports: [HostName: Bool] = [:]
        for link in links where link.ifname != "lo" && link.ifname != LabLayout.switchBridge {
            ports[HostName(link.ifname)] = link.flags.contains("UP")
        }
        return ports
    }

    /// A command that runs in the switch's namespace.
    func command(_ arguments: [String]) -> [String] {
        ["nsenter", "--net=\(layout.switchNetwork)", "--"] + arguments
    }

    @discardableResult
    private func ip(_ arguments: [String]) async throws -> String {
        try await Tool.run(command(["ip"] + arguments))
    }
}
