import Model

/// What being cut off takes from a host's network. A guest's own frames still pass.
package enum NetworkCut: String, CaseIterable, Sendable {
    case both, hearsNothing, isNotHeard
    fileprivate var chains: [String] {
        switch self {
        case .both: ["INPUT", "OUTPUT"]
        case .hearsNothing: ["INPUT"]
        case .isNotHeard: ["OUTPUT"]
        }
    }
}

extension TestLab {
    /// etcd, which is where the switch is, and a self-fence as quick as it can be, with the test as every host's watchdog.
    package func configureSelfFence(watchdogSeconds: Int) async throws {
        for host in hosts {
            try setDaemonVariables(
                ["FTVM_TEST_WATCHDOG=pipe", "FTVM_TEST_POOL_CUT='\(poolCut(host))'"], of: host)
        }
        try await configure { host in
            """
            [store]
            kind = "etcd"
            endpoints = ["\(etcdURL)"]
            attempt_milliseconds = 500
            request_milliseconds = 1000

            [self_fence]
            enabled = true
            renewal_milliseconds = 300
            deadline_milliseconds = 1000
            stop_milliseconds = 500
            watchdog = "\(watchdog(of: host))"
            watchdog_seconds = \(watchdogSeconds)
            """
        }
    }

    /// The host is cut off from the pool while this is there.
    private func poolCut(_ host: HostName) -> String { layout.directory(of: host) + "/pool-cut" }

    /// From the network and from the pool in one moment, as far as there is one.
    package func cutOff(_ host: HostName, _ way: NetworkCut = .both) async throws {
        try await cut(host, way, isOn: true)
    }

    /// After `cutOff`, with the same way.
    package func reconnect(_ host: HostName, _ way: NetworkCut = .both) async throws {
        try await cut(host, way, isOn: false)
    }

    private func cut(_ host: HostName, _ way: NetworkCut, isOn: Bool) async throws {
        let rules = way.chains.map { "iptables \(isOn ? "-A" : "-D") \($0) -j DROP" }
        let flag = poolCut(host)
        let script =
            "\(isOn ? "touch" : "rm -f") '\(flag)' && " + rules.joined(separator: " && ")
        _ = try await exec(host, ["sh", "-c", script])
    }
}
