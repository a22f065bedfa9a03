import AsyncHTTPClient
import Foundation
import Model
import NIOCore
import NIOHTTP1
import Synchronization

/// Requests to an etcd cluster through the JSON gateway of its members.
///
/// Every request but the diagnosis demands (gRPC metadata `hasleader`) that the member has a
/// leader: one that is cut off refuses at once instead of keeping us waiting, and ends our watch.
final class EtcdClient: Sendable {
    private struct State {
        /// The member that answered last.
        var preferred = 0
        var token: String?
    }

    let options: EtcdOptions
    private let http: HTTPClient
    private let state = Mutex(State())
    /// The largest answer that is read, in bytes.
    static let answerLimit = 64 << 20

    /// - Throws: `invalidArgument` for options that cannot work; failures of the certificates.
    init(options: EtcdOptions) throws(FtvmError) {
        try options.check()
        self.options = options
        var configuration = HTTPClient.Configuration()
        configuration.connectionPool.retryConnectionEstablishment = false
        configuration.redirectConfiguration = .disallow
        // Over TLS the gateway is served with HTTP/1 only; HTTP/2 there is gRPC.
        configuration.httpVersion = .http1Only
        // Some of it is left for the answer.
        configuration.timeout.connect = .milliseconds(
            Int64(max(1, options.attemptMilliseconds / 2)))
        configuration.tlsConfiguration = try options.tls?.clientConfiguration()
        http = HTTPClient(eventLoopGroupProvider: .singleton, configuration: configuration)
    }

    /// Closes the connections, soon.
    func close() {
        let http = http
        http.shutdown { _ in withExtendedLifetime(http) {} }
    }

    // MARK: Calls

    /// One request, whose effect is the same whether it is done once or several times: asked of one
    /// member after the other until one answers or the time is over.
    func repeatable<Answer: Decodable & Sendable>(
        _ path: String, _ request: some Encodable & Sendable
    ) async throws(FtvmError) -> Answer {
        try await call(path, request, repeatUnknown: true).get()
    }

    /// One request that must not be done twice. It goes to another member only when it is certain
    /// that nothing was done.
    /// - Returns: nil when it is not known whether it was done.
    func once<Answer: Decodable & Sendable>(
        _ path: String, _ request: some Encodable & Sendable
    ) async throws(FtvmError) -> Answer? {
        switch await call(path, request, repeatUnknown: false) as Outcome<Answer> {
        case .answer(let answer): return answer
        case .failed(let error): throw error
        case .unknown: return nil
        }
    }

    private enum Outcome<Answer: Sendable>: Sendable {
        case answer(Answer)
        case failed(FtvmError)
        /// Sent, and perhaps done.
        case unknown

        func get() throws(FtvmError) -> Answer {
            switch self {
            case .answer(let answer): return answer
            case .failed(let error): throw error
            case .unknown: preconditionFailure("only asked of what is not repeated")
            }
        }
    }

    private func call<Answer: Decodable & Sendable>(
        _ path: String, _ request: some Encodable & Sendable, repeatUnknown: Bool
    ) async -> Outcome<Answer> {
        let body: Data
        do {
            body = try JSONEncoder().encode(request)
        } catch {
            return .failed(FtvmError(wrapping: error, "a request to etcd cannot be written"))
        }
        let clock = ContinuousClock()
        let end = clock.now + .milliseconds(options.requestMilliseconds)
        let first = state.withLock { $0.preferred }
        var failures: [(endpoint: String, failure: EtcdFailure)] = []
        var tokenIsFresh = false
        var attempt = 0
        while true {
            let left = clock.now.duration(to: end)
            guard left > .zero, !Task.isCancelled else { break }
            let index = (first + attempt) % options.endpoints.count
            do throws(EtcdFailure) {
                let answer: Answer = try await ask(
                    index, path, body, within: min(left, .milliseconds(options.attemptMilliseconds))
                )
                state.withLock { $0.preferred = index }
                return .answer(answer)
            } catch {
                switch error.kind {
                case .token where !tokenIsFresh:
                    state.withLock { $0.token = nil }
                    tokenIsFresh = true
                    continue
                case .token:
                    return .failed(refusal(.permissionDenied, error, index))
                case .refused(let code):
                    return .failed(refusal(code, error, index))
                case .unknown where !repeatUnknown:
                    // Others may answer faster next time.
                    state.withLock { $0.preferred = (index + 1) % options.endpoints.count }
                    return .unknown
                case .unknown, .notDone:
                    failures.append((options.endpoints[index], error))
                }
            }
            attempt += 1
            if attempt % options.endpoints.count == 0 {
                // All were asked: a leader may be on its way.
                try? await Task.sleep(for: .milliseconds(100))
            }
        }
        return .failed(await unavailable(failures.suffix(options.endpoints.count)))
    }

    private func refusal(
        _ code: FtvmError.Code, _ failure: EtcdFailure, _ index: Int
    ) -> FtvmError {
        FtvmError(
            code, "etcd at \(options.endpoints[index]) refused the request", cause: failure.text,
            advice: failure.advice)
    }

    // MARK: One member

    private func ask<Answer: Decodable & Sendable>(
        _ index: Int, _ path: String, _ body: Data, within limit: Duration, leader: Bool = true
    ) async throws(EtcdFailure) -> Answer {
        let answer: (status: Int, body: Data)
        do {
            answer = try await withDeadline(limit) { [self] in
                let response = try await open(index, path, body, leader: leader)
                let buffer = try await response.body.collect(upTo: Self.answerLimit)
                return (Int(response.status.code), Data(buffer.readableBytesView))
            }
        } catch is DeadlineExceeded {
            throw EtcdFailure(.unknown, "no answer within \(limit)")
        } catch {
            throw EtcdFailure(transport: error)
        }
        guard answer.status == 200 else { throw Self.failure(answer.status, answer.body) }
        do {
            return try JSONDecoder().decode(Answer.self, from: answer.body)
        } catch {
            throw EtcdFailure(
                .unknown, "its answer makes no sense: \(error)")
        }
    }

    /// Sends a request and returns when the head of the answer is there; an answer may go on for
    /// ever.
    private func open(
        _ index: Int, _ path: String, _ body: Data, leader: Bool
    ) async throws -> HTTPClientResponse {
        var endpoint = options.endpoints[index]
        if endpoint.hasSuffix("/") { endpoint.removeLast() }
        var request = HTTPClientRequest(url: endpoint + path)
        request.method = .POST
        request.headers.add(name: "Content-Type", value: "application/json")
        if leader { request.headers.add(name: "Grpc-Metadata-hasleader", value: "true") }
        if let token = try await token(index, for: path) {
            request.headers.add(name: "Authorization", value: token)
        }
        request.body = .bytes(body)
        // The caller has a deadline for the whole of it.
        return try await http.execute(request, deadline: .distantFuture)
    }

    private static let authenticatePath = "/v3/auth/authenticate"

    /// The token that shows who we are, asked for when there is none.
    private func token(_ index: Int, for path: String) async throws(EtcdFailure) -> String? {
        guard let user = options.user, path != Self.authenticatePath else { return nil }
        if let token = state.withLock({ $0.token }) { return token }
        let body: Data
        do {
            body = try JSONEncoder().encode(
                EtcdAuthenticate(name: user, password: options.password ?? ""))
        } catch {
            throw EtcdFailure(.notDone, "\(error)")
        }
        do throws(EtcdFailure) {
            let answer: EtcdToken = try await ask(
                index, Self.authenticatePath, body,
                within: .milliseconds(options.attemptMilliseconds))
            state.withLock { $0.token = answer.token }
            return answer.token
        } catch {
            // Whatever became of it, the request itself was not sent.
            guard case .unknown = error.kind else { throw error }
            throw EtcdFailure(.notDone, error.text, advice: error.advice)
        }
    }

    static func failure(_ status: Int, _ body: Data) -> EtcdFailure {
        if let known = try? JSONDecoder().decode(EtcdGatewayError.self, from: body),
            known.message != nil || known.error != nil
        {
            return EtcdFailure(known, status: status)
        }
        let text = String(decoding: body.prefix(200), as: UTF8.self)
        return EtcdFailure(
            .refused(.unsupported), "HTTP status \(status): \(text)",
            advice: "check that the endpoint is the client URL of an etcd of version 3.4 or later")
    }

    // MARK: Streams

    /// One request whose answer goes on line by line, each given to `take`; returns when the member
    /// ends it.
    func stream(
        _ path: String, _ request: some Encodable & Sendable,
        take: @Sendable (Data) throws -> Void
    ) async throws(EtcdFailure) {
        let index = state.withLock { $0.preferred }
        do {
            let body = try JSONEncoder().encode(request)
            let response = try await withDeadline(.milliseconds(options.attemptMilliseconds)) {
                [self] in try await open(index, path, body, leader: true)
            }
            guard response.status == .ok else {
                let text = try await response.body.collect(upTo: 1 << 16)
                throw Self.failure(Int(response.status.code), Data(text.readableBytesView))
            }
            var line = Data()
            for try await part in response.body {
                for piece in part.readableBytesView.split(
                    separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false
                ).enumerated() {
                    if piece.offset > 0 {
                        if !line.isEmpty { try take(line) }
                        line.removeAll(keepingCapacity: true)
                    }
                    line.append(contentsOf: piece.element)
                }
                guard line.count <= Self.answerLimit else {
                    throw EtcdFailure(.unknown, "a line without end")
                }
            }
        } catch {
            state.withLock {
                $0.token = nil
                $0.preferred = (index + 1) % options.endpoints.count
            }
            throw EtcdFailure(transport: error)
        }
    }

    // MARK: Diagnosis

    /// Why nobody answers: asks each member for what it knows without the others.
    private func unavailable(
        _ failures: ArraySlice<(endpoint: String, failure: EtcdFailure)>
    ) async -> FtvmError {
        let states = await withTaskGroup(of: (Int, Bool?).self) { group in
            for index in options.endpoints.indices {
                group.addTask { [self] in
                    let status: EtcdStatus? = try? await ask(
                        index, "/v3/maintenance/status", Data("{}".utf8),
                        within: .milliseconds(500), leader: false)
                    return (index, status.map { ($0.leader?.value ?? 0) != 0 })
                }
            }
            return await group.reduce(into: [Int: Bool]()) { $0[$1.0] = $1.1 }
        }
        let texts = options.endpoints.enumerated().map { index, endpoint in
            let last = failures.last { $0.endpoint == endpoint }?.failure.text
            return switch states[index] {
            case false: "\(endpoint) runs, but has no leader"
            case true: "\(endpoint) runs (\(last ?? "it answers again"))"
            default: "\(endpoint): \(last ?? "not asked")"
            }
        }
        let cause = texts.joined(separator: "; ")
        if states.values.contains(false), !states.values.contains(true) {
            return FtvmError(
                .unavailable, "the cluster store (etcd) has no quorum", cause: cause,
                advice: "more than half of etcd's members must run and reach each other")
        }
        return FtvmError(
            .unavailable, "the cluster store (etcd) does not answer", cause: cause,
            advice: failures.compactMap(\.failure.advice).last
                ?? "see whether etcd runs and can be reached from this host")
    }
}
