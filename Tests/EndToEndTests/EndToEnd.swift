import EndToEndSupport
import Glibc
import Testing

/// All end-to-end tests: real hosts with the real libvirt, QEMU and kernel, which only root can make.
/// One at a time: they look at what is left on the machine.
@Suite(.serialized, .enabled(if: geteuid() == 0, "a lab needs root"))
enum EndToEnd {}
