import Foundation
import Hypervisor
import MemoryPool
import Model
import PairLogic
import Protection

/// What this host's agent holds for one pair: never stored, made anew after a restart. Belongs to the agent actor.
final class PairRuntime {
    let name: PairName
    /// The primary's driver, while this host runs it.
    var driver: PrimaryDriver?
    /// Why the driver can commit no more; nil while it can.
    var driverFailure: FtvmError?
    /// The waiting QEMU, while this host has it ready.
    var secondary: WaitingSecondary?
    /// The driver's QEMU is ending: it runs nothing any more, though it has not ended yet.
    var isEnding = false
    /// Tells of the end of the QEMU that `driver` or `secondary` is about.
    var watch: ProcessWatch?
    /// The guest has ended, and its disks have everything.
    var isSettled = false
    /// What of its disks was told last; nil: all is well.
    var diskTrouble: FtvmError?
    /// Where the disks of a domain's XML have their journal: parsed once for each XML.
    private var journal: (xml: String, path: String?)?
    /// How fast the primary's disk log is applied.
    var diskRate = DiskRate()
    /// Somebody asks its QEMU whether it still answers.
    var isProbed = false
    /// The guest's devices as they were when the driver began, as far as they are known.
    var devices: WatchedDevices?
    /// The long work under way, of which there is at most one for a pair on a host.
    var work: PairWork?
    /// The QEMU that was here ended in the way of a guest that shut down, or was ended by a user.
    var guestEnded = false
    /// The claim that this very ftvmd has made last.
    var claimed: Generation?
    /// A claim is being written.
    var isClaiming = false
    /// We have ended, or are ending, this QEMU: what libvirt says of it is no user's doing.
    var endedByUs = false
    /// The QEMU is gone, and libvirt has not said why yet: conclude nothing before this time.
    var reasonDueAtNanoseconds: UInt64 = 0
    /// When it was last told that a fence is waited for, and of which generation.
    var waitingTold: (generation: Generation?, reason: String, atNanoseconds: UInt64)?
    /// The guest has just been promoted here: until then it has the machine to itself.
    var quietUntilNanoseconds: UInt64 = 0
    /// What libvirt said last of the domain; nil: ask.
    var domain: KnownDomain?
    /// Why the last long work failed, and until when no new attempt is made.
    var failure: FtvmError?
    private(set) var retryAtNanoseconds: UInt64 = 0
    private var failuresInARow: UInt64 = 0

    /// Where the pair's disks have their journal; nil: nowhere.
    func journalPath(of record: PairRecord) -> String? {
        if let journal, journal.xml == record.domainXML { return journal.path }
        let disks = (try? DomainXML(record.domainXML).guestDisks) ?? []
        let path = DiskImages.journalPath(disks)
        journal = (record.domainXML, path)
        return path
    }

    struct WatchedDevices {
        /// libvirt's XML of the running domain, and what it says of its devices.
        var text: String
        var lines: [String]
        /// Descriptors that QEMU had when it was looked last.
        var descriptors: Int
        var atNanoseconds: UInt64
    }

    struct KnownDomain {
        /// nil: libvirt knows no such domain.
        var status: DomainStatus?
        /// QEMU's own word for its state; nil when there is no QEMU.
        var runState: String?
    }

    init(name: PairName) { self.name = name }

    /// After a failure: 0.5 s, 1 s, 2 s, ... at most 30 s.
    func note(failure: FtvmError, nowNanoseconds: UInt64) {
        self.failure = failure
        failuresInARow = min(failuresInARow + 1, 7)
        let pause = min(UInt64(500) << (failuresInARow - 1), 30_000)
        retryAtNanoseconds = nowNanoseconds + pause * 1_000_000
    }

    func noteSuccess() {
        failure = nil
        failuresInARow = 0
        retryAtNanoseconds = 0
    }

    /// Lets go of everything that belongs to a QEMU of this host.
    func forgetQEMU() {
        watch = nil
        driver?.close(isHarmless: isEnding)
        driver = nil
        isEnding = false
        driverFailure = nil
        devices = nil
        diskTrouble = nil
        secondary?.monitor.interrupt()
        secondary?.disks?.close(endingPlugin: false)
        secondary = nil
        domain = nil
    }
}
