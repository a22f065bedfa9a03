import Glibc
import Testing

/// A real process of the test helper, with chosen descriptors of ours, killed at the latest when
/// the test lets go of it.
final class Child {
    let pid: pid_t
    private let output: UnsafeMutablePointer<FILE>
    private var isReaped = false

    /// - Parameter descriptors: pairs of ours and the number it gets in the child.
    convenience init(_ arguments: [String], descriptors: [(CInt, CInt)] = []) throws {
        try self.init(path: Child.helper(), arguments, descriptors: descriptors)
    }

    init(path: String, _ arguments: [String], descriptors: [(CInt, CInt)] = []) throws {
        // One socket for its standard input and output; other children must not inherit it.
        var sockets: [CInt] = [-1, -1]
        let kind = CInt(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue)
        let made = socketpair(AF_UNIX, kind, 0, &sockets)
        try #require(made == 0)
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_adddup2(&actions, sockets[1], 0)
        posix_spawn_file_actions_adddup2(&actions, sockets[1], 1)
        for (ours, theirs) in descriptors {
            posix_spawn_file_actions_adddup2(&actions, ours, theirs)
        }
        var words: [UnsafeMutablePointer<CChar>?] = ([path] + arguments).map { strdup($0) }
        defer { for word in words { free(word) } }
        words.append(nil)
        var child: pid_t = 0
        let failure = posix_spawn(&child, path, &actions, nil, words, environ)
        close(sockets[1])
        try #require(failure == 0, "\(path): \(String(cString: strerror(failure)))")
        pid = child
        output = try #require(fdopen(sockets[0], "r"))
    }

    /// The next line that it prints; nil when it has ended.
    func line() -> String? {
        var buffer: UnsafeMutablePointer<CChar>?
        var size = 0
        defer { free(buffer) }
        guard getline(&buffer, &size, output) > 0, let buffer else { return nil }
        let text = String(cString: buffer)
        return text.hasSuffix("\n") ? String(text.dropLast()) : text
    }

    /// SIGKILL, and wait until the kernel has taken it apart.
    func end() {
        guard !isReaped else { return }
        isReaped = true
        kill(pid, SIGKILL)
        var status: CInt = 0
        while waitpid(pid, &status, 0) < 0 && errno == EINTR {}
    }

    deinit {
        end()
        fclose(output)
    }

    static func helper() throws -> String {
        var buffer = [CChar](repeating: 0, count: 4096)
        let length = readlink("/proc/self/exe", &buffer, buffer.count)
        try #require(length > 0)
        let text = String(
            decoding: buffer.prefix(length).map(UInt8.init(bitPattern:)), as: UTF8.self)
        let directory = text.split(separator: "/").dropLast().joined(separator: "/")
        return "/\(directory)/cluster-test-helper"
    }
}
