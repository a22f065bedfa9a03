import Foundation
import Lab
import Model
import Testing

@Suite struct LabSpecificationTests {
    @Test func impossibleValuesAreRefused() {
        let changes: [@Sendable (inout LabSpecification) -> Void] = [
            { $0.hostCount = 0 }, { $0.hostCount = 17 }, { $0.poolBytes = 1000 },
            { $0.hugePages = -1 }, { $0.heartbeatPeriodMilliseconds = 0 },
            { $0.heartbeatMissesUntilDead = 0 },
        ]
        for change in changes {
            var specification = LabSpecification()
            #expect(throws: Never.self) { try specification.validate() }
            change(&specification)
            let error = #expect(throws: FtvmError.self) { try specification.validate() }
            #expect(error?.code == .invalidArgument)
        }
    }

    @Test func aLabsNameStaysWithinItsDirectory() throws {
        for name in ["", "..", "a/b", "Lab", "lab 1", String(repeating: "x", count: 33)] {
            #expect(throws: FtvmError.self, "\(name)") { try LabLayout(name: name) }
        }
        #expect(try LabLayout(name: "lab-2").directory == "/run/lab-2")
    }

    @Test func theDemoDomainTakesOtherValues() throws {
        let template = try String(
            contentsOfFile: Repository.path("Examples/demo.xml"),
            encoding: .utf8)
        #expect(try GuestDomain().xml(template: template).contains("<name>demo</name>"))
        var guest = GuestDomain()
        guest.name = "busy"
        guest.number = 42
        guest.memoryMiB = 512
        guest.vcpus = 2
        guest.dirtyPagesPerSecond = 9000
        guest.imageDirectory = "/elsewhere"
        guest.usesKVM = true
        let xml = try guest.xml(template: template)
        for part in [
            "type='kvm'", "<name>busy</name>", ">512<", "<vcpu>2<", "/elsewhere/initrd",
            "ftvm.ip=10.77.0.42/24", "52:54:00:77:00:42", "ftvm.dirty_pages_per_second=9000",
            "ftvm.vcpus=2", "0a4d00000042</uuid>", "busy-console.log",
        ] {
            #expect(xml.contains(part), "\(part)")
        }
        #expect(!xml.contains("ftvm.ip2") && !xml.contains("52:54:00:78"))
        guest.hasSecondCard = true
        guest.hasRedis = true
        let both = try guest.xml(template: template)
        for part in [
            "ftvm.ip2=10.78.0.42/24", "52:54:00:78:00:42", "52:54:00:77:00:42",
            "/elsewhere/initrd-redis<", "<serial type='file'>",
        ] {
            #expect(both.contains(part), "\(part)")
        }
        #expect(throws: FtvmError.self) { try guest.xml(template: "<domain/>") }
    }
}

/// Files of the source tree.
enum Repository {
    static func path(_ relative: String) -> String {
        let root = URL(fileURLWithPath: #filePath)
            .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        return root.appendingPathComponent(relative).path
    }
}
