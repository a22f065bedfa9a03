import Foundation
import Glibc
import Model

/// The files that a host finds when it boots: what a real machine has on its disk.
struct HostFiles {
    let layout: LabLayout
    let specification: LabSpecification
    let host: LabHost
    /// All of the lab's.
    let hosts: [LabHost]

    private var directory: String { layout.directory(of: host.name) }

    /// Writes everything; called once, when the lab is made. What a host keeps over a crash
    /// (`/etc/libvirt`, `/var`) is under `etc-libvirt` and `var`.
    func write() throws {

        for part in [
            "etc-libvirt/qemu", "etc-libvirt/hooks", "var/lib", "var/cache/qemu/capabilities",
            "var/log/qemu",
        ] {
            try Files.makeDirectory("\(directory)/\(part)")
        }
        try Files.write(libvirtdConfiguration, to: "\(directory)/etc-libvirt/libvirtd.conf")
        try Files.write(qemuConfiguration, to: "\(directory)/etc-libvirt/qemu.conf")
        try Files.write(daemonConfiguration, to: layout.daemonConfiguration(of: host.name))
        try Files.makeDirectory(layout.configurationDirectory(of: host.name))
        if specification.separateMachines {
            try Files.write(
                "FTVM_TEST_KERNEL=\(host.number)\n", to: layout.daemonEnvironment(of: host.name))
        }
        if let tool {
            let path = "\(directory)/etc-libvirt/hooks/qemu"
            let socket = layout.daemonSocket(of: host.name)
            try Files.write(
                "#!/bin/sh\nFTVM_SOCKET='\(socket)' exec '\(tool)' hook \"$@\"\n", to: path)
            chmod(path, 0o755)
        }
        if let root = specification.qemuRoots[host.name.text] { try setQEMU(root: root) }
    }

    /// From its next boot on the host has the QEMU that is unpacked there.
    func setQEMU(root: String) throws {
        try Files.write(root, to: "\(directory)/qemu-root")
    }

    /// What a reboot loses: everything that a real machine keeps in `/run`.
    func clearVolatile() throws {
        for part in ["libvirt", "run", "ftvmd.sock"] {
            try Files.removeTree("\(directory)/\(part)")
        }
        // libvirtd, and QEMU as its own user, both reach their sockets through here.
        try Files.makeDirectory("\(directory)/libvirt")
        try Files.makeDirectory("\(directory)/run")
    }

    private var libvirtdConfiguration: String {
        """
        # One of the lab's hosts; only this machine's root can reach its directory.
        host_uuid = "\(host.uuid)"
        auth_unix_ro = "none"
        auth_unix_rw = "none"
        log_level = 3
        log_outputs = "3:stderr"

        """
    }

    /// Differences from a real host, each because several daemons share one machine here.
    private var qemuConfiguration: String {
        let sandboxed = specification.qemuUser != "root"
        return """
            user = "\(specification.qemuUser)"
            group = "\(specification.qemuUser)"
            seccomp_sandbox = \(sandboxed ? 1 : 0)
            # There is no virtlogd in a lab host.
            stdio_handler = "file"
            # /dev and cgroups belong to the machine, and another host's daemon uses them too.
            namespaces = []
            cgroup_controllers = []
            security_driver = "none"
            # The note of a file's owner would outlive a host that is killed.
            remember_owner = 0

            """
    }

    /// `ftvm`, beside the daemon.
    private var tool: String? {
        specification.daemonPath.map { daemon in
            daemon.split(separator: "/").dropLast().map { "/\($0)" }.joined() + "/ftvm"
        }
    }

    /// A host of a lab is killed from outside all hosts, where `ftvm` runs.
    private var drill: String {
        guard let tool else { return "" }
        return """

            [drill]
            kill_host_command = ["\(tool)", "lab", "kill", "{host}", "--name", "\(layout.name)"]
            kill_host_from_client = true

            """
    }

    private var daemonConfiguration: String {
        var text = """
            host = "\(host.name)"
            libvirt_uri = "qemu:///system"
            socket_path = "\(layout.daemonSocket(of: host.name))"
            runtime_directory = "\(directory)/run"
            store_path = "\(layout.store)"
            log_level = "\(specification.logLevel)"
            heartbeat_period_milliseconds = \(specification.heartbeatPeriodMilliseconds)
            heartbeat_misses_until_dead = \(specification.heartbeatMissesUntilDead)
            state_directory = "\(directory)/var/lib/ftvm"
            \(drill)
            [[pool]]
            name = "pool"
            kind = "tmpfs"
            path = "\(layout.pool)"

            [[pool]]
            name = "memfd"
            kind = "memfd"
            path = "\(layout.memfdPool)"

            """
        if specification.hugePages > 0 {
            text += """

                [[pool]]
                name = "huge"
                kind = "hugetlbfs"
                path = "\(layout.hugePool)"

                """
        }
        return text + cluster
    }

    /// The hosts hear each other over the switch as well, and share the machine's kernel.
    private var cluster: String {
        var text = """

            [heartbeat]
            key_file = "\(layout.clusterKey)"

            """
        for host in hosts {
            text += """

                [[hosts]]
                name = "\(host.name)"
                address = "\(host.address)"
                machine = "\(specification.separateMachines ? host.name.text : "lab")"
                libvirt_uuid = "\(host.uuid)"

                """
        }
        return text
    }
}
