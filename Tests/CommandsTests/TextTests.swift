import Commands
import ControlAPI
import Model
import Testing

@Suite struct TableTests {
    @Test func columnsAreAligned() {
        var table = TextTable([
            .init("NAME"), .init("SIZE", alignRight: true), .init("NOTE"),
        ])
        table.add(["a", "1", "x"])
        table.add(["longer name", "12345", nil])
        table.add(["b", "", "last"])
        #expect(
            table.text() == """
                NAME          SIZE  NOTE
                a                1  x
                longer name  12345  -
                b                -  last
                """)
        #expect(table.text(header: false).hasPrefix("a                1  x\n"))
    }

    @Test func noRowsNoText() {
        #expect(TextTable([.init("NAME")]).text() == "")
    }

    @Test func aMinimumWidthHolds() {
        var table = TextTable([.init("A", minimumWidth: 5), .init("B")])
        table.add(["x", "y"])
        #expect(table.text(header: false) == "x      y")
    }

    @Test func controlCharactersNeverReachTheTerminal() {
        var table = TextTable([.init("NAME"), .init("B")])
        table.add(["a\u{1B}[2Jb\n", "ü"])
        #expect(table.text(header: false) == "a?[2Jb?  ü")
        var block = DetailBlock("x\u{7}")
        block.add("reason", "one\r\ntwo")
        #expect(block.text == "x?\n  reason  one??two")
    }

    @Test func aDetailBlockLeavesOutWhatIsEmpty() {
        var block = DetailBlock("demo")
        block.add("state", "protected")
        block.add("reason", "")
        block.add("last error", nil)
        block.add("primary", "h1")
        #expect(block.text == "demo\n  state    protected\n  primary  h1")
    }
}

@Suite struct HumanTextTests {
    @Test(
        arguments: [
            (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"),
            (256 << 20, "256 MiB"),
            (1000 << 20, "1000 MiB"), (3 << 40, "3 TiB"), (.max, "16 EiB"),
        ] as [(UInt64, String)])
    func bytes(count: UInt64, text: String) {
        #expect(HumanText.bytes(count) == text)
    }

    @Test(
        arguments: [
            (0, "0 us"), (-3, "0 us"), (850.4, "850 us"), (999.6, "1.0 ms"), (1712, "1.7 ms"),
            (12_400, "12 ms"), (999_499, "999 ms"), (999_500, "1.0 s"), (4_240_000, "4.2 s"),
            (59_949_000, "59.9 s"), (59_950_000, "1 min 0 s"), (75_400_000, "1 min 15 s"),
            (12_000_000_000, "3 h 20 min"), (190_000_000_000, "2 d 4 h"), (.infinity, "ages"),
        ] as [(Double, String)])
    func durations(microseconds: Double, text: String) {
        #expect(HumanText.duration(microseconds: microseconds) == text)
    }

    @Test(
        arguments: [
            (1.25, 1, "1.3"), (-1.25, 1, "-1.3"), (0.04, 1, "0.0"), (-0.04, 1, "0.0"),
            (2.5, 0, "3"),
            (3.14159, 3, "3.142"), (1.005, 2, "1.00"), (.nan, 1, "nan"),
        ] as [(Double, Int, String)])
    func decimals(value: Double, places: Int, text: String) {
        #expect(HumanText.decimal(value, places: places) == text)
    }

    @Test func counts() {
        #expect(HumanText.count(1, "pair") == "1 pair")
        #expect(HumanText.count(0, "pair") == "0 pairs")
    }

    @Test(
        arguments: [
            ("65536", 65536), ("64k", 64 << 10), ("64KiB", 64 << 10), ("64M", 64 << 20),
            ("64 MiB", 64 << 20), ("2g", 2 << 30), ("1T", 1 << 40), ("7b", 7),
        ] as [(String, UInt64)])
    func sizes(argument: String, bytes: UInt64) {
        #expect(ByteCount(argument: argument)?.bytes == bytes)
    }

    @Test(arguments: ["", "M", "-1", "1.5G", "64MB", "64Q", "0x10", "20000000T", "１M"])
    func notSizes(argument: String) {
        #expect(ByteCount(argument: argument) == nil)
    }
}

@Suite struct ProgressTests {
    @Test func aTerminalIsDrawnInPlace() {
        var display = ProgressDisplay(inPlace: true)
        #expect(
            display.show("copying memory 3 %", elapsed: .milliseconds(120))
                == "\r\u{1B}[K[   0.1 s] copying memory 3 %")
        #expect(
            display.show("copying memory 3 %", elapsed: .milliseconds(220))
                == "\r\u{1B}[K[   0.2 s] copying memory 3 %")
        #expect(display.finish() == "\r\u{1B}[K")
        #expect(display.finish() == "")
    }

    @Test func aFileGetsALineForEachChange() {
        var display = ProgressDisplay(inPlace: false)
        var lines = ""
        for (milliseconds, text) in [
            (0, "reserving"), (100, "reserving"), (1200, "copying memory 3 %"),
            (1300, "copying memory 24 %"), (1400, "copying memory 26 %"),
            (12_000, "copying memory 100 %"), (123_400, "starting the secondary"),
        ] {
            lines += display.show(text, elapsed: .milliseconds(milliseconds))
        }
        #expect(
            lines == """
                [   0.0 s] reserving
                [   1.2 s] copying memory 3 %
                [   1.4 s] copying memory 26 %
                [  12.0 s] copying memory 100 %
                [ 123.4 s] starting the secondary

                """)
        #expect(display.finish() == "")
    }
}
