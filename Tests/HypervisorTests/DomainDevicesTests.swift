import Hypervisor
import Testing

/// Telling changed devices from the same ones.
@Suite struct DomainDevicesTests {
    private func lines(_ devices: String, vcpu: String = "<vcpu current='1'>2</vcpu>") throws
        -> [String]
    {
        try DomainXML(
            "<domain type='qemu'><name>d</name>\(vcpu)<devices>\(devices)</devices></domain>"
        ).deviceLines
    }

    private static let card =
        "<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface>"
    private static let other =
        "<interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/></interface>"

    @Test func orderAndTheAgentsStateAreNoChange() throws {
        func channel(_ state: String) -> String {
            "<channel type='unix'><target type='virtio' name='agent' state='\(state)'/></channel>"
        }
        let one = try lines(Self.card + channel("connected"))
        let two = try lines(channel("disconnected") + Self.card)
        #expect(one == two)
        #expect(DomainXML.changes(from: one, to: two).isEmpty)
    }

    /// Seen: libvirt 9.0 calls a guest's missing USB controller `usb` when it starts it, and `none` when it was itself
    /// started anew.
    @Test func whatANewDaemonCallsDifferentlyIsNoChange() throws {
        func controller(_ alias: String) -> String {
            "<controller type='usb' model='none'><alias name='\(alias)'/></controller>"
        }
        func card(_ alias: String) -> String {
            Self.card.replacing("</interface>", with: "<alias name='\(alias)'/></interface>")
        }
        let one = try lines(controller("usb") + card("net0"))
        let two = try lines(controller("none") + card("hostnet0"))
        #expect(DomainXML.changes(from: one, to: two).isEmpty)
    }

    @Test func whatIsAddedRemovedAndChangedIsNamed() throws {
        let one = try lines(Self.card)
        let both = try lines(Self.card + Self.other)
        #expect(DomainXML.changes(from: one, to: both) == "added: interface 52:54:00:00:00:02")
        #expect(DomainXML.changes(from: both, to: one) == "removed: interface 52:54:00:00:00:02")
        let moved = try lines(Self.card.replacing("br0", with: "br1"))
        #expect(DomainXML.changes(from: one, to: moved) == "changed: interface 52:54:00:00:00:01")
        let more = try lines(Self.card, vcpu: "<vcpu current='2'>2</vcpu>")
        #expect(DomainXML.changes(from: one, to: more) == "changed: vcpu")
    }

    @Test func twoOfAKindAreCounted() throws {
        let one = try lines("<rng model='virtio'/>")
        let two = try lines("<rng model='virtio'/><rng model='virtio'/>")
        #expect(DomainXML.changes(from: one, to: two) == "added: rng virtio")
        #expect(DomainXML.changes(from: two, to: one) == "removed: rng virtio")
    }
}
