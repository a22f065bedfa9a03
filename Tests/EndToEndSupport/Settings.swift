import Foundation

/// How much is tested, and with what: everything here can be set in the environment.
package enum Settings {
    /// FTVM_PRODUCTS: where the build puts executables.
    package static let products =
        variable("FTVM_PRODUCTS")
        ?? FileManager.default.currentDirectoryPath + "/.build/release"
    /// FTVM_TEST_ARTIFACTS: where a failed test's logs are kept.
    package static let artifacts = variable("FTVM_TEST_ARTIFACTS") ?? "/tmp/ftvm-test-artifacts"
    /// FTVM_E2E_LAB: the lab's name, so that other labs on this machine are left alone.
    package static let labName = variable("FTVM_E2E_LAB") ?? "ftvm-e2e"
    /// FTVM_CACHE: where `Scripts/guest-image` puts the guest.
    package static let imageDirectory = variable("FTVM_CACHE") ?? "/var/cache/ftvm/guest"
    /// FTVM_E2E_HOST_KILLS: hosts killed in a row; 20 are promised, and were run.
    package static let hostKills = number("FTVM_E2E_HOST_KILLS", default: 8)
    /// FTVM_E2E_DAEMON_KILLS: times that an ftvmd is killed under load.
    package static let daemonKills = number("FTVM_E2E_DAEMON_KILLS", default: 8)
    /// FTVM_E2E_FAULT_ROUNDS: times that ftvmd dies at each named fault point.
    package static let faultRounds = number("FTVM_E2E_FAULT_ROUNDS", default: 1)
    /// FTVM_E2E_LOG_LEVEL: ftvmd's.
    package static let logLevel = variable("FTVM_E2E_LOG_LEVEL") ?? "debug"
    /// FTVM_E2E_PATIENCE: multiplies how long is waited for anything, for a machine that is busy.
    package static let patience = number("FTVM_E2E_PATIENCE", default: 1)

    /// FTVM_TEST_SEED: of every random choice; printed, so that a run can be repeated.
    package static let seed: UInt64 = {
        let seed = variable("FTVM_TEST_SEED").flatMap(UInt64.init) ?? UInt64.random(in: 0...999_999)
        print("random choices: FTVM_TEST_SEED=\(seed)")
        return seed
    }()

    /// The random numbers of one test, the same for the same seed whatever other tests do.
    package static func random(_ test: String) -> SeededRandom {
        SeededRandom(state: test.utf8.reduce(seed) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 })
    }

    package static func variable(_ name: String) -> String? {
        ProcessInfo.processInfo.environment[name].flatMap { $0.isEmpty ? nil : $0 }
    }

    package static func number(_ name: String, default standard: Int) -> Int {
        guard let text = variable(name) else { return standard }
        guard let number = Int(text), number > 0 else {
            preconditionFailure("\(name)=\(text) is not a number over 0")
        }
        return number
    }
}

/// splitmix64.
package struct SeededRandom: RandomNumberGenerator {
    package var state: UInt64

    package mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var value = state
        value = (value ^ (value >> 30)) &* 0xbf58_476d_1ce4_e5b9
        value = (value ^ (value >> 27)) &* 0x94d0_49bb_1331_11eb
        return value ^ (value >> 31)
    }
}
