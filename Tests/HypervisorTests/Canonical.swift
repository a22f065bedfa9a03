import Foundation
import FoundationXML

/// What an XML document says, as a list: independent of our own parser, and of white space between
/// elements where `ignoringLayout` is set.
enum Canonical {
    static func list(_ text: String, ignoringLayout: Bool = false) throws -> [String] {
        let collector = Collector(ignoringLayout: ignoringLayout)
        let parser = XMLParser(data: Data(text.utf8))
        parser.delegate = collector
        guard parser.parse() else { throw parser.parserError ?? CocoaError(.coderReadCorrupt) }
        collector.flush()
        return collector.list
    }

    private final class Collector: NSObject, XMLParserDelegate {
        var list: [String] = []
        private var text = ""
        private let ignoringLayout: Bool

        init(ignoringLayout: Bool) { self.ignoringLayout = ignoringLayout }

        func flush() {
            let isLayout = text.allSatisfy(\.isWhitespace)
            if !text.isEmpty && !(isLayout && ignoringLayout) { list.append("text \(text)") }
            text = ""
        }

        func parser(
            _ parser: XMLParser, didStartElement name: String, namespaceURI: String?,
            qualifiedName: String?, attributes: [String: String]
        ) {
            flush()
            let sorted = attributes.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }
            list.append("start \(name) \(sorted)")
        }

        func parser(
            _ parser: XMLParser, didEndElement name: String, namespaceURI: String?,
            qualifiedName: String?
        ) {
            flush()
            list.append("end \(name)")
        }

        func parser(_ parser: XMLParser, foundCharacters string: String) { text += string }

        func parser(_ parser: XMLParser, foundCDATA block: Data) {
            flush()
            list.append("cdata \(String(decoding: block, as: UTF8.self))")
        }

        func parser(_ parser: XMLParser, foundComment comment: String) {
            flush()
            list.append("comment \(comment)")
        }

        func parser(
            _ parser: XMLParser, foundProcessingInstructionWithTarget target: String, data: String?
        ) {
            flush()
            list.append("instruction \(target) \(data ?? "")")
        }
    }
}
