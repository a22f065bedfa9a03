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
    var machine: String
    var usesUEFI: Bool
    var vcpus: Int
    var usesHugePages: Bool
    var cards: Int
    var video: String?

    var testDescription: String {
        "\(machine), \(usesUEFI ? "UEFI" : "BIOS"), \(vcpus) vCPU, "
            + "\(usesHugePages ? "2 MiB" : "4 KiB"), \(cards) NIC, \(video ?? "no screen")"
    }

    var domain: GuestDomain {
        var domain = GuestDomain()
        domain.machine = machine
        domain.usesUEFI = usesUEFI
        domain.vcpus = vcpus
        domain.hasSecondCard = cards > 1
        domain.video = video
        domain.hasUsualDevices = true
        return domain
    }

    static var chosen: [Combination] { Domains.isFull ? all : few }

    /// Nearly every value of everything is in one of these; one CPU and no screen have all other suites.
    private static let few = [
        Combination(
            machine: "pc", usesUEFI: false, vcpus: 4, usesHugePages: false, cards: 2, video: "vga"),
        Combination(
            machine: "q35", usesUEFI: true, vcpus: 2, usesHugePages: true, cards: 1,
            video: "virtio"),
    ]

    /// 24: all machines, firmwares and pages, each with three kinds of screen, number of CPUs and cards.
    private static var all: [Combination] {
        let kinds: [(Int, Int, String?)] = [(1, 1, "vga"), (2, 2, nil), (4, 1, "virtio")]
        var all: [Combination] = []
        for machine in ["pc", "q35"] {
            for usesUEFI in [false, true] {
                for usesHugePages in [false, true] {
                    for (vcpus, cards, video) in kinds {
                        all.append(
                            Combination(
                                machine: machine, usesUEFI: usesUEFI, vcpus: vcpus,
                                usesHugePages: usesHugePages, cards: cards, video: video))
                    }
                }
            }
        }
        return all
    }
}
