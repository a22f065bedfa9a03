import Foundation
import Testing

/// Tests with real hosts on this machine, which only root can make. One at a time: they count what
/// is left on the machine.
@Suite(.serialized, .enabled(if: geteuid() == 0, "a lab needs root"))
enum RealLabs {}
