import ControlAPI
import EndToEndSupport
import Foundation
import Lab
import Model
import Testing

extension EndToEnd {
    /// What cannot work is refused with a reason, before anything was touched.
    @Suite(.lab(LabShape(poolSize: "700MiB")), .keepingLogs)
    struct Refusals {
        /// Everything that a refused request might have changed.
        private struct Snapshot: Equatable {
            var domains: [String: String] = [:]
            var pairs: [String] = []
            var pools: [[String]] = []

            init(_ lab: TestLab) async throws {
                for host in lab.hosts {
                    for name in try await lab.domains(host) {
                        domains["\(name) of \(host)"] =
                            try await lab.virsh(host, "dumpxml", "--inactive", name)
                            + lab.virsh(host, "domstate", name)
                    }
                }
                pairs = try await lab.ftvm([PairView].self, "list").map {
                    "\($0.name) \($0.uuid) \($0.state) \($0.generation) \($0.desired)"
                        + " \($0.promotionRequested)"
                }
                pools = try await lab.ftvm([PoolView].self, "pool", "list").map(\.steady)
            }
        }

        /// One request, which must be refused with this code, these words, and without any change.
        private func refuses(
            _ lab: TestLab, _ arguments: [String], _ code: FtvmError.Code, _ words: String...,
            sourceLocation: SourceLocation = #_sourceLocation
        ) async throws {
            let line = arguments.joined(separator: " ")
            let before = try await Snapshot(lab)
            for host in lab.hosts {
                let outcome = try await lab.attempt(arguments, on: host)
                let error = try Command.error(outcome, arguments)
                #expect(error.code == code, "\(line): \(error)", sourceLocation: sourceLocation)
                for word in words {
                    #expect(
                        error.description.contains(word), "\(line): \(error)",
                        sourceLocation: sourceLocation)
                }
                #expect(outcome.output == "", "\(line)", sourceLocation: sourceLocation)
            }
            let after = try await Snapshot(lab)
            #expect(after == before, "\(line)", sourceLocation: sourceLocation)
        }

        @Test func whatIsNotThereIsNamed() async throws {
            let lab = try TestLab.here()
            try await lab.define(on: lab.hosts[0])
            let demo = TestLab.demo
            try await refuses(lab, ["enable", "nosuch"], .notFound, "nosuch")
            try await refuses(lab, ["enable", demo, "--host", "h9"], .notFound, "h9", "h1, h2, h3")
            try await refuses(lab, ["enable", demo, "--host", "h2"], .notFound, demo, "h2")
            try await refuses(lab, ["enable", demo, "--secondary", "h9"], .notFound, "h9")
            try await refuses(lab, ["enable", demo, "--pool", "nosuch"], .notFound, "nosuch")
            try await refuses(
                lab, ["enable", demo, "--secondary", "h1"], .invalidArgument, "h1", "primary")
            try await refuses(lab, ["enable", demo, "--epoch-max", "0"], .invalidArgument)
            try await refuses(lab, ["enable"], .invalidArgument)
            try await refuses(lab, ["disable", demo], .notFound, demo)
            try await refuses(lab, ["promote", demo, "--yes"], .notFound, demo)
            try await refuses(lab, ["status", demo], .notFound, demo)
            try await refuses(lab, ["pool", "show", "nosuch"], .notFound, "nosuch")
            try await lab.removeDemo()
        }

        @Test func whatIsSoAlreadyStays() async throws {
            let lab = try TestLab.here()
            let demo = TestLab.demo
            try await lab.define(on: lab.hosts[0])
            _ = try await lab.ftvm(PairView.self, "enable", demo)
            try await refuses(lab, ["enable", demo], .alreadyExists, demo, "enabled already")
            try await refuses(
                lab, ["promote", demo, "--yes"], .failedPrecondition, demo, "shut off")
            try await refuses(lab, ["promote", demo], .invalidArgument, "--yes")
            try await lab.removeDemo()
        }

        @Test func aFullPoolIsToldBeforeTheGuestIsTouched() async throws {
            let lab = try TestLab.here()
            var large = GuestDomain()
            large.memoryMiB = 600
            // 600 MiB and a quarter of it are more than the pool has.
            let guest = try await lab.runDemo(large, on: lab.hosts[0])
            let before = try await guest.covered()
            let qemu = try await lab.presentQEMU(lab.hosts[0])
            try await refuses(
                lab, ["enable", TestLab.demo], .resourceExhausted, "pool", "no room", "free")
            #expect(qemu.traces == [])
            try await guest.goesOn(from: before)
            try await lab.removeDemo()
        }

        private static let devices = [
            (
                "hostdev", "",
                """
                <hostdev mode='subsystem' type='pci' managed='yes'>
                  <source><address domain='0' bus='6' slot='2' function='0'/></source>
                </hostdev>
                """
            ),
            (
                "filesystem",
                """
                <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
                """,
                """
                <filesystem type='mount'><driver type='virtiofs'/>
                  <source dir='/srv'/><target dir='share'/></filesystem>
                """
            ),
            (
                "disk vda", "",
                """
                <disk type='file' device='disk'>
                  <driver name='qemu' type='raw' error_policy='report'/>
                  <source file='/srv/disk.img'/>
                  <target dev='vda' bus='virtio'/></disk>
                """
            ),
        ]

        @Test(arguments: devices)
        func aDeviceThatCannotBeCarriedIsNamed(
            name: String, settings: String, device: String
        ) async throws {
            let lab = try TestLab.here()
            let template = try String(
                contentsOfFile: Settings.repository("Examples/demo.xml"), encoding: .utf8)
            let xml = try GuestDomain().xml(template: template)
                .replacing("</devices>", with: device + "</devices>")
                .replacing("<vcpu>", with: settings + "<vcpu>")
            _ = try await lab.define(xml: xml, on: lab.hosts[0])
            try await refuses(
                lab, ["enable", TestLab.demo], .unsupported, TestLab.demo, "cannot be protected",
                name)
            try await lab.removeDemo()
        }

        /// Two definitions of one guest: somebody must say which is meant.
        @Test func aNameThatTwoHostsHaveIsAmbiguous() async throws {
            let lab = try TestLab.here()
            for host in lab.hosts.prefix(2) { try await lab.define(on: host) }
            _ = try await eventually("the hosts have told of their domains", seconds: 20) {
                let hosts = try await lab.ftvm([HostView].self, "hosts", on: lab.hosts[2])
                return hosts.filter { !$0.domains.isEmpty }.count == 2 ? true : nil
            }
            try await refuses(
                lab, ["enable", TestLab.demo], .failedPrecondition, "h1, h2", "--host")
            let pair = try await lab.ftvm(
                PairView.self, "enable", TestLab.demo, "--host", "h2", on: lab.hosts[0])
            #expect(pair.primary == lab.hosts[1])
            try await lab.removeDemo()
        }

        @Test func onlyRootMayDoAnything() async throws {
            let lab = try TestLab.here()
            // Where everybody may run them.
            let directory = "/tmp/ftvm-e2e-\(UUID().uuidString)"
            _ = try await Command.succeed(["install", "-d", "-m", "755", directory])
            defer { try? FileManager.default.removeItem(atPath: directory) }
            for program in [Command.ftvm, Command.ftvmd] {
                _ = try await Command.succeed(["install", "-m", "755", program, directory])
            }
            let configuration = lab.layout.daemonConfiguration(of: lab.hosts[0])
            _ = try await Command.succeed([
                "install", "-m", "644", configuration, directory + "/ftvmd.toml",
            ])
            let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            let socket = lab.layout.daemonSocket(of: lab.hosts[0])
            for arguments in [
                ["list", "-o", "json", "--socket", socket],
                ["enable", "demo", "-o", "json", "--socket", socket],
                ["lab", "up", "--name", "ftvm-e2e-nobody", "-o", "json"],
            ] {
                let outcome = try await Command.attempt(
                    nobody + ["\(directory)/ftvm"] + arguments)
                let error = try Command.error(outcome, arguments)
                #expect(error.code == .permissionDenied, "\(error)")
                #expect(
                    error.advice?.contains("root") == true || error.advice?.contains("sudo") == true
                )
            }
            let outcome = try await Command.attempt(
                nobody + ["\(directory)/ftvmd", "--config", directory + "/ftvmd.toml"])
            #expect(outcome.status == FtvmError.Code.permissionDenied.exitStatus)
            #expect(outcome.errorOutput.contains("ftvmd must run as root"))
        }

        @Test func aMisspeltKeyOfTheConfigurationIsAnError() async throws {
            let lab = try TestLab.here()
            let path = NSTemporaryDirectory() + "ftvm-e2e-\(UUID().uuidString).toml"
            defer { try? FileManager.default.removeItem(atPath: path) }
            let good = try String(
                contentsOfFile: lab.layout.daemonConfiguration(of: lab.hosts[0]), encoding: .utf8)
            for (text, words) in [
                ("epoch_maximum_miliseconds = 20\n" + good, ["epoch_maximum_milliseconds"]),
                (good.replacing("\npath = ", with: "\npth = "), ["`pth`", "`path`", "line"]),
                (
                    "heartbeat_period_milliseconds = 0\n" + good,
                    ["heartbeat_period_milliseconds"]
                ),
                (good.replacing("tmpfs", with: "ramfs"), ["ramfs", "hugetlbfs"]),
                ("host = \n", ["line 1"]),
            ] {
                try text.write(toFile: path, atomically: true, encoding: .utf8)
                let outcome = try await Command.attempt([Command.ftvmd, "--config", path])
                #expect(outcome.status == 2, "\(outcome.errorOutput)")
                for word in words + [path] {
                    #expect(outcome.errorOutput.contains(word), "\(outcome.errorOutput)")
                }
            }
        }
    }

    /// Protection takes two.
    @Suite(.lab(LabShape(hosts: 1)), .keepingLogs)
    struct Alone {
        @Test func withoutASecondHostNothingIsEnabled() async throws {
            let lab = try TestLab.here()
            let original = try await lab.define(on: lab.hosts[0])
            let error = try await lab.refusal("enable", TestLab.demo)
            #expect(error.code == .failedPrecondition)
            #expect(error.message.contains("no second host"))
            expectSame(
                try await lab.virsh(lab.hosts[0], "dumpxml", "--inactive", TestLab.demo), original)
            #expect(try await lab.pair() == nil)
            try await lab.removeDemo()
        }
    }
}
