import Foundation
import Hypervisor
import Testing

@Suite struct BlockNodeTests {
    /// As QEMU 7.2 tells of nodes; the first two have an NBD server below them.
    static let nodes: [(isServed: Bool, text: String)] = [
        (
            true,
            #"{"node-name":"ftvm-vda","drv":"nbd","file":"nbd+unix:///vda?socket=/run/a.sock"}"#
        ),
        (
            true,
            #"{"node-name":"libvirt-3-format","drv":"qcow2","file":"json:{\"backing\": {\"driver\": \"qcow2\", "#
                + #"\"file\": {\"driver\": \"file\", \"filename\": \"/a.qcow2\"}}, \"driver\": \"qcow2\", "#
                + #"\"file\": {\"server.path\": \"/run/a.sock\", \"driver\": \"nbd\", \"export\": \"vda\", "#
                + #"\"server.type\": \"unix\"}}"}"#
        ),
        (
            false,
            #"{"node-name":"libvirt-3-format","drv":"qcow2","file":"json:{\"backing\": {\"driver\": \"qcow2\", "#
                + #"\"file\": {\"driver\": \"nbd\", \"export\": \"base\"}}, \"driver\": \"qcow2\", "#
                + #"\"file\": {\"driver\": \"file\", \"filename\": \"/a.s1\"}}"}"#
        ),
        (false, #"{"node-name":"libvirt-1-format","drv":"qcow2","file":"/a.qcow2"}"#),
    ]

    @Test(arguments: nodes)
    func whatIsServedIsSeen(_ node: (isServed: Bool, text: String)) throws {
        let read = try JSONDecoder().decode(BlockNode.self, from: Data(node.text.utf8))
        #expect(read.isServed == node.isServed, "\(read.file)")
    }
}
