import CLinux
import Glibc
import Model

/// What the kernel must be able to do, asked once at start so that nobody finds out in a failover.
package enum KernelRequirements {
    /// - Throws: `.unsupported` that names what is missing.
    package static func check() throws {
        #if !arch(x86_64)
            throw FtvmError(
                .unsupported, "this processor architecture is not supported",
                cause: "system calls are put into QEMU on x86-64 only")
        #else
            var features: UInt64 = 0
            let result = ftvm_uffd_available_features(&features)
            guard result == 0 else {
                throw FtvmError(
                    .unsupported, "this kernel has no usable userfaultfd",
                    cause: "/dev/userfaultfd: \(String(cString: strerror(-result)))",
                    advice: "use Linux 6.4 or newer with CONFIG_USERFAULTFD, and run as root")
            }
            let missing = ftvm_uffd_features() & ~features
            guard missing == 0 else {
                throw FtvmError(
                    .unsupported, "this kernel's userfaultfd lacks what the page tracker needs",
                    cause: "missing feature bits 0x\(String(missing, radix: 16)): write protection "
                        + "of shared memory, huge pages or unpopulated pages",
                    advice: "use Linux 6.4 or newer")
            }
        #endif
    }
}
