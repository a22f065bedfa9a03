import CLinux
import Foundation
import Model

extension Lab {
    /// Makes a lab on a machine that has nothing of it; the caller removes what a failure leaves.
    static func make(
        _ specification: LabSpecification, layout: LabLayout, progress: Progress
    ) async throws -> Lab {
        progress("making pools and the switch")
        // The lab's own tmpfs first: from here on everything can be found again by its place.
        try Mounts.mount(
            layout.name, on: layout.directory, type: "tmpfs",
            options: "mode=755,size=\(LabLayout.directoryBytes)")
        var record = LabRecord(
            specification: specification, hosts: makeHosts(specification), hugePagesBefore: nil,
            complete: false)
        try record.write(layout)
        let lab = try Lab(layout: layout, record: record)
        try lab.makePool()
        if specification.hugePages > 0 {
            try HugePages.alone {
                // The old number is written down before it changes: down restores it in any case.
                let before = try HugePages.total()
                record.hugePagesBefore = before
                try record.write(layout)
                try HugePages.add(specification.hugePages, to: before)
                record.hugePagesTaken = true
                try record.write(layout)
            }
            try lab.makeHugePool()
        }
        try lab.writeFiles()
        try lab.group.make()
        try await lab.switchboard.make()
        try await lab.startKeeper()
        try await lab.startAll(progress: progress)
        record.complete = true
        try record.write(layout)
        return lab
    }

    private static func makeHosts(_ specification: LabSpecification) -> [LabHost] {
        (1...specification.hostCount).map { number in
            LabHost(
                name: HostName("h\(number)"), number: number,
                address: LabLayout.address(ofHost: number), uuid: UUID().uuidString.lowercased())
        }
    }

    private func makePool() throws {
        try Mounts.mount(
            "\(layout.name)-pool", on: layout.pool, type: "tmpfs",
            options: "mode=755,size=\(specification.poolBytes)")
    }

    private func makeHugePool() throws {
        let bytes = specification.hugePages * LabLayout.hugePageBytes
        try Mounts.mount(
            "\(layout.name)-hugepool", on: layout.hugePool, type: "hugetlbfs",
            options: "mode=755,pagesize=2M,size=\(bytes)")
    }

    private func writeFiles() throws {
        try Files.makeDirectory("\(layout.directory)/store")
        try Files.makeDirectory(layout.drivers)
        let key = (0..<4).map { _ in String(UInt64.random(in: .min ... .max), radix: 36) }
        try Files.write(key.joined(), to: layout.clusterKey)
        chmod(layout.clusterKey, 0o600)
        let driver = try Machine.qemuDriver()
        let link = "\(layout.drivers)/libvirt_driver_qemu.so"
        guard symlink(driver, link) == 0 else { throw systemFailure("cannot make \(link)", errno) }
        try Files.write(HostBootScript.text, to: layout.bootScript, executable: true)
        let addresses = hosts.map { "\($0.address) \($0.name)\n" }
        try Files.write(
            "127.0.0.1 localhost\n" + addresses.joined(), to: "\(layout.directory)/etc-hosts")
        for host in hosts {
            try files(of: host).write()
            try Machine.copyCapabilities(
                from: Machine.capabilitiesCache, to: capabilities(of: host))
        }
    }

    private func capabilities(of host: LabHost) -> String {
        "\(layout.directory(of: host.name))/var/cache/qemu/capabilities"
    }

    /// Starts all hosts; when libvirt has to find out first what QEMU can do, one of them does so
    /// for all.
    private func startAll(progress: Progress) async throws {
        var waiting = hosts[...]
        if Files.list(Machine.capabilitiesCache).isEmpty, let first = waiting.popFirst() {
            progress("starting host \(first.name) (the first time, libvirt probes QEMU)")
            try await boot(first)
            for host in waiting {
                try Machine.copyCapabilities(
                    from: capabilities(of: first), to: capabilities(of: host))
            }
        }
        guard !waiting.isEmpty else { return }
        progress("starting hosts \(waiting.map(\.name.text).joined(separator: ", "))")
        try await withThrowingTaskGroup(of: Void.self) { tasks in
            for host in waiting { tasks.addTask { try await boot(host) } }
            try await tasks.waitForAll()
        }
        try Machine.copyCapabilities(
            from: capabilities(of: hosts[0]), to: Machine.capabilitiesCache)
    }

    // MARK: - Removal

    /// Whether there is anything of a lab.
    static func remains(of layout: LabLayout) throws -> Bool {
        let group = ControlGroup(path: "\(try ControlGroup.root())/\(layout.name)")
        return Files.exists(layout.directory) || group.exists
    }

    /// Removes everything by its place, in an order that can be ended and begun again at any point.
    static func removeEverything(of layout: LabLayout) async throws {
        let mounts = try Mounts.below(layout.directory)
        if mounts.isEmpty, !Files.list(layout.directory).isEmpty {
            throw FtvmError(
                .failedPrecondition, "\(layout.directory) is not ours",
                cause: "there are files in it and nothing is mounted there",
                advice: "move it away")
        }
        let record = try? LabRecord.read(layout)
        // The processes of all hosts and all clients, frozen ones too.
        try await ControlGroup(path: "\(try ControlGroup.root())/\(layout.name)").remove()
        // Before the record goes: it alone knows the old number of huge pages.
        if let record, record.hugePagesBefore != nil {
            try Mounts.unmountAll(below: layout.hugePool)
            try giveBackHugePages(record, layout: layout)
        }
        try Mounts.unmountAll(below: layout.directory)
        guard rmdir(layout.directory) == 0 || errno == ENOENT else {
            throw systemFailure("cannot remove \(layout.directory)", errno)
        }
    }

    /// Others may have changed the number as well: what we added is taken away, no more. If the lab
    /// was ended while it added, only the number before is known.
    private static func giveBackHugePages(_ record: LabRecord, layout: LabLayout) throws {
        guard let before = record.hugePagesBefore else { return }
        try HugePages.alone {
            let total = try HugePages.total()
            let target = record.hugePagesTaken ? total - record.specification.hugePages : before
            if target >= 0, target < total { try HugePages.set(target) }
            // Written down before anything else can fail: never given back twice.
            var settled = record
            settled.hugePagesBefore = nil
            settled.complete = false
            try settled.write(layout)
        }
    }
}
