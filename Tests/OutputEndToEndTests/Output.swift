import EndToEndSupport
import Foundation
import Glibc
import Testing

/// What clients see of failovers: real hosts, real QEMU, and programs on the lab's switch that judge every answer.
/// One at a time: they measure.
@Suite(.serialized, .enabled(if: geteuid() == 0, "a lab needs root"))
enum Output {
    /// FTVM_OUTPUT_FULL: as much as this version promises, which takes half an hour. Otherwise as much as every change
    /// must pass.
    static let isFull = Settings.variable("FTVM_OUTPUT_FULL") != nil

    static func amount(_ variable: String, _ ordinary: Int, full: Int) -> Int {
        Settings.number(variable, default: isFull ? full : ordinary)
    }
    /// FTVM_OUTPUT_KILLS: in the test of numbers.
    static let kills = amount("FTVM_OUTPUT_KILLS", 12, full: 50)
    /// FTVM_OUTPUT_SECOND_CARD_KILLS: the same with two network cards.
    static let secondCardKills = amount("FTVM_OUTPUT_SECOND_CARD_KILLS", 4, full: 16)
    /// FTVM_OUTPUT_REDIS_KILLS: hosts killed under a redis server.
    static let redisKills = amount("FTVM_OUTPUT_REDIS_KILLS", 6, full: 20)
    /// FTVM_OUTPUT_TRANSFER_KILLS: under each long transfer.
    static let transferKills = amount("FTVM_OUTPUT_TRANSFER_KILLS", 3, full: 10)
    /// FTVM_OUTPUT_SWITCHOVERS: in a row.
    static let switchovers = amount("FTVM_OUTPUT_SWITCHOVERS", 5, full: 20)
    /// FTVM_OUTPUT_SPEED_ROUNDS: failovers, and switchovers, whose silences are measured.
    static let speedRounds = amount("FTVM_OUTPUT_SPEED_ROUNDS", 4, full: 20)
    /// FTVM_OUTPUT_DAEMON_KILLS: of ftvmd alone.
    static let daemonKills = amount("FTVM_OUTPUT_DAEMON_KILLS", 4, full: 30)
}
