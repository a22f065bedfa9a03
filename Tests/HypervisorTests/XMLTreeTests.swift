import Hypervisor
import Model
import Testing

@Suite struct XMLTreeTests {
    static let document = """
        <?xml version="1.0"  encoding='UTF-8' ?>
        <!-- head > < & -->
        <!DOCTYPE domain [ <!ENTITY firm "A > B"> <!-- ] --> ]>
        <domain  type = 'kvm'
            xmlns:q="urn:q" >
          <!-- a <b> & -- c -->
          <name >dëmo &amp; &#x43;o &#10;&firm;</name  >
          <?pi some > thing?>
          <empty/><empty />\t<open></open>
          <text>a<![CDATA[ <raw> & ]] ]]>b</text>\r
          <q:x y="it's" z='"' empty=''/>
        </domain >
        <!-- tail -->

        """

    @Test func everyByteComesBack() throws {
        let tree = try XMLTree(parsing: Self.document)
        #expect(tree.text == Self.document)
        #expect(Array(tree.text.utf8) == Array(Self.document.utf8))
    }

    @Test func valuesAreDecoded() throws {
        let root = try XMLTree(parsing: Self.document).root
        #expect(root["type"] == "kvm")
        #expect(root.first("name")?.text == "dëmo & Co \n&firm;")
        #expect(root.first("text")?.text == "a <raw> & ]] b")
        let other = try #require(root.first("q:x"))
        #expect(other["y"] == "it's")
        #expect(other["z"] == "\"")
        #expect(other["empty"] == "")
        #expect(other["absent"] == nil)
        #expect(other.localName == "x")
        #expect(other.prefix == "q")
        #expect(root.all("empty").count == 2)
    }

    @Test(arguments: [
        "", "text", "<a>", "<a></b>", "<a/><b/>", "<a b='1' b='2'/>", "<a b=1/>", "<a b/>",
        "<a b='<'/>", "<a>&</a>", "<a>& b;</a>", "<a>&;</a>", "<a b='&x'/>", "<a><!-- </a>",
        "<a><![CDATA[ </a>", "<a><? </a>", "<a b='1'c='2'/>", "<1a/>", "<a", "<a b='1", "<>x</>",
        "<a><!DOCTYPE b></a>", "<!DOCTYPE a [", "<a>\u{1}</a>", "<a></a", "<a/>x",
    ])
    func malformedTextIsRefused(_ text: String) {
        let error = #expect(throws: FtvmError.self) { try XMLTree(parsing: text) }
        #expect(error?.code == .invalidArgument)
        #expect(error?.cause?.hasPrefix("line 1: ") == true)
    }

    @Test func depthAndSizeHaveLimits() throws {
        let deep = XMLTree.maximumDepth
        func nested(_ depth: Int) -> String {
            String(repeating: "<a>", count: depth) + String(repeating: "</a>", count: depth)
        }
        #expect(try XMLTree(parsing: nested(deep)).text == nested(deep))
        #expect(throws: FtvmError.self) { try XMLTree(parsing: nested(deep + 1)) }
        let large = "<a>" + String(repeating: "x", count: XMLTree.maximumBytes) + "</a>"
        #expect(throws: FtvmError.self) { try XMLTree(parsing: large) }
    }

    @Test func attributesAreEncoded() throws {
        var element = XMLTree.Element("a")
        let value = "<'\"&>\n\t\u{e9}"
        element["b"] = value
        var text = ""
        element.write(to: &text)
        #expect(try XMLTree(parsing: text).root["b"] == value)
        element["b"] = "2"
        #expect(element["b"] == "2")
        element["b"] = nil
        #expect(element.attributes.isEmpty)
    }

    @Test(arguments: [
        "<a/>", "<a></a>", "<a>\n</a>", "<a>\n  <b/>\n  <!-- c -->\n</a>", "<a><b/><c/></a>",
        "<a>text<b/>more</a>", "<a>  <!-- only --> </a>",
    ])
    func insertAndRemoveAreInverse(_ text: String) throws {
        var tree = try XMLTree(parsing: text)
        tree.root.insert(XMLTree.Element("new"), indent: 2) { _ in true }
        #expect(tree.text.contains("<new/>"))
        // Also after the text went through somebody else's hands.
        var again = try XMLTree(parsing: tree.text)
        again.root.removeElements { $0.name == "new" }
        #expect(again.text == (text == "<a/>" ? "<a></a>" : text))
        tree.root.removeElements { $0.name == "new" }
        #expect(tree.text == text)
    }

    @Test func namespacesAreResolvedFromWhereTheyAreDeclared() throws {
        let root = try XMLTree(
            parsing: "<a xmlns='u0' xmlns:p='u1'><p:b/><b xmlns='u1'/><p:b xmlns:p='u2'/></a>"
        ).root
        let scope = XMLScope().entering(root)
        #expect(root.elements.map { scope.matches($0, uri: "u1", "b") } == [true, true, false])
        #expect(scope.prefix(forURI: "u1") == "p")
        #expect(scope.prefix(forURI: "u0") == nil)
    }
}
