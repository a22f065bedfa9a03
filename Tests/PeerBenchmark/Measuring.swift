import BenchmarkSupport
import Foundation
import Glibc
import Model
import Protection
import Synchronization

/// To whoever watches the benchmark.
func say(_ text: String) {
    FileHandle.standardError.write(Data((text + "\n").utf8))
}

/// A directory of the benchmark's own, in memory.
final class BenchDirectory {
    let url = URL(fileURLWithPath: "/dev/shm/ftvm-peers-\(UUID().uuidString.prefix(8))")

    init() throws {
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        Leftovers.add(directory: url)
    }

    func remove() { try? FileManager.default.removeItem(at: url) }
}

/// What must not outlive a benchmark that somebody ends.
enum Leftovers {
    private struct State {
        var pids: [Int32] = []
        var directories: [URL] = []
    }
    private static let state = Mutex(State())

    static func add(pid: Int32) { state.withLock { $0.pids.append(pid) } }
    static func remove(pid: Int32) { state.withLock { $0.pids.removeAll { $0 == pid } } }
    static func add(directory: URL) { state.withLock { $0.directories.append(directory) } }

    /// From now on a signal that asks us to end takes them along.
    static func endWithUs() -> [any DispatchSourceSignal] {
        [SIGTERM, SIGINT, SIGHUP].map { number in
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
            source.setEventHandler {
                state.withLock { state in
                    for pid in state.pids { kill(pid, SIGKILL) }
                    for directory in state.directories {
                        try? FileManager.default.removeItem(at: directory)
                    }
                    exit(128 + number)
                }
            }
            source.resume()
            return source
        }
    }
}

enum ProcessTime {
    /// CPU time that a process has used so far, in seconds; 0 when it is gone.
    static func seconds(_ pid: Int32) -> Double {
        let fields = stat("/proc/\(pid)/stat")
        guard fields.count > 12, let user = Double(fields[11]), let system = Double(fields[12])
        else { return 0 }
        return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
    }

    /// The fields after the name, which may contain anything.
    private static func stat(_ path: String) -> [Substring] {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else { return [] }
        return text.split(separator: ")").last?.split(separator: " ") ?? []
    }

    static func seconds(_ pids: [Int32]) -> Double { pids.reduce(0) { $0 + seconds($1) } }
}

enum Machine {
    /// The load average over a minute.
    static var load: Double {
        let text = try? String(contentsOfFile: "/proc/loadavg", encoding: .utf8)
        return text?.split(separator: " ").first.flatMap { Double($0) } ?? .nan
    }

    /// What was measured with.
    static func facts() -> [String: String] {
        var facts = ["CPUs": "\(sysconf(Int32(_SC_NPROCESSORS_ONLN)))", "acceleration": "TCG"]
        var names = utsname()
        if uname(&names) == 0 {
            facts["kernel"] = withUnsafeBytes(of: names.release) { bytes in
                // The version; what a distribution or a machine's owner adds is of no interest.
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
                    .prefix { $0.isNumber || $0 == "." }.description
            }
        }
        let process = Process()
        let output = Pipe()
        process.executableURL = URL(fileURLWithPath: BenchQEMU.chosen.program)
        process.arguments = ["--version"]
        process.standardOutput = output
        if (try? process.run()) != nil {
            let text = String(
                decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            process.waitUntilExit()
            facts["QEMU"] =
                text.split(separator: " ").first { $0.first?.isNumber ?? false }?
                .description
        }
        return facts
    }

    static func milliseconds(since began: UInt64) -> Double {
        Double(MonotonicClock.nowNanoseconds() - began) / 1e6
    }
}

/// What a stretch of time has shown of a peer at work.
struct Window {
    var pauses = Summary([])
    /// Of the guest's page writer, of the host's time.
    var writesPerSecond = Double.nan
    /// CPU time of the peer's processes, as a share of the host's time: 1 is one core.
    var cores = Double.nan

    /// Watches a peer for so long.
    static func watch(_ peer: any Peer, _ control: GuestControl, seconds: Double) throws -> Window {
        _ = try peer.guest.takeEvents()
        let used = ProcessTime.seconds(peer.processes)
        let first = try control.status()
        usleep(UInt32(seconds * 1e6))
        return try after(first, used, peer, control)
    }

    /// Has the guest count what it can do.
    static func count(
        _ line: String, _ peer: any Peer, _ control: GuestControl
    ) throws -> (window: Window, perSecond: Double) {
        _ = try peer.guest.takeEvents()
        let used = ProcessTime.seconds(peer.processes)
        let first = try control.status()
        let count = try control.count(line)
        let elapsed = Double(MonotonicClock.nowNanoseconds() - first.at) / 1e9
        return (try after(first, used, peer, control), count / elapsed)
    }

    private static func after(
        _ first: GuestControl.Status, _ used: Double, _ peer: any Peer, _ control: GuestControl
    ) throws -> Window {
        let last = try control.status()
        let elapsed = Double(last.at - first.at) / 1e9
        return Window(
            pauses: Summary(MonitorText.pauses(try peer.guest.takeEvents())),
            writesPerSecond: Double(last.writes - first.writes) / elapsed,
            cores: (ProcessTime.seconds(peer.processes) - used) / elapsed)
    }
}
