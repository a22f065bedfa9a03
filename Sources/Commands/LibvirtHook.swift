import ArgumentParser
import ControlAPI
import Foundation
import Model

/// What libvirt runs before it starts a domain (https://libvirt.org/hooks.html): the gate against a second copy of a
/// protected guest. libvirt waits for it; a failure is what its user sees.
struct LibvirtHook: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "hook",
        abstract: "Keep a second copy of a protected domain from being started (libvirt's hook).",
        discussion: """
            Not for people: libvirt calls it with a domain's XML on standard input. To install it on every host, \
            before libvirtd is started:
              mkdir -p /etc/libvirt/hooks/qemu.d
              printf '#!/bin/sh\\nexec ftvm hook "$@"\\n' > /etc/libvirt/hooks/qemu.d/ftvm
              chmod 755 /etc/libvirt/hooks/qemu.d/ftvm
            To see what it would say:
              ftvm hook demo prepare begin < demo.xml
            """)

    @Argument(help: "The domain.")
    var domain: String
    @Argument(help: "What libvirt is about to do: prepare, start, migrate, restore, ...")
    var operation: String
    @Argument(help: "The part of it: begin, end, -.")
    var part: String = "-"
    @Argument(help: "Unused.")
    var extra: [String] = []

    @OptionGroup var connection: ConnectionOptions

    /// How long the end of the domain's last run may take to be recorded; usually some milliseconds.
    private static let patience = Duration.seconds(5)

    func run() async throws {
        guard HookRule.asks(operation: operation, part: part) else { return }
        let environment = CommandEnvironment.current
        var rule = HookRule(
            domain: domain, operation: operation, xml: environment.console.readInput())
        if rule.needsPair {
            do {
                let socket = connection.socket
                let service = environment.connect(socket)
                do {
                    rule.host = try await service.version().host
                    let deadline = ContinuousClock.now + Self.patience
                    repeat {
                        rule.pair = try await service.pair(PairName(domain))
                        guard rule.isEndUnrecorded else { break }
                        try? await Task.sleep(for: .milliseconds(50))
                    } while ContinuousClock.now < deadline
                } catch  where error.code == .notFound {
                    rule.pair = nil
                } catch {
                    rule.failure = error
                }
                await environment.disconnect(service)
            }
        }
        if let refusal = rule.refusal { throw refusal }
    }
}

/// Whether libvirt may go on. Pure.
package struct HookRule {
    package let domain: String
    package let operation: String
    /// The domain's metadata names a pair, and a role in it.
    private let isOurs: Bool
    private let isSecondary: Bool
    package var host: HostName?
    /// nil: there is none.
    package var pair: PairView?
    /// Why nobody could be asked.
    package var failure: FtvmError?

    /// The namespace of what ftvm writes into a domain's metadata.
    private static let namespace = "https://ftvm.dev/xmlns/domain/1"

    /// Whether it is one of the moments at which a copy of a guest begins to exist.
    package static func asks(operation: String, part: String) -> Bool {
        part == "begin" && ["prepare", "migrate", "restore"].contains(operation)
    }

    package init(domain: String, operation: String, xml: String) {
        self.domain = domain
        self.operation = operation
        isOurs = xml.contains(Self.namespace)
        isSecondary =
            isOurs && (xml.contains("role='secondary'") || xml.contains("role=\"secondary\""))
    }

    /// A waiting QEMU is ftvmd's own, and a migration is judged by what the domain is where it comes from.
    package var needsPair: Bool { !isSecondary && operation != "migrate" }

    /// The domain has ended here, and other hosts may not know yet that it is not to go on there.
    package var isEndUnrecorded: Bool {
        guard let pair, pair.primary == host, pair.promoting == nil else { return false }
        return pair.state == .protected || pair.state == .needSecondary
    }

    package var refusal: FtvmError? {
        if operation == "migrate" {
            guard isOurs else { return nil }
            return FtvmError(
                .failedPrecondition, "domain \(domain) is protected by ftvm and is not migrated",
                cause: "its memory is in a segment that both hosts have",
                advice: "'ftvm switchover \(domain)' moves it, without copying memory")
        }
        if isSecondary { return nil }
        if let failure {
            // A domain that was never protected is none of our business.
            guard isOurs else { return nil }
            return FtvmError(
                .unavailable,
                "domain \(domain) is not started: nobody can tell whether it runs elsewhere",
                cause: failure.description, advice: "start ftvmd on this host first")
        }
        guard let pair, let host else { return nil }
        if let promoting = pair.promoting {
            return FtvmError(
                .failedPrecondition, "domain \(domain) is just being failed over to \(promoting)",
                advice: "see 'ftvm status \(domain)'")
        }
        if pair.primary == host, pair.state == .failingOver {
            return FtvmError(
                .failedPrecondition, "domain \(domain) is being failed over",
                cause: pair.reason.isEmpty ? nil : pair.reason,
                advice:
                    "see 'ftvm status \(domain)'; 'ftvm disable --discard-state \(domain)' gives "
                    + "up what it had in memory, and then it can be started")
        }
        if isEndUnrecorded {
            return FtvmError(
                .timedOut, "the end of domain \(domain)'s last run is not recorded yet",
                cause: "until it is, another host may go on from that run's last commit",
                advice: "try again; if it stays so, see 'ftvm status \(domain)' and ftvmd's log")
        }
        guard pair.primary != host else { return nil }
        return FtvmError(
            .failedPrecondition,
            "domain \(domain) is protected by ftvm, and belongs to \(pair.primary)",
            cause: "a second copy would run with the same disks and addresses",
            advice:
                "start it there; 'ftvm switchover \(domain) --to \(host)' moves it here while it "
                + "runs; 'ftvm disable \(domain)' ends the protection")
    }
}

extension Console {
    /// A domain's XML is some ten KiB.
    private static let inputLimitBytes = 1 << 20

    /// All of standard input, but no more than a domain's XML can be.
    fileprivate func readInput() -> String {
        var text = ""
        while text.utf8.count < Self.inputLimitBytes, let line = readAnswer() {
            text += line + "\n"
        }
        return text
    }
}
