// swift-tools-version: 6.2
import PackageDescription

/// House rules for every Swift target: Swift 6 language mode, warnings are errors.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .treatAllWarnings(as: .error),
]

/// The parts, lowest first. A part may use only parts above it in this list (that is, lower ones);
/// `Documentation/Architecture.md` says what each alone does.
let package = Package(
    name: "ftvm",
    platforms: [.macOS(.v15)],
    products: [
        .executable(name: "ftvm", targets: ["ftvm"]),
        .executable(name: "ftvmd", targets: ["ftvmd"]),
        .executable(name: "ftvm-inject", targets: ["ftvm-inject"]),
        .library(name: "ftvm-nbdkit-plugin", type: .dynamic, targets: ["NbdkitPlugin"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
        .package(url: "https://github.com/apple/swift-log", from: "1.6.0"),
        .package(url: "https://github.com/groue/GRDB.swift", from: "7.0.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.5.0"),
        .package(url: "https://github.com/swift-server/async-http-client", from: "1.24.0"),
        .package(url: "https://github.com/LebJe/TOMLKit", from: "0.6.0"),
        .package(url: "https://github.com/apple/swift-crypto", from: "4.0.0"),
        .package(url: "https://github.com/apple/swift-nio", from: "2.80.0"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.29.0"),
        .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.0"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.6.0"),
    ],
    targets: [
        .target(name: "CLinux"),
        .systemLibrary(
            name: "CLibvirt", pkgConfig: "libvirt-qemu", providers: [.apt(["libvirt-dev"])]),
        .systemLibrary(name: "CNuma", providers: [.apt(["libnuma-dev"])]),

        .systemLibrary(name: "CNbdkit", providers: [.apt(["nbdkit-plugin-dev"])]),

        .target(name: "Model", dependencies: ["CLinux"], swiftSettings: strict),
        .target(
            name: "MemoryPool", dependencies: ["Model", "CLinux", "CNuma"], swiftSettings: strict),
        .target(name: "Injection", dependencies: ["CLinux"], swiftSettings: strict),
        .target(
            name: "Hypervisor",
            dependencies: [
                "Model", "CLinux", "CLibvirt", .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(
            name: "Protection",
            dependencies: [
                "Model", "CLinux", "DiskLog", "MemoryPool", "Injection", "Hypervisor",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(
            name: "TransportSecurity",
            dependencies: ["Model", .product(name: "NIOSSL", package: "swift-nio-ssl")],
            swiftSettings: strict),
        .target(
            name: "ConfigurationFiles",
            dependencies: ["Model", .product(name: "TOMLKit", package: "TOMLKit")],
            swiftSettings: strict),
        .target(
            name: "ClusterStore",
            dependencies: [
                "Model", "TransportSecurity", .product(name: "GRDB", package: "GRDB.swift"),
                .product(name: "AsyncHTTPClient", package: "async-http-client"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
                .product(name: "NIOPosix", package: "swift-nio"),
            ],
            swiftSettings: strict),
        .target(name: "Fencing", dependencies: ["Model", "CLinux"], swiftSettings: strict),
        .target(
            name: "Heartbeat",
            dependencies: [
                "Model", "CLinux", .product(name: "Crypto", package: "swift-crypto"),
            ],
            swiftSettings: strict),
        .target(name: "PairLogic", dependencies: ["Model"], swiftSettings: strict),
        .target(name: "DiskLog", dependencies: ["Model", "CLinux"], swiftSettings: strict),
        // nbdkit loads it into itself: it brings its own copy of Swift's runtime.
        .target(
            name: "NbdkitPlugin", dependencies: ["DiskLog", "Model", "CNbdkit"],
            swiftSettings: strict, linkerSettings: [.unsafeFlags(["-static-stdlib"])]),
        .target(
            name: "Simulator", dependencies: ["Model", "PairLogic"], swiftSettings: strict),
        .target(
            name: "ControlAPI",
            dependencies: [
                "Model", "TransportSecurity",
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
                .product(name: "AsyncHTTPClient", package: "async-http-client"),
            ],
            swiftSettings: strict),
        .target(
            name: "HostAgent",
            dependencies: [
                "Model", "DiskLog", "MemoryPool", "Hypervisor", "Protection", "ClusterStore",
                "Fencing",
                "Heartbeat", "PairLogic", "ControlAPI", "ConfigurationFiles",
                "TransportSecurity",
                .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "HummingbirdCore", package: "hummingbird"),
                .product(name: "HummingbirdTLS", package: "hummingbird"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(
            name: "Lab",
            dependencies: [
                "Model", "CLinux", .product(name: "Subprocess", package: "swift-subprocess"),
                .product(name: "GRDB", package: "GRDB.swift"),
            ],
            swiftSettings: strict),
        .target(
            name: "Commands",
            dependencies: [
                "Model", "MemoryPool", "ControlAPI", "Lab", "ConfigurationFiles",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),

        .executableTarget(name: "ftvm", dependencies: ["Commands"], swiftSettings: strict),
        .executableTarget(
            name: "ftvmd",
            dependencies: [
                "HostAgent", .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
        .executableTarget(
            name: "ftvm-simulate",
            dependencies: [
                "Simulator", .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
        // Without shared Swift libraries: a promotion waits for this process to start.
        .executableTarget(
            name: "ftvm-inject", dependencies: ["Injection"], swiftSettings: strict,
            linkerSettings: [.unsafeFlags(["-static-stdlib"])]),

        // Tests. Two of them need a process of their own to kill.
        .executableTarget(
            name: "segment-crasher", dependencies: ["Model", "MemoryPool", "CLinux"],
            path: "Tests/SegmentCrasher", swiftSettings: strict),
        .executableTarget(
            name: "cluster-test-helper",
            dependencies: ["Model", "ClusterStore", "Heartbeat", "Fencing"],
            path: "Tests/FencingTests/Helper", swiftSettings: strict),
        .executableTarget(
            name: "disk-crasher", dependencies: ["Model", "DiskLog", "CLinux"],
            path: "Tests/DiskCrasher", swiftSettings: strict),
        .testTarget(
            name: "DiskLogTests", dependencies: ["Model", "DiskLog", "CLinux", "disk-crasher"],
            swiftSettings: strict),
        .testTarget(
            name: "MemoryPoolTests",
            dependencies: ["Model", "MemoryPool", "CLinux", "segment-crasher"],
            swiftSettings: strict),
        .testTarget(
            name: "HypervisorTests",
            dependencies: [
                "Hypervisor", "Model", "CLibvirt", "CLinux",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(
            name: "GuestSupport",
            dependencies: ["Hypervisor", "MemoryPool", "Model", "Protection"],
            path: "Tests/GuestSupport", swiftSettings: strict),
        .executableTarget(
            name: "ftvm-bench",
            dependencies: [
                "GuestSupport", "Protection", "Injection", "Hypervisor", "MemoryPool", "Model",
                "Fencing", "CLinux",
            ],
            path: "Tests/Benchmark", swiftSettings: strict),
        .target(
            name: "BenchmarkSupport", path: "Tests/BenchmarkSupport", swiftSettings: strict),
        .testTarget(
            name: "BenchmarkSupportTests", dependencies: ["BenchmarkSupport"],
            swiftSettings: strict),
        .executableTarget(
            name: "ftvm-peer-bench",
            dependencies: [
                "BenchmarkSupport", "EndToEndSupport", "GuestClients", "GuestSupport", "Lab",
                "ControlAPI", "Protection", "Injection", "Hypervisor", "MemoryPool", "Model",
                "Fencing", "CLinux",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "Tests/PeerBenchmark", exclude: ["Guest"], swiftSettings: strict),
        .testTarget(
            name: "ProtectionTests",
            dependencies: [
                "GuestSupport", "Protection", "DiskLog", "Injection", "Hypervisor", "MemoryPool",
                "Model",
                "Fencing", "CLinux",
            ],
            swiftSettings: strict),
        .target(
            name: "CertificateSupport", dependencies: ["TransportSecurity"],
            path: "Tests/CertificateSupport", swiftSettings: strict),
        .testTarget(
            name: "ClusterStoreTests",
            dependencies: [
                "Model", "ClusterStore", "TransportSecurity", "CertificateSupport",
                "cluster-test-helper",
                .product(name: "GRDB", package: "GRDB.swift"),
            ],
            swiftSettings: strict),
        .testTarget(
            name: "HeartbeatTests", dependencies: ["Model", "Heartbeat", "cluster-test-helper"],
            swiftSettings: strict),
        .testTarget(
            name: "FencingTests", dependencies: ["Model", "Fencing", "cluster-test-helper"],
            exclude: ["Helper", "Agents"], swiftSettings: strict),
        .testTarget(
            name: "ConfigurationTests", dependencies: ["ConfigurationFiles", "Model"],
            swiftSettings: strict),
        .testTarget(
            name: "PairLogicTests", dependencies: ["Model", "PairLogic"], swiftSettings: strict),
        .testTarget(
            name: "SimulatorTests", dependencies: ["Model", "PairLogic", "Simulator"],
            resources: [.copy("Scenarios")], swiftSettings: strict),
        .testTarget(
            name: "HostAgentTests",
            dependencies: [
                "Model", "HostAgent", "ControlAPI", "CertificateSupport", "TransportSecurity",
                .product(name: "Hummingbird", package: "hummingbird"),
            ],
            swiftSettings: strict),
        .testTarget(
            name: "CommandsTests",
            dependencies: ["Commands", "ControlAPI", "MemoryPool", "Model"],
            swiftSettings: strict),
        .testTarget(
            name: "LabTests",
            dependencies: [
                "Lab", "Model", "CLinux", .product(name: "GRDB", package: "GRDB.swift"),
            ],
            swiftSettings: strict),
        .target(name: "GuestClients", path: "Tests/GuestClients", swiftSettings: strict),
        .executableTarget(
            name: "ftvm-test-client",
            dependencies: [
                "GuestClients", .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            path: "Tests/TestClient", swiftSettings: strict),
        .testTarget(
            name: "GuestClientsTests", dependencies: ["GuestClients"], swiftSettings: strict),
        .target(
            name: "EndToEndSupport", dependencies: ["GuestClients", "Lab", "ControlAPI", "Model"],
            path: "Tests/EndToEndSupport", swiftSettings: strict),
        .executableTarget(
            name: "ftvm-network-bench",
            dependencies: ["EndToEndSupport", "GuestClients", "Lab", "ControlAPI", "Model"],
            path: "Tests/NetworkBenchmark", swiftSettings: strict),
        .testTarget(
            name: "OutputEndToEndTests",
            dependencies: ["EndToEndSupport", "GuestClients", "Lab", "ControlAPI", "Model"],
            swiftSettings: strict),
        .testTarget(
            name: "ClusterEndToEndTests",
            dependencies: ["EndToEndSupport", "GuestClients", "Lab", "ControlAPI", "Model"],
            exclude: ["Agents"], swiftSettings: strict),
        .testTarget(
            name: "DomainsEndToEndTests",
            dependencies: ["EndToEndSupport", "GuestClients", "Lab", "ControlAPI", "Model"],
            swiftSettings: strict),
        .testTarget(
            name: "DisksEndToEndTests",
            dependencies: ["EndToEndSupport", "Lab", "ControlAPI", "Model"],
            exclude: ["Guest"], swiftSettings: strict),
        .testTarget(
            name: "EndToEndTests", dependencies: ["EndToEndSupport", "Lab", "ControlAPI", "Model"],
            swiftSettings: strict),
    ]
)
