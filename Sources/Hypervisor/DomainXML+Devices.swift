import CLinux
import Model

/// Telling whether somebody has changed a running domain's devices.
extension DomainXML {
    /// A line for each device, and for the number of CPUs: a name for people, a space, and a checksum of all that this XML
    /// says of it but for what changes by itself. Sorted.
    package var deviceLines: [String] {
        let kept = ["vcpu", "vcpus", "maxMemory", "iothreads"]
        let devices = root.first("devices")?.elements.filter(Self.isDevice) ?? []
        let all = root.elements.filter { kept.contains($0.name) } + devices
        return all.map { element in
            var element = element
            Self.removeWhatChanges(&element)
            var words: [String] = []
            Self.collect(element, into: &words)
            let bytes = Array(words.joined(separator: "\u{1}").utf8)
            let sum = ftvm_crc32c(0, bytes, bytes.count)
            return "\(Self.deviceName(element)) " + String(sum, radix: 16)
        }.sorted()
    }

    /// What was added, taken away or changed, for people; empty: nothing.
    package static func changes(from old: [String], to new: [String]) -> String {
        func counts(_ lines: [String]) -> [String: Int] {
            lines.reduce(into: [:]) { $0[$1, default: 0] += 1 }
        }
        func names(_ lines: [String: Int]) -> [String] {
            lines.filter { $0.value > 0 }.keys.map { line in
                line.lastIndex(of: " ").map { String(line[..<$0]) } ?? line
            }
        }
        let (before, now) = (counts(old), counts(new))
        let gone = names(before.merging(now) { $0 - $1 }.filter { before[$0.key] != nil })
        let come = names(now.merging(before) { $0 - $1 }.filter { now[$0.key] != nil })
        let changed = Set(gone).intersection(come)
        let parts = [
            ("added: ", Set(come).subtracting(changed)),
            ("removed: ", Set(gone).subtracting(changed)),
            ("changed: ", changed),
        ]
        return parts.filter { !$0.1.isEmpty }.map { $0.0 + $0.1.sorted().joined(separator: ", ") }
            .joined(separator: "; ")
    }

    /// A controller of model `none` stands for there being none.
    private static func isDevice(_ element: XMLTree.Element) -> Bool {
        element.name != "emulator" && !(element.name == "controller" && element["model"] == "none")
    }

    /// The guest's agent comes and goes; statistics are nobody's hardware. Aliases are libvirt's own handles, and a libvirtd
    /// that was started anew may have others; what it knows of images behind images it finds out again.
    private static func removeWhatChanges(_ element: inout XMLTree.Element) {
        element.removeElements { ["alias", "backingStore", "mirror"].contains($0.name) }
        if element.name == "channel" { element.updateFirst("target") { $0["state"] = nil } }
        if element.name == "memballoon" { element.removeElements { $0.name == "stats" } }
    }

    private static func collect(_ element: XMLTree.Element, into words: inout [String]) {
        words.append("<" + element.name)
        words += element.attributes.map { "\($0.name)=\($0.value)" }.sorted()
        for child in element.elements { collect(child, into: &words) }
        if element.elements.isEmpty { words.append(XMLText.trim(element.text)) }
        words.append(">")
    }

    private static func deviceName(_ element: XMLTree.Element) -> String {
        let detail =
            element.first("mac")?["address"] ?? element.first("target")?["dev"]
            ?? element["model"] ?? element["type"] ?? ""
        return XMLText.trim("\(element.name) \(detail)")
    }
}
