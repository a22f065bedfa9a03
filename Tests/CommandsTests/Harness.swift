import Commands
import ControlAPI
import Model
import Synchronization

/// A daemon that follows a script and remembers what it was asked.
final class ScriptedService: ControlService {
    struct State: Sendable {
        /// What `pair` answers, one after the other; the last answer is repeated.
        var pairAnswers: [Result<PairView, FtvmError>] = []
        var pairs: [PairView] = []
        var hosts: [HostView] = []
        /// What `events` answers, one after the other; then nothing new.
        var eventAnswers: [Result<[ClusterEvent], FtvmError>] = []
        var pools: [PoolView] = []
        var poolDetail: PoolDetailView?
        var version: Result<VersionView, FtvmError> = .success(
            VersionView(version: "0.1.0", host: HostName("h1")))
        /// What `enable`, `disable` and `promote` answer.
        var accepted: Result<PairView, FtvmError> = .failure(
            FtvmError(.internalError, "unscripted"))
        var switchoverRequests: [SwitchoverRequest] = []
        var fenceRequests: [FenceHostRequest] = []
        var fenceAccepted: Result<HostMembership, FtvmError> = .failure(
            FtvmError(.notFound, "there is no such host"))
        /// What `drain` and `undrain` answer.
        var drainAccepted: Result<HostDrainView, FtvmError> = .failure(
            FtvmError(.internalError, "unscripted"))
        var drainRequests: [DrainRequest] = []
        /// What `drainState` answers, one after the other; the last answer is repeated.
        var drainAnswers: [Result<HostDrainView, FtvmError>] = []
        var drillStart: Result<DrillStart, FtvmError> = .failure(
            FtvmError(.internalError, "unscripted"))
        var drillRequests: [DrillRequest] = []
        var drillReports: [DrillReport] = []
        var doctorReport = DoctorReport(checks: [])
        /// `VERB argument`, in order.
        var calls: [String] = []
        var enableRequests: [EnableRequest] = []
        var eventQueries: [EventQuery] = []
    }

    let state: Mutex<State>

    init(_ state: State = State()) { self.state = Mutex(state) }

    var calls: [String] { state.withLock { $0.calls } }

    private func note<Value: Sendable>(
        _ call: String, _ body: (inout sending State) -> Result<Value, FtvmError>
    ) throws(FtvmError) -> Value {
        let result = state.withLock { state in
            state.calls.append(call)
            return body(&state)
        }
        return try result.get()
    }

    func version() async throws(FtvmError) -> VersionView {
        try note("version") { $0.version }
    }
    func pairs() async throws(FtvmError) -> [PairView] {
        try note("pairs") { .success($0.pairs) }
    }
    func pair(_ name: PairName) async throws(FtvmError) -> PairView {
        try note("pair \(name)") { state in
            guard let first = state.pairAnswers.first else {
                return .failure(FtvmError(.notFound, "there is no pair \(name)"))
            }
            if state.pairAnswers.count > 1 { state.pairAnswers.removeFirst() }
            return first
        }
    }
    func enable(_ request: EnableRequest) async throws(FtvmError) -> PairView {
        try note("enable \(request.domain)") { state in
            state.enableRequests.append(request)
            return state.accepted
        }
    }
    func disable(_ name: PairName, discardsState: Bool) async throws(FtvmError) -> PairView {
        try note("disable \(name)\(discardsState ? ", discarding" : "")") { $0.accepted }
    }
    func promote(_ name: PairName) async throws(FtvmError) -> PairView {
        try note("promote \(name)") { $0.accepted }
    }
    func switchover(
        _ name: PairName, _ request: SwitchoverRequest
    ) async throws(FtvmError) -> PairView {
        try note("switchover \(name)") { state in
            state.switchoverRequests.append(request)
            return state.accepted
        }
    }
    func cancelSwitchover(_ name: PairName) async throws(FtvmError) -> PairView {
        try note("cancel \(name)") { $0.accepted }
    }
    func drain(
        _ host: HostName, _ request: DrainRequest
    ) async throws(FtvmError) -> HostDrainView {
        try note("drain \(host)") { state in
            state.drainRequests.append(request)
            return state.drainAccepted
        }
    }
    func drainState(_ host: HostName) async throws(FtvmError) -> HostDrainView {
        try note("drainState \(host)") { state in
            guard let first = state.drainAnswers.first else {
                return .failure(FtvmError(.notFound, "there is no host \(host)"))
            }
            if state.drainAnswers.count > 1 { state.drainAnswers.removeFirst() }
            return first
        }
    }
    func undrain(_ host: HostName) async throws(FtvmError) -> HostDrainView {
        try note("undrain \(host)") { $0.drainAccepted }
    }
    func fence(
        _ host: HostName, _ request: FenceHostRequest
    ) async throws(FtvmError) -> HostMembership {
        try note("fence \(host)") { state in
            state.fenceRequests.append(request)
            return state.fenceAccepted
        }
    }
    func startDrill(
        _ name: PairName, _ request: DrillRequest
    ) async throws(FtvmError) -> DrillStart {
        try note("drill \(name)") { state in
            state.drillRequests.append(request)
            return state.drillStart
        }
    }
    func finishDrill(_ report: DrillReport) async throws(FtvmError) -> DrillReport {
        try note("finish \(report.id)") { state in
            state.drillReports.append(report)
            return .success(report)
        }
    }
    func doctor(domain: String?) async throws(FtvmError) -> DoctorReport {
        try note("doctor \(domain ?? "")") { .success($0.doctorReport) }
    }
    func drills() async throws(FtvmError) -> [DrillReport] {
        try note("drills") { .success($0.drillReports) }
    }
    func hosts() async throws(FtvmError) -> [HostView] {
        try note("hosts") { .success($0.hosts) }
    }
    func events(_ query: EventQuery) async throws(FtvmError) -> [ClusterEvent] {
        try note("events") { state in
            state.eventQueries.append(query)
            return state.eventAnswers.isEmpty ? .success([]) : state.eventAnswers.removeFirst()
        }
    }
    func pools() async throws(FtvmError) -> [PoolView] {
        try note("pools") { .success($0.pools) }
    }
    func pool(_ name: PoolName) async throws(FtvmError) -> PoolDetailView {
        try note("pool \(name)") { state in
            guard let detail = state.poolDetail else {
                return .failure(FtvmError(.notFound, "there is no pool \(name)"))
            }
            return .success(detail)
        }
    }
}

/// Runs command lines against a scripted daemon, with captured output and a clock that moves only when
/// a command sleeps.
final class Harness: Sendable {
    struct Outcome {
        var status: Int32
        var output: String
        var notes: String
    }

    let service: ScriptedService
    private let output = Mutex("")
    private let notes = Mutex("")
    private let clock = Mutex(Duration.zero)
    private let sockets = Mutex<[String?]>([])
    private let closed = Mutex(0)

    init(_ state: ScriptedService.State = ScriptedService.State()) {
        service = ScriptedService(state)
    }

    /// Values of `--socket` of the connections made, in order.
    var socketsAsked: [String?] { sockets.withLock { $0 } }
    var connectionsClosed: Int { closed.withLock { $0 } }
    var elapsed: Duration { clock.withLock { $0 } }

    /// - Parameters:
    ///   - terminal: standard input and error are a terminal.
    ///   - answer: what the person there types.
    ///   - outputLimit: characters after which the reader of standard output goes away.
    ///   - sleepLimit: sleeps after which the task is cancelled, as by an interrupt.
    func run(
        _ arguments: String..., terminal: Bool = false, answer: String? = nil,
        outputLimit: Int = .max, sleepLimit: Int = .max
    ) async -> Outcome {
        await run(
            arguments: arguments, terminal: terminal, answer: answer, outputLimit: outputLimit,
            sleepLimit: sleepLimit)
    }

    func run(
        arguments: [String], terminal: Bool = false, answer: String? = nil,
        outputLimit: Int = .max, sleepLimit: Int = .max
    ) async -> Outcome {
        let sleeps = Mutex(0)
        let console = Console(
            output: { text throws(OutputClosed) in
                let isOpen = self.output.withLock { output in
                    guard output.count + text.count <= outputLimit else { return false }
                    output += text
                    return true
                }
                guard isOpen else { throw OutputClosed() }
            },
            note: { text in self.notes.withLock { $0 += text } },
            noteIsTerminal: terminal, inputIsTerminal: terminal, readAnswer: { answer })
        let environment = CommandEnvironment(
            console: console,
            time: TimeSource(
                now: { self.clock.withLock { $0 } },
                sleep: { duration in
                    let count = sleeps.withLock { count in
                        count += 1
                        return count
                    }
                    guard count <= sleepLimit else { throw CancellationError() }
                    self.clock.withLock { $0 += duration }
                }),
            connect: { socket in
                self.sockets.withLock { $0.append(socket) }
                return self.service
            },
            disconnect: { _ in self.closed.withLock { $0 += 1 } },
            dateText: { "T\(Int($0))" })
        let status = await CommandEnvironment.$current.withValue(environment) {
            await FtvmMain.run(arguments)
        }
        return Outcome(
            status: status, output: output.withLock { $0 }, notes: notes.withLock { $0 })
    }
}
