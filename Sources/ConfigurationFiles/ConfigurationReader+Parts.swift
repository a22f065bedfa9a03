import Model

extension ConfigurationReader {
    mutating func selfFence() {
        var section = root.section("self_fence")
        var fence = SelfFenceConfiguration()
        let time = 100...3_600_000
        fence.enabled = section.flag("enabled") ?? fence.enabled
        fence.renewalMilliseconds =
            section.integer("renewal_milliseconds", in: time) ?? fence.renewalMilliseconds
        fence.deadlineMilliseconds =
            section.integer("deadline_milliseconds", in: time) ?? fence.deadlineMilliseconds
        fence.stopMilliseconds =
            section.integer("stop_milliseconds", in: time) ?? fence.stopMilliseconds
        fence.watchdogPath = section.path("watchdog")
        fence.watchdogSeconds =
            section.integer("watchdog_seconds", in: 1...600) ?? fence.watchdogSeconds
        fence.driftPartsPerMillion =
            section.integer("drift_parts_per_million", in: 0...100_000)
            ?? fence.driftPartsPerMillion
        fence.waitMilliseconds = section.integer("wait_milliseconds", in: time)
        section.refuseOthers()
        result.selfFence = fence
        let beat = result.daemon.heartbeatPeriodMilliseconds
        if fence.deadlineMilliseconds < 3 * fence.renewalMilliseconds
            || fence.deadlineMilliseconds < 10 * beat
        {
            findings.error(
                section.place("deadline_milliseconds"),
                "the self-fence deadline of \(fence.deadlineMilliseconds) ms is too short",
                cause:
                    "leases are renewed every \(fence.renewalMilliseconds) ms, heartbeats sent every "
                    + "\(beat) ms",
                advice:
                    "at least 3 renewals and 10 heartbeats, so that a lost message or two do not "
                    + "end guests")
        }
        let shortest = fence.shortestWaitMilliseconds(heartbeatMilliseconds: beat)
        if let wait = fence.waitMilliseconds, wait < shortest {
            findings.error(
                section.place("wait_milliseconds"),
                "others would count on the self-fence after \(wait) ms, but a host may run guests for "
                    + "up to \(shortest) ms",
                advice: "raise `wait_milliseconds`, or lower the deadline or the watchdog's time")
        }
        if fence.enabled, fence.watchdogPath == nil {
            findings.warning(
                section.place("enabled"),
                "without a watchdog a self-fence proves nothing to others",
                advice: "set watchdog = \"/dev/watchdog\"")
        }
    }

    mutating func api() {
        var section = root.section("api")
        var api = APIConfiguration()
        api.socketGroup = section.text("socket_group")
        if let text = section.text("socket_mode") {
            if let mode = UInt32(text, radix: 8), mode <= 0o777, mode & 0o600 == 0o600 {
                api.socketMode = mode
            } else {
                let _: Bool? = section.wrong(
                    "socket_mode", "an octal mode with rw for root: \"0660\"")
            }
        } else if api.socketGroup != nil {
            api.socketMode = 0o660
        }
        if api.socketMode & 0o006 != 0 {
            findings.error(
                section.place("socket_mode"), "everybody on this host could end VMs",
                advice: "set `socket_group` and a mode of 0660")
        }
        let listen = section.text("listen")
        let tls = tls(&section, authority: "client_ca")
        section.refuseOthers()
        if let listen {
            if let (address, port) = Self.split(listen) {
                if let tls {
                    api.network = APIConfiguration.Network(address: address, port: port, tls: tls)
                } else if !["certificate", "key", "client_ca"].contains(where: section.has) {
                    findings.error(
                        section.place("listen"),
                        "nothing listens on the network without certificates",
                        advice: "set `certificate`, `key` and `client_ca`")
                }
            } else {
                let _: Bool? = section.wrong("listen", "an address and a port: \"10.0.0.1:7751\"")
            }
        } else if tls != nil {
            section.missing("listen", advice: "certificates are for the network only")
        }
        result.api = api
    }

    mutating func limits() {
        var section = root.section("limits")
        result.limits.failovers =
            section.integer("failovers", in: 1...256) ?? result.limits.failovers
        result.limits.enablings =
            section.integer("enablings", in: 1...256) ?? result.limits.enablings
        result.limits.connections =
            section.integer("connections", in: 4...10_000) ?? result.limits.connections
        section.refuseOthers()
    }

    mutating func drill() {
        var section = root.section("drill")
        if let command = section.texts("kill_host_command") {
            if command.first?.hasPrefix("/") == true,
                command.contains(where: { $0.contains("{host}") })
            {
                result.daemon.drillKillHostCommand = command
            } else {
                let _: Bool? = section.wrong(
                    "kill_host_command", "a program's whole path, and {host} in an argument")
            }
        }
        result.daemon.drillKillHostFromClient = section.flag("kill_host_from_client") ?? false
        section.refuseOthers()
    }

    /// What one part says of another.
    mutating func relations() {
        let names = Set(result.hosts.map(\.name))
        if !names.isEmpty, !names.contains(result.daemon.host), root.has("host") {
            findings.error(
                root.place("hosts"), "this host, \(result.daemon.host), is not among the [[hosts]]")
        }
        let fences = root.sections("fence")
        for section in fences {
            guard case .text(let host) = section.table.settings["host"]?.value else { continue }
            if !names.contains(HostName(host)) {
                findings.error(
                    section.place("host"), "the host \(host) is not among the [[hosts]]")
            }
        }
        for fence in result.fences {
            guard case .libvirt = fence.method,
                result.hosts.contains(where: { $0.name == fence.host && $0.libvirtUUID == nil })
            else { continue }
            findings.error(
                root.place("fence"),
                "a fence of \(fence.host) through libvirt needs its `libvirt_uuid` in [[hosts]]",
                advice: "see `virsh capabilities` on that host")
        }
        if result.heartbeat.udp != nil {
            if result.heartbeat.udp?.address.isEmpty == true {
                result.heartbeat.udp?.address =
                    result.hosts.first { $0.name == result.daemon.host }?.address ?? ""
            }
            if result.heartbeat.udp?.address.isEmpty == true {
                findings.error(
                    root.place("heartbeat"), "this host has no address for heartbeats",
                    advice: "set `address` in its [[hosts]], or in [heartbeat]")
            }
            for host in result.hosts where host.address == nil && host.name != result.daemon.host {
                findings.error(
                    root.place("hosts"), "\(host.name) has no address for heartbeats",
                    advice: "set `address` in its [[hosts]]")
            }
        }
        if result.selfFence.enabled, result.hosts.isEmpty {
            findings.error(
                root.place("self_fence"), "a self-fence needs to know how many hosts there are",
                advice: "list every host of the cluster in [[hosts]]")
        }
        guard result.store.kind == .etcd else { return }
        if result.hosts.count < 2 {
            findings.warning(
                root.place("hosts"),
                "several machines share the store, and [[hosts]] does not list them",
                advice: "list every host with its address and its fence devices")
        }
        for host in result.hosts
        where !result.fences.contains(where: { $0.host == host.name })
            && !(result.selfFence.enabled && result.selfFence.watchdogPath != nil)
        {
            findings.warning(
                root.place("hosts"), "nothing can fence \(host.name)",
                advice: "its pairs would wait for a hand after a failure: add a [[fence]], or a "
                    + "watchdog under [self_fence]")
        }
    }
}
