import ClusterStore
import ControlAPI
import Foundation
import Model

/// What one host asks of another, through the store: the answer never depends on which host a user has asked.
struct HostRequest: Codable, Sendable {
    /// Protect a domain of that host.
    var enable: EnableRequest?
    /// Do a drill's fault.
    var fault: DrillFault?
    /// Look at itself.
    var survey: SurveyRequest?
}

/// Exactly one of these.
struct HostAnswer: Codable, Sendable {
    var record: PairRecord?
    var error: FtvmError?
    /// When it was done, in seconds since 1970 on that host's clock.
    var doneAt: Double?
    var survey: HostSurvey?
}

extension Agent {
    private static let requestTimeout = Duration.seconds(20)

    /// Asks another host, and waits for its answer.
    /// - Parameters:
    ///   - what: completes "did not answer the request to ...".
    ///   - taken: what the request leads to, if a former `ftvmd` of that host has carried it out and died before it
    ///     answered; nil: it was not carried out.
    func ask(
        _ owner: HostName, _ request: HostRequest, _ what: String,
        taken: () async throws -> PairRecord?
    ) async throws -> HostAnswer {
        let id = "\(host)/\(environment.incarnation)/\(UUID().uuidString)"
        let requestKey = "requests/\(owner)/\(id)"
        let answerKey = "answers/\(id)"
        let incarnation = hostRecords[owner]?.incarnation
        try await environment.store.put(
            requestKey, Data(try ControlJSON.encode(request)), expecting: .absent)
        let deadline = ContinuousClock.now + Self.requestTimeout
        while ContinuousClock.now < deadline {
            if let entry = try await environment.store.get(answerKey) {
                try? await environment.store.delete(answerKey, expecting: .any)
                let answer: HostAnswer = try ControlJSON.decode(from: entry.value)
                if let error = answer.error { throw error }
                return answer
            }
            if hostRecords[owner]?.incarnation != incarnation,
                try await environment.store.get(requestKey) == nil
            {
                // The host's ftvmd has been started anew; the one before it took the request, and died before it
                // answered.
                if let record = try await taken() { return HostAnswer(record: record) }
                throw FtvmError(
                    .unavailable, "the request to \(what) was not carried out",
                    cause: "the ftvmd of host \(owner) was started anew meanwhile",
                    advice: "try it again")
            }
            try await Task.sleep(for: .milliseconds(20))
        }
        try? await environment.store.delete(requestKey, expecting: .any)
        throw FtvmError(
            .timedOut, "host \(owner) did not answer the request to \(what)",
            advice: "see 'ftvm hosts' and the log of its ftvmd; the request has been withdrawn")
    }

    /// Answers to a former `ftvmd` of this host, which nobody waits for.
    private func forgetAnswers() async {
        guard let listing = try? await environment.store.list("answers/\(host)/") else { return }
        let ours = "answers/\(host)/\(environment.incarnation)/"
        for entry in listing.entries where !entry.key.hasPrefix(ours) {
            try? await environment.store.delete(entry.key, expecting: .any)
        }
    }

    /// Answers what other hosts ask of this one.
    func answerRequests() async {
        await forgetAnswers()
        let prefix = "requests/\(host)/"
        for await change in environment.store.watch(prefix) {
            guard case .current(let listing) = change else { continue }
            for entry in listing.entries {
                // Taken before it is carried out: a request is never carried out twice.
                do {
                    try await environment.store.delete(
                        entry.key, expecting: .revision(entry.revision))
                } catch { continue }
                var answer = HostAnswer()
                do {
                    answer = try await carryOut(try ControlJSON.decode(from: entry.value))
                } catch {
                    answer.error = FtvmError(ours: error)
                }
                let id = entry.key.dropFirst(prefix.count)
                guard let data = try? ControlJSON.encode(answer) else { continue }
                _ = try? await environment.store.put(
                    "answers/\(id)", Data(data), expecting: .any)
            }
        }
    }

    private func carryOut(_ request: HostRequest) async throws -> HostAnswer {
        if let enable = request.enable {
            return HostAnswer(record: try await enableHere(enable))
        }
        if let fault = request.fault { return HostAnswer(doneAt: try await doFault(fault)) }
        if let survey = request.survey {
            return HostAnswer(survey: await lookAtThisHost(survey))
        }
        throw FtvmError(
            .unsupported, "host \(host) does not know what it is asked for",
            advice: "the ftvmd of all hosts must be of one version")
    }
}
