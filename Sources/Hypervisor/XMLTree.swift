import Model

/// An XML document that gives back every byte of what was parsed: white space, comments, CDATA,
/// entity references, quotes and the order of attributes are kept as written, so that whatever is
/// not touched is not changed. Foundation's `XMLDocument` does not do that (and its accessors crash
/// on text nodes), which is why domain XML is held in this tree.
///
/// It is a non-validating parser for what libvirt hands out: entities are not expanded from a DTD
/// and nothing is ever loaded from elsewhere.
package struct XMLTree: Hashable, Sendable {
    /// Everything before the root element, as written.
    package var prolog: String
    package var root: Element
    /// Everything after the root element, as written.
    package var epilog: String

    /// The document as text; `XMLTree(parsing: text).text == text`.
    package var text: String {
        var output = prolog
        root.write(to: &output)
        output += epilog
        return output
    }

    /// One attribute, with the exact text around its value.
    package struct Attribute: Hashable, Sendable {
        /// White space in front of the name.
        var lead: String
        /// The name as written, with its prefix.
        package var name: String
        /// `=` with the white space around it.
        var equals: String
        var quote: Character
        /// The value as written: entity references are not resolved.
        var raw: String

        /// The value with entity references resolved.
        package var value: String { XMLText.decode(raw) }

        package init(_ name: String, _ value: String) {
            self.lead = " "
            self.name = name
            self.equals = "="
            self.quote = "'"
            self.raw = XMLText.encodeAttribute(value)
        }

        init(lead: String, name: String, equals: String, quote: Character, raw: String) {
            self.lead = lead
            self.name = name
            self.equals = equals
            self.quote = quote
            self.raw = raw
        }
    }

    /// What an element contains. The text of every case but `element` is as written, with its
    /// marks.
    package indirect enum Node: Hashable, Sendable {
        case element(Element)
        case text(String)
        case cdata(String)
        case comment(String)
        case instruction(String)
    }

    package struct Element: Hashable, Sendable {
        /// The name as written, with its prefix.
        package var name: String
        package var attributes: [Attribute]
        /// White space before `>` or `/>` of the start tag.
        var startTail: String
        package var children: [Node]
        /// White space before `>` of the end tag.
        var endTail: String
        /// Written as `<name/>` as long as there are no children.
        var isEmptyTag: Bool

        package init(_ name: String, attributes: [Attribute] = [], children: [Node] = []) {
            self.name = name
            self.attributes = attributes
            self.startTail = ""
            self.children = children
            self.endTail = ""
            self.isEmptyTag = true
        }
    }
}

// MARK: - Reading and changing elements

extension XMLTree.Element {
    /// The name without its prefix.
    package var localName: String {
        guard let colon = name.firstIndex(of: ":") else { return name }
        return String(name[name.index(after: colon)...])
    }

    /// The prefix of the name; empty when there is none.
    package var prefix: String {
        guard let colon = name.firstIndex(of: ":") else { return "" }
        return String(name[..<colon])
    }

    /// The child elements in document order.
    package var elements: [XMLTree.Element] {
        children.compactMap { if case .element(let element) = $0 { element } else { nil } }
    }

    /// The first child element of this name.
    package func first(_ name: String) -> XMLTree.Element? {
        for case .element(let element) in children where element.name == name { return element }
        return nil
    }

    /// All child elements of this name.
    package func all(_ name: String) -> [XMLTree.Element] {
        elements.filter { $0.name == name }
    }

    /// The element that a path of names leads to, taking the first of each name.
    package func descend(_ path: String...) -> XMLTree.Element? {
        var here = self
        for name in path {
            guard let next = here.first(name) else { return nil }
            here = next
        }
        return here
    }

    /// An attribute's value with entity references resolved.
    package subscript(_ attribute: String) -> String? {
        get { attributes.first { $0.name == attribute }?.value }
        set {
            let index = attributes.firstIndex { $0.name == attribute }
            switch (index, newValue) {
            case (let index?, let value?):
                attributes[index].raw = XMLText.encodeAttribute(
                    value, quote: attributes[index].quote)
            case (let index?, nil): attributes.remove(at: index)
            case (nil, let value?): attributes.append(XMLTree.Attribute(attribute, value))
            case (nil, nil): break
            }
        }
    }

    /// The text directly inside, entity references resolved, white space at both ends removed.
    package var text: String {
        var result = ""
        for child in children {
            switch child {
            case .text(let raw): result += XMLText.decode(raw)
            case .cdata(let raw):
                result += String(
                    raw.unicodeScalars.dropFirst("<![CDATA[".count).dropLast("]]>".count))
            case .element, .comment, .instruction: break
            }
        }
        return XMLText.trim(result)
    }

    /// Changes every child element in place.
    package mutating func updateElements(_ body: (inout XMLTree.Element) -> Void) {
        for index in children.indices {
            guard case .element(var element) = children[index] else { continue }
            body(&element)
            children[index] = .element(element)
        }
    }

    /// Changes the first child element of this name, if there is one.
    package mutating func updateFirst(_ name: String, _ body: (inout XMLTree.Element) -> Void) {
        for index in children.indices {
            guard case .element(var element) = children[index], element.name == name else {
                continue
            }
            body(&element)
            children[index] = .element(element)
            return
        }
    }

    /// Removes the child elements that `condition` holds for, each with the white space in front
    /// of it: the inverse of `insert`.
    package mutating func removeElements(where condition: (XMLTree.Element) -> Bool) {
        var kept: [XMLTree.Node] = []
        kept.reserveCapacity(children.count)
        for child in children {
            guard case .element(let element) = child, condition(element) else {
                kept.append(child)
                continue
            }
            if case .text(let raw)? = kept.last, raw.utf8.allSatisfy(XMLText.isSpace) {
                kept.removeLast()
            }
        }
        children = kept
    }

    /// Inserts an element, on a line of its own, right after the last child element that `anchor`
    /// holds for, or else as the first child. White space goes in front of it, and only there, so
    /// that `removeElements` gives back the text as it was.
    package mutating func insert(
        _ element: XMLTree.Element, indent: Int, afterLast anchor: (XMLTree.Element) -> Bool
    ) {
        let index = children.lastIndex { child in
            if case .element(let element) = child { anchor(element) } else { false }
        }
        let position = index.map { $0 + 1 } ?? 0
        let lead = "\n" + String(repeating: " ", count: indent)
        children.insert(contentsOf: [.text(lead), .element(element)], at: position)
    }

    /// Appends the element as text.
    package func write(to output: inout String) {
        output += "<\(name)"
        for attribute in attributes {
            output += attribute.lead
            output += attribute.name
            output += attribute.equals
            output.append(attribute.quote)
            output += attribute.raw
            output.append(attribute.quote)
        }
        output += startTail
        if children.isEmpty && isEmptyTag {
            output += "/>"
            return
        }
        output += ">"
        for child in children {
            switch child {
            case .element(let element): element.write(to: &output)
            case .text(let raw), .cdata(let raw), .comment(let raw), .instruction(let raw):
                output += raw
            }
        }
        output += "</\(name)\(endTail)>"
    }
}

// MARK: - Namespaces

/// The namespace declarations in force at some element.
package struct XMLScope: Hashable, Sendable {
    private var uris: [String: String] = [:]

    package init() {}

    /// The scope inside `element`, whose own declarations are added.
    package func entering(_ element: XMLTree.Element) -> XMLScope {
        var scope = self
        for attribute in element.attributes {
            if attribute.name == "xmlns" {
                scope.uris[""] = attribute.value
            } else if attribute.name.hasPrefix("xmlns:") {
                scope.uris[String(attribute.name.dropFirst(6))] = attribute.value
            }
        }
        return scope
    }

    /// The URI that a prefix stands for.
    package func uri(ofPrefix prefix: String) -> String? { uris[prefix] }

    /// A prefix that stands for this URI; the shortest, then first in order.
    package func prefix(forURI uri: String) -> String? {
        uris.filter { $0.value == uri && !$0.key.isEmpty }.keys.min {
            ($0.utf8.count, $0) < ($1.utf8.count, $1)
        }
    }

    /// Whether `element`, standing in this scope, is `localName` of namespace `uri`.
    package func matches(_ element: XMLTree.Element, uri: String, _ localName: String) -> Bool {
        element.localName == localName
            && entering(element).uri(ofPrefix: element.prefix) == uri
    }
}
