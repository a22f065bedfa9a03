import CLinux
import Foundation
import Hypervisor
import Logging
import Model
import Testing

@Suite struct LibvirtUnreachableTests {
    private func host(socket: String, timeoutMilliseconds: Int) -> LibvirtHost {
        var options = LibvirtHost.Options(uri: "qemu+unix:///system?socket=\(socket)")
        options.callTimeoutMilliseconds = timeoutMilliseconds
        return LibvirtHost(options: options, logger: Logger(label: "test"))
    }

    @Test func noDaemonIsUnavailable() async throws {
        let host = host(socket: "/nonexistent/libvirt-sock", timeoutMilliseconds: 60_000)
        for _ in 0..<2 {
            let error = await #expect(throws: FtvmError.self) { try await host.listDomains() }
            #expect(error?.code == .unavailable)
            #expect(error?.cause?.contains("/nonexistent/libvirt-sock") == true)
            #expect(error?.advice?.isEmpty == false)
        }
    }

    /// A daemon that takes the connection and never answers: every call has its own time.
    @Test func aHungDaemonTimesOutAndIsGivenUp() async throws {
        let path = NSTemporaryDirectory() + "ftvm-hung-\(UUID().uuidString.prefix(8)).sock"
        let listener = ftvm_socket_listen_unix(path, 64)
        try #require(listener >= 0)
        defer { unlink(path) }
        let host = host(socket: path, timeoutMilliseconds: 50)
        var codes: [FtvmError.Code?] = []
        for _ in 0..<10 {
            codes.append(
                await #expect(throws: FtvmError.self) { try await host.listDomains() }?.code)
        }
        #expect(codes.first == .timedOut)
        #expect(codes.last == .unavailable)
        // When it goes away the calls end, and the threads with them.
        _ = ftvm_socket_close(listener)
        await host.close()
    }
}
