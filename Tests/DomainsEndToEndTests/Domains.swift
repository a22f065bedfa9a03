import EndToEndSupport
import Glibc
import Lab
import Testing

/// Ordinary domains of many shapes: each protected while it runs, failed over, switched over and given back.
@Suite(.serialized, .enabled(if: geteuid() == 0, "a lab needs root"))
enum Domains {
    /// FTVM_DOMAINS_FULL: every combination, which takes half an hour. Otherwise as many as every change must pass.
    static let isFull = Settings.variable("FTVM_DOMAINS_FULL") != nil
}

/// One kind of domain, and the pool that it is protected in.
struct Combination: Sendable, CustomTestStringConvertible {
    var machine = "pc"
    var usesUEFI = false
    var vcpus: Int
    var usesHugePages = false
    var cards: Int
    var video: String?
    /// Bus and format of a disk; nil: it has none.
    var disk: (bus: String, format: String)?
    var numaCells: Int?

    var testDescription: String {
        "\(machine), \(usesUEFI ? "UEFI" : "BIOS"), \(vcpus) vCPU, "
            + "\(usesHugePages ? "2 MiB" : "4 KiB"), \(cards) NIC, \(video ?? "no screen"), "
            + (disk.map { "\($0.bus) \($0.format)" } ?? "no disk")
            + (numaCells.map { ", \($0) NUMA cells" } ?? "")
    }

    var domain: GuestDomain {
        var domain = GuestDomain()
        domain.machine = machine
        domain.usesUEFI = usesUEFI
        domain.vcpus = vcpus
        domain.hasSecondCard = cards > 1
        domain.video = video
        domain.hasUsualDevices = true
        domain.numaCells = numaCells
        return domain
    }

    /// FTVM_DOMAINS_PART, such as 1/2: of all combinations only every second, from the first on. So two runs share the work.
    static var chosen: [Combination] {
        guard Domains.isFull else { return few }
        let part = (Settings.variable("FTVM_DOMAINS_PART") ?? "1/1").split(separator: "/")
            .compactMap { Int($0) }
        precondition(
            part.count == 2 && part[0] >= 1 && part[0] <= part[1],
            "FTVM_DOMAINS_PART is a number of a number, such as 1/2")
        return stride(from: part[0] - 1, to: all.count, by: part[1]).map { all[$0] }
    }

    /// Nearly every value of everything is in one of these; one CPU and no screen have all other suites. Four CPUs, on a
    /// machine with two, take as long as all the rest.
    private static let few = [
        Combination(
            machine: "pc", usesUEFI: false, vcpus: 2, usesHugePages: false, cards: 2, video: "vga",
            numaCells: 2),
        Combination(
            machine: "q35", usesUEFI: true, vcpus: 2, usesHugePages: true, cards: 1,
            video: "virtio", disk: ("scsi", "qcow2")),
    ]

    /// 24: all machines, firmwares and pages, each with three kinds of screen, number of CPUs, cards, disk and NUMA.
    private static var all: [Combination] {
        let kinds: [Combination] = [
            Combination(vcpus: 1, cards: 1, video: "vga", disk: ("virtio", "raw")),
            Combination(vcpus: 2, cards: 2, video: nil, numaCells: 2),
            Combination(vcpus: 4, cards: 1, video: "virtio", disk: ("scsi", "qcow2")),
        ]
        var all: [Combination] = []
        for machine in ["pc", "q35"] {
            for usesUEFI in [false, true] {
                for usesHugePages in [false, true] {
                    for var kind in kinds {
                        kind.machine = machine
                        kind.usesUEFI = usesUEFI
                        kind.usesHugePages = usesHugePages
                        all.append(kind)
                    }
                }
            }
        }
        return all
    }
}
