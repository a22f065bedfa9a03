import EndToEndSupport
import Glibc
import Testing

/// Guests with disks on real hosts, with real libvirt, QEMU and nbdkit, their images on the machine's own storage. One at a
/// time: they look at what is left on the machine.
@Suite(.serialized, .enabled(if: geteuid() == 0, "a lab needs root"))
enum Disks {
    /// FTVM_DISKS_FULL: as much as this version promises. Otherwise as much as every change must pass.
    static let isFull = Settings.variable("FTVM_DISKS_FULL") != nil
    /// FTVM_DISKS_KILLS: hosts killed under a database.
    static let kills = Settings.number("FTVM_DISKS_KILLS", default: isFull ? 20 : 3)
    /// FTVM_DISKS_FULL also decides at how many of the fault points ftvmd dies.
}
