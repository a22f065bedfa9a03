import Foundation
import Model

/// Where everything of one lab is. All of it is under one directory, one cgroup and one claimed
/// name, so that whatever is left of a lab can be found and removed without any record of it.
package struct LabLayout: Hashable, Sendable {
    /// The lab's name: of its directory in /run, of its cgroup and of its switch.
    package let name: String

    package static let defaultName = "ftvm-lab"
    /// The name that commands use where none is given: `$FTVM_LAB`, or the default.
    package static var nameInEnvironment: String {
        guard let name = ProcessInfo.processInfo.environment["FTVM_LAB"], !name.isEmpty else {
            return defaultName
        }
        return name
    }

    /// - Throws: `FtvmError` `invalidArgument` for a name that is no plain file name.
    package init(name: String = LabLayout.defaultName) throws {
        let allowed = name.utf8.allSatisfy {
            ($0 >= 0x61 && $0 <= 0x7a) || ($0 >= 0x30 && $0 <= 0x39) || $0 == 0x2d
        }
        guard allowed, !name.isEmpty, name.utf8.count <= 32 else {
            throw FtvmError(
                .invalidArgument, "'\(name)' cannot be a lab's name",
                advice: "use 1 to 32 small letters, digits and dashes")
        }
        self.name = name
    }

    /// The lab's directory, a tmpfs of its own.
    package var directory: String { "/run/\(name)" }
    /// The tmpfs pool.
    package var pool: String { "\(directory)/pool" }
    /// The hugetlbfs pool.
    package var hugePool: String { "\(directory)/hugepool" }
    /// The directory of the pool of anonymous memory, where its keeper's socket is.
    package var memfdPool: String { "\(directory)/memfd" }
    var keeperLog: String { "\(directory)/keeper.log" }
    /// The embedded store that all hosts share.
    package var store: String { "\(directory)/store/store.sqlite" }
    /// The lab's record, JSON.
    var record: String { "\(directory)/lab.json" }
    /// The network namespace of the switch, kept alive by a bind mount.
    package var switchNetwork: String { "\(directory)/switch" }
    /// libvirt's drivers that the hosts load.
    var drivers: String { "\(directory)/drivers" }
    /// The program that every host starts with.
    var bootScript: String { "\(directory)/boot" }

    package func directory(of host: HostName) -> String { "\(directory)/hosts/\(host)" }
    /// `ftvmd`'s socket, reachable from everywhere on the machine.
    package func daemonSocket(of host: HostName) -> String { "\(directory(of: host))/ftvmd.sock" }
    package func daemonConfiguration(of host: HostName) -> String {
        "\(directory(of: host))/ftvmd.toml"
    }
    /// More of `ftvmd`'s configuration: empty, for whoever tries something out.
    package func configurationDirectory(of host: HostName) -> String {
        "\(directory(of: host))/conf.d"
    }
    /// The key that signs the hosts' heartbeats.
    var clusterKey: String { "\(directory)/cluster.key" }
    /// Variables that `ftvmd` gets when it is started next, if the file is there: `NAME=VALUE`
    /// lines.
    package func daemonEnvironment(of host: HostName) -> String {
        "\(directory(of: host))/ftvmd.environment"
    }
    package func daemonLog(of host: HostName) -> String { "\(directory(of: host))/ftvmd.log" }
    package func libvirtLog(of host: HostName) -> String { "\(directory(of: host))/libvirtd.log" }
    /// What the host's first process says.
    package func bootLog(of host: HostName) -> String { "\(directory(of: host))/boot.log" }
    package func libvirtSocket(of host: HostName) -> String {
        "\(directory(of: host))/libvirt/libvirt-sock"
    }
    /// libvirt's URI of a host, for use from outside it.
    package func libvirtURI(of host: HostName) -> String {
        "qemu+unix:///system?socket=\(libvirtSocket(of: host))"
    }

    /// The switch's bridge and its address, the default place for clients.
    static let switchBridge = "lab0"
    package static let switchAddress = "10.77.0.1"
    static let switchHardwareAddress = "52:54:00:77:02:01"
    static let prefixLength = 24
    static func address(ofHost number: Int) -> String { "10.77.0.\(100 + number)" }
    /// Where the demo guest answers (`Examples/demo.xml`).
    package static let guestAddress = "10.77.0.10"
    package static let guestPort: UInt16 = 7777

    static let hugePageBytes = 2 << 20
    /// Bound for everything in the lab's own directory: logs, sockets, the store.
    static let directoryBytes = 512 << 20
}
