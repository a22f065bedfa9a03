import Model

/// A filter of QEMU on a netdev (QEMU: net/filter.c, net/filter-mirror.c). Filters on queue `tx`, towards the guest, run
/// in the order in which they were added, those on `rx`, from the guest, the other way round.
package struct NetFilter: Hashable, Sendable {
    package enum Kind: String, Sendable {
        /// Sends a copy of every frame to `outdev`.
        case mirror = "filter-mirror"
        /// Sends every frame to `outdev` instead of where it was to go, and frames from `indev` on from here.
        case redirector = "filter-redirector"
    }

    package enum Queue: String, Sendable { case tx, rx }

    package let kind: Kind
    package let id: String
    package let netdev: String
    package let queue: Queue
    /// `outdev` or `indev`: a character device of the same name as the filter.
    package let end: String

    package init(kind: Kind, id: String, netdev: String, queue: Queue, end: String) {
        self.kind = kind
        self.id = id
        self.netdev = netdev
        self.queue = queue
        self.end = end
    }
}

extension Monitor {
    /// Makes a character device of one end of a socket pair. It goes over by name, since a number is only taken on
    /// QEMU's command line (QEMU: util/qemu-sockets.c, socket_get_fd).
    /// - Parameter descriptor: the caller keeps its own.
    package func addSocketDevice(id: String, descriptor: Int32, transferName: String) throws {
        try giveDescriptor(descriptor, name: transferName)
        let name = JSONText.quote(transferName)
        _ = try execute(
            "chardev-add",
            arguments: "{\"id\":\(JSONText.quote(id)),\"backend\":{\"type\":\"socket\",\"data\":"
                + "{\"server\":false,\"addr\":{\"type\":\"fd\",\"data\":{\"str\":\(name)}}}}}")
    }

    package func removeCharacterDevice(id: String) throws {
        _ = try execute("chardev-remove", arguments: "{\"id\":\(JSONText.quote(id))}")
    }

    /// Names of all character devices.
    package func characterDevices() throws -> [String] {
        try execute("query-chardev").decode([CharacterDeviceAnswer].self).map(\.label)
    }

    /// Adds a filter that is switched off.
    package func addFilter(_ filter: NetFilter) throws {
        _ = try execute(
            "object-add",
            arguments:
                "{\"qom-type\":\"\(filter.kind.rawValue)\",\"id\":\(JSONText.quote(filter.id)),"
                + "\"netdev\":\(JSONText.quote(filter.netdev)),\"queue\":\"\(filter.queue.rawValue)\","
                + "\"\(filter.end)\":\(JSONText.quote(filter.id)),\"status\":\"off\"}")
    }

    package func setFilter(id: String, on: Bool) throws {
        _ = try execute(
            "qom-set",
            arguments: "{\"path\":\(JSONText.quote("/objects/" + id)),\"property\":\"status\","
                + "\"value\":\"\(on ? "on" : "off")\"}")
    }

    package func removeObject(id: String) throws {
        _ = try execute("object-del", arguments: "{\"id\":\(JSONText.quote(id))}")
    }

    /// Names of all objects made with `object-add`, QEMU's own among them.
    package func objects() throws -> [String] {
        try execute("qom-list", arguments: "{\"path\":\"/objects\"}")
            .decode([ObjectAnswer].self).map(\.name)
    }
}

private struct CharacterDeviceAnswer: Decodable {
    let label: String
}

private struct ObjectAnswer: Decodable {
    let name: String
}
