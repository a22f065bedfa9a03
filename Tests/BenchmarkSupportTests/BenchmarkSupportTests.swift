import BenchmarkSupport
import Foundation
import FoundationXML
import Testing

@Suite struct SummaryTests {
    @Test func percentilesAreOfTheNearestRank() {
        let hundred = Summary((1...100).map(Double.init).shuffled())
        #expect(hundred.percentile(0.5) == 50)
        #expect(hundred.percentile(0.99) == 99)
        #expect(hundred.percentile(1) == 100)
        #expect(hundred.percentile(0.001) == 1)
        // Of few figures p99 is the worst, never the one before.
        #expect(Summary([1, 2, 3]).percentile(0.99) == 3)
    }

    @Test func theMedianIsInTheMiddle() {
        #expect(Summary([3, 1, 2]).median == 2)
        #expect(Summary([4, 1, 2, 3]).median == 2.5)
        #expect(Summary([.nan, 7]).median == 7)
        #expect(Summary([]).median.isNaN)
    }

    @Test func textsTellTheSpread() {
        #expect(Summary([1.25, 2.5, 10]).text() == "2.5 (1.2 to 10.0)")
        #expect(Summary([1_234_567]).text(decimals: 0) == "1,234,567")
        #expect(Summary([]).text() == "-")
    }
}

@Suite struct FormatTests {
    @Test(arguments: [
        (999.0, 0, "999"), (1_000, 0, "1,000"), (-1_234.56, 1, "-1,234.6"), (0.04, 1, "0.0"),
        (-0.04, 1, "0.0"), (.infinity, 1, "-"), (100_000, 2, "100,000.00"),
    ])
    func numbers(value: Double, decimals: Int, text: String) {
        #expect(Format.number(value, decimals: decimals) == text)
    }

    @Test func percent() {
        #expect(Format.percent(0.876) == "88 %")
        #expect(Format.percent(.nan) == "-")
    }
}

@Suite struct DocumentTests {
    @Test func aTableKeepsItsCells() {
        var table = MarkdownTable(["a", "b"])
        table.add(["x|y", "two\nlines"])
        #expect(table.text == "| a | b |\n| --- | --- |\n| x\\|y | two lines |\n")
    }

    @Test func onlyTheMarkedPartIsReplaced() {
        let document = "head\n<!-- begin p -->\nold\n<!-- end p -->\ntail\n"
        let new = DocumentPart.replace("p", in: document, with: "\nnew\n")
        #expect(new == "head\n<!-- begin p -->\n\nnew\n\n<!-- end p -->\ntail\n")
        #expect(DocumentPart.replace("p", in: new ?? "", with: "new") == new, "again is the same")
        #expect(DocumentPart.replace("q", in: document, with: "new") == nil)
        let wrong = "<!-- end p -->\n<!-- begin p -->\n"
        #expect(DocumentPart.replace("p", in: wrong, with: "new") == nil)
        #expect(DocumentPart.replace("p", in: document + document, with: "new") == nil)
    }
}

@Suite struct ResultTests {
    @Test func roundsOfAMeasureAreTogetherAndOutliveTheFile() throws {
        var results = BenchmarkResults()
        results.add("epochs", "idle", "ftvm", "pause", 2, unit: "ms")
        results.add("epochs", "idle", "COLO", "pause", 9, unit: "ms")
        results.add("epochs", "idle", "ftvm", "pause", .nan, unit: "ms")
        results.add("epochs", "idle", "ftvm", "pause", [4, 3], unit: "ms")
        results.add("moves", "4 GiB", "ftvm", "total", 1, unit: "s")
        results.remark("epochs", "COLO", "not runnable")
        results.remark("epochs", "COLO", "not runnable")
        #expect(results.summary("epochs", "idle", "ftvm", "pause").sorted == [2, 3, 4])
        #expect(results.summary("epochs", "busy", "ftvm", "pause").count == 0)
        #expect(results.peers("epochs") == ["ftvm", "COLO"])
        #expect(results.remarks.count == 1)
        let file = NSTemporaryDirectory() + "ftvm-results-\(UUID().uuidString).json"
        defer { try? FileManager.default.removeItem(atPath: file) }
        try results.write(to: file)
        #expect(try BenchmarkResults(file: file) == results)
        results.forget(part: "epochs")
        #expect(results.workloads("epochs").isEmpty && results.workloads("moves") == ["4 GiB"])
    }

    @Test func aFileOfSomethingElseIsNotTakenForNoResults() throws {
        let file = NSTemporaryDirectory() + "ftvm-results-\(UUID().uuidString).json"
        defer { try? FileManager.default.removeItem(atPath: file) }
        #expect(try BenchmarkResults(file: file) == BenchmarkResults())
        try Data("{".utf8).write(to: URL(fileURLWithPath: file))
        #expect(throws: (any Error).self) { try BenchmarkResults(file: file) }
    }
}

@Suite struct MonitorTextTests {
    @Test func eventsHaveTheirTime() throws {
        let event = try #require(
            MonitorText.time(
                ofEvent:
                    #"{"timestamp": {"seconds": 1700000000, "microseconds": 250000}, "event": "STOP"}"#
            ))
        #expect(event.name == "STOP" && abs(event.seconds - 1_700_000_000.25) < 1e-6)
        #expect(MonitorText.time(ofEvent: #"{"return": {}}"#) == nil)
    }

    @Test func onlyWholePausesCount() {
        let events = [
            ("RESUME", 1.0), ("STOP", 2.0), ("RESUME", 2.005), ("MIGRATION", 2.5), ("STOP", 3.0),
            // Stopped for one reason, then for another: the guest stands still since the last at
            // the least.
            ("STOP", 3.25), ("RESUME", 3.5), ("STOP", 4.0),
        ]
        let pauses = MonitorText.pauses(events.map { (name: $0.0, seconds: $0.1) })
        #expect(pauses.map { $0.rounded() } == [5, 250])
    }

    @Test func migrationsEnd() throws {
        func read(_ text: String) throws -> MonitorText.Migration {
            try JSONDecoder().decode(MonitorText.Migration.self, from: Data(text.utf8))
        }
        let done = try read(
            #"{"status": "completed", "total-time": 2100, "downtime": 17, "ram": {"total": 5}}"#)
        #expect(done.hasEnded && done.totalTime == 2_100 && done.downtime == 17)
        #expect(try read(#"{"status": "colo"}"#).hasEnded)
        #expect(try !read(#"{"status": "active", "total-time": 3}"#).hasEnded)
        #expect(try !read("{}").hasEnded)
        #expect(try read(#"{"status": "failed", "error-desc": "no"}"#).errorDescription == "no")
    }
}

@Suite struct RedisBenchmarkTextTests {
    @Test func theRateIsFound() {
        let output = """
            "test","rps","avg_latency_ms","min_latency_ms"
            "SET","12345.68","0.350","0.120"
            "GET","99999.00","0.1","0.1"
            """
        #expect(RedisBenchmarkText.rate(of: "SET", in: output) == 12_345.68)
        #expect(RedisBenchmarkText.rate(of: "MSET", in: output) == nil)
        #expect(RedisBenchmarkText.rate(of: "SET", in: "Could not connect") == nil)
    }
}

@Suite struct ChartTests {
    @Test func barsAreWhereTheirFiguresAre() throws {
        var chart = SVGChart(title: "pause & <all>", unit: "ms", series: ["ftvm", "COLO"])
        chart.add("idle", [.init(Summary([1])), .init(Summary([100]))])
        chart.add("busy", [.init(Summary([10, 10, 20])), nil])
        let parsed = try XML(chart.text)
        #expect(parsed.texts.contains("pause & <all>") && parsed.texts.contains("busy"))
        // Background, two of the legend, three bars; on an axis of two decades.
        let heights = parsed.rectangles.dropFirst(3).compactMap { Double($0["height"] ?? "") }
        #expect(heights == [0, 260, 130])
        #expect(parsed.texts.contains("1 ms") && parsed.texts.contains("100 ms"))
    }

    @Test func withoutFiguresThereIsStillAPicture() throws {
        var chart = SVGChart(title: "nothing", unit: "ms", series: ["ftvm"])
        chart.add("idle", [.init(Summary([]))])
        chart.add("zero", [.init(Summary([0]))])
        #expect(try XML(chart.text).rectangles.count == 2)
    }

    /// Well-formed, or an error.
    private final class XML: NSObject, XMLParserDelegate {
        var texts: [String] = []
        var rectangles: [[String: String]] = []
        private var text = ""

        init(_ source: String) throws {
            super.init()
            let parser = XMLParser(data: Data(source.utf8))
            parser.delegate = self
            try #require(parser.parse(), "\(String(describing: parser.parserError))")
        }

        func parser(
            _ parser: XMLParser, didStartElement name: String, namespaceURI: String?,
            qualifiedName: String?, attributes: [String: String]
        ) {
            text = ""
            if name == "rect" { rectangles.append(attributes) }
        }
        func parser(_ parser: XMLParser, foundCharacters characters: String) { text += characters }
        func parser(
            _ parser: XMLParser, didEndElement name: String, namespaceURI: String?,
            qualifiedName: String?
        ) {
            if name == "text" { texts.append(text) }
        }
    }
}
