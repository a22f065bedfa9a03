import Commands
import ControlAPI
import Model
import Testing

/// What ends a command line before or beside the daemon's answer.
@Suite struct UsageTests {
    @Test(arguments: [
        ["enable"], ["enable", "a", "b"], ["enable", "demo", "--epoch-max", "0"],
        ["enable", "demo", "--epoch-max", "10001"], ["enable", "demo", "--numa-node", "-1"],
        ["enable", "demo", "--undo-log", "64MB"], ["enable", "demo", "--timeout", "0"],
        ["enable", "demo", "--host", ""], ["disable"], ["disable", "demo", "--force"], ["promote"],
        ["status", "a", "b"], ["list", "a"], ["hosts", "a"], ["events", "--limit", "0"],
        ["events", "--limit", "1001"], ["events", "--after", "-1"], ["pool", "show"],
        ["pool", "list", "-o", "yaml"], ["completion"], ["nonsense"], ["--nonsense"],
    ])
    func wrongUsageEndsWithTwoBeforeAnythingIsAsked(arguments: [String]) async {
        let harness = Harness()
        let outcome = await harness.run(arguments: arguments)
        #expect(outcome.status == 2)
        #expect(outcome.output == "")
        #expect(outcome.notes.hasPrefix("ftvm: error: "))
        #expect(outcome.notes.contains("--help' for more information"))
        #expect(harness.service.calls == [])
        #expect(harness.socketsAsked == [])
    }

    @Test func wrongUsageAsJSON() async throws {
        let outcome = await Harness().run("enable", "demo", "-o", "json", "--epoch-max", "0")
        #expect(outcome.status == 2)
        let error = try ControlJSON.decode(FtvmError.self, from: Array(outcome.notes.utf8))
        #expect(error.code == .invalidArgument)
        #expect(error.message == "--epoch-max must be from 1 to 10000 ms.")
    }

    @Test(
        arguments: [
            ([], false), (["list", "-o", "json"], true), (["list", "--output=json"], true),
            (["list", "-o=json"], true), (["-o", "table", "list"], false),
            (["list", "--", "-o", "json"], false), (["list", "-o"], false),
        ] as [([String], Bool)])
    func jsonIsNoticedInTheWordsThemselves(arguments: [String], expected: Bool) {
        #expect(ErrorReport.wantsJSON(arguments) == expected)
    }

    @Test(arguments: [[], ["--help"], ["help", "enable"], ["promote", "-h"], ["--version"]])
    func helpGoesToStandardOutput(arguments: [String]) async {
        let outcome = await Harness().run(arguments: arguments)
        #expect(outcome.status == 0)
        #expect(!outcome.output.isEmpty)
        #expect(outcome.notes == "")
    }

    @Test func anErrorSaysWhatWhyAndWhatNext() {
        #expect(
            ErrorReport.text(FtvmError(.internalError, "it\u{1B}broke"))
                == "ftvm: error: it?broke")
        #expect(
            ErrorReport.text(FtvmError(.notFound, "no pair demo", advice: "see 'ftvm list'"))
                == "ftvm: error: no pair demo\n  next: see 'ftvm list'")
    }

    @Test func everyCodeHasItsOwnExitStatus() {
        let statuses = FtvmError.Code.allCases.map(\.exitStatus)
        #expect(Set(statuses).count == statuses.count)
        #expect(statuses.allSatisfy { (1...125).contains($0) })
    }

    @Test(arguments: FtvmError.Code.allCases)
    func theDaemonsErrorDecidesTheExitStatus(code: FtvmError.Code) async {
        var state = ScriptedService.State()
        state.pairAnswers = [.failure(FtvmError(code, "it did not work"))]
        let outcome = await Harness(state).run("status", "demo")
        #expect(outcome.status == code.exitStatus)
        #expect(outcome.notes == "ftvm: error: it did not work\n")
    }
}
