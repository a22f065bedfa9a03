import ControlAPI
import Foundation
import Lab
import Model
import Testing

/// The demo guest, asked over the network.
package struct Guest: Sendable {
    package let lab: TestLab
    package var domain: GuestDomain

    package init(lab: TestLab, domain: GuestDomain = GuestDomain()) {
        self.lab = lab
        self.domain = domain
    }

    /// What a commit has covered: no failover may go back before it.
    package struct Covered: Sendable {
        package let status: GuestStatus
        /// The last number that the guest has handed out. It is raised by our questions only, so the next one tells
        /// exactly whether the guest has gone back before it was asked for this one.
        package let number: UInt64
        /// The epoch that had been committed before a commit covered the answers; nil when nothing commits.
        package let epoch: Epoch?
    }

    package func connect(seconds: Int = 30) async throws -> GuestClient {
        var last = ""
        return try await eventually("the guest answers", seconds: seconds, found: last) {
            do {
                // Connected is not answering: a guest that stands still accepts connections, too.
                _ = try GuestClient(
                    lab.layout, address: domain.address, timeout: .seconds(1)
                ).status()
                return try GuestClient(
                    lab.layout, address: domain.address, timeout: .seconds(10))
            } catch let error as FtvmError where error.code == .unavailable {
                last = error.description
                return nil
            }
        }
    }

    package func status() async throws -> GuestStatus { try await connect().status() }

    package func setDirtyRate(_ pagesPerSecond: Int) async throws {
        try #require(try await connect().ask("dirty \(pagesPerSecond)") == "ok \(pagesPerSecond)")
    }

    /// Asks the guest, and, if it is under protection, waits for the commit that covers the answers.
    ///
    /// The commit is the one after the epoch that is the last one once we have the answers: it is published later than
    /// they were given, the guest stands still from before it is saved until after, so it was saved after.
    package func covered() async throws -> Covered {
        let client = try await connect()
        let status = try client.status()
        let number = try #require(UInt64(try client.ask("next")))
        try #require(status.checker.bad == 0, "the guest's memory is damaged: \(status)")
        guard let epoch = try await lab.pair(domain.name)?.epoch else {
            return Covered(status: status, number: number, epoch: nil)
        }
        _ = try await lab.pair("at an epoch after \(epoch)", of: domain.name, seconds: 20) {
            $0.epoch.map { $0 > epoch } ?? false
        }
        return Covered(status: status, number: number, epoch: epoch)
    }

    /// The same guest goes on from where it was: nothing that a commit had covered is lost, and it has checked all of
    /// its memory since.
    @discardableResult
    package func goesOn(from before: Covered, seconds: Int = 60) async throws -> Covered {
        let client = try await connect(seconds: seconds)
        let number = try #require(UInt64(try client.ask("next")))
        let status = try client.status()
        #expect(number == before.number + 1, "the guest went back before a commit")
        #expect(status.bootID == before.status.bootID, "the guest was started anew")
        #expect(status.counter >= before.status.counter)
        #expect(status.uptimeSeconds >= before.status.uptimeSeconds)
        let checked = try await wholeRound(client, from: status)
        try #require(checked.checker.bad == 0, "the guest's memory is damaged: \(checked)")
        try #require(number == before.number + 1 && status.bootID == before.status.bootID)
        return Covered(status: checked, number: number, epoch: nil)
    }

    /// Waits until the checker has begun and ended a round since.
    private func wholeRound(
        _ client: GuestClient, from status: GuestStatus
    ) async throws -> GuestStatus {
        // Every page once from here on, and with the last page of a round their sum.
        let pages = status.checker.mib * 256
        return try await eventually("the guest checks all of its memory", seconds: 60) {
            let now = try client.status()
            return now.checker.pagesChecked >= status.checker.pagesChecked + pages
                && now.checker.rounds > status.checker.rounds ? now : nil
        }
    }
}
