import ControlAPI
import Model
import Testing

/// The public form of requests and answers.
@Suite struct APITests {
    @Test func aPairInFull() throws {
        #expect(
            try ControlJSON.text(Samples.protectedPair()) == """
                {
                  "desired" : "protected",
                  "epoch" : 48213,
                  "epochMaximumMilliseconds" : 50,
                  "generation" : 1,
                  "memoryBytes" : 268435456,
                  "name" : "demo",
                  "pageSizeBytes" : 4096,
                  "primary" : "h1",
                  "promotionRequested" : false,
                  "reason" : "",
                  "secondary" : "h2",
                  "secondaryReady" : true,
                  "segment" : {
                    "name" : "demo-0d2a2c1e",
                    "pool" : "default"
                  },
                  "state" : "protected",
                  "statistics" : {
                    "commits" : 48213,
                    "dirtyPagesMedian" : 812,
                    "epochRatePerSecond" : 19.84,
                    "faults" : 123456,
                    "lastCommitAgeMilliseconds" : 12.4,
                    "overflows" : 1,
                    "pauseMedianMicroseconds" : 1712,
                    "pauseP99Microseconds" : 2941.4,
                    "undoCapacityEntries" : 65536,
                    "undoUsedEntries" : 655
                  },
                  "uuid" : "0d2a2c1e-6f3b-4c67-9a43-5a1f0c7d9e10"
                }
                """)
    }

    @Test func aPairThatFailed() throws {
        let pair = Samples.pair(
            .unprotected, step: "copying memory", percent: 45, error: Samples.poolFull)
        #expect(
            try ControlJSON.text(pair, pretty: false)
                == #"{"desired":"protected","epochMaximumMilliseconds":50,"generation":1,"#
                + #""lastError":{"advice":"free room or choose another pool: 'ftvm pool list'","#
                + #""cause":"a segment of 338 MiB is needed, 120 MiB are free","#
                + #""code":"resource-exhausted","#
                + #""message":"demo was not enabled: pool default is full"},"#
                + #""memoryBytes":268435456,"name":"demo","primary":"h1","#
                + #""progress":{"percent":45,"step":"copying memory"},"#
                + #""promotionRequested":false,"reason":"","#
                + #""secondaryReady":false,"state":"unprotected","#
                + #""uuid":"0d2a2c1e-6f3b-4c67-9a43-5a1f0c7d9e10"}"#)
    }

    @Test func everythingSurvivesTheWay() throws {
        func roundTrip<Value: Codable & Hashable>(_ value: Value) throws {
            let bytes = try ControlJSON.encode(value)
            #expect(try ControlJSON.decode(Value.self, from: bytes) == value)
        }
        try roundTrip(Samples.protectedPair())
        try roundTrip(Samples.pair(.needSecondary, error: Samples.poolFull))
        try roundTrip(Samples.hosts)
        try roundTrip(Samples.events)
        try roundTrip(Samples.poolDetail)
        try roundTrip(VersionView(version: "1", host: HostName("h1")))
        try roundTrip(EnableRequest(domain: "demo"))
    }

    @Test func keysOfALaterVersionAreIgnored() throws {
        let text = #"{"host":"h1","version":"9","mood":"good"}"#
        #expect(
            try ControlJSON.decode(VersionView.self, from: text.utf8)
                == VersionView(version: "9", host: HostName("h1")))
    }

    @Test func aRequestNeedsOnlyTheDomain() throws {
        let request = try ControlJSON.decode(
            EnableRequest.self, from: #"{"domain":"demo","options":{"pool":"huge"}}"#.utf8)
        #expect(request.host == nil)
        let options = try request.options?.options(epochMaximumMillisecondsDefault: 30)
        #expect(
            options == PairOptions(epochMaximumMilliseconds: 30, pool: PoolName("huge")))
    }

    @Test(arguments: [
        PairOptionsRequest(epochMaximumMilliseconds: 0),
        PairOptionsRequest(epochMaximumMilliseconds: 10_001),
        PairOptionsRequest(numaNodes: [0, -1]),
    ])
    func optionsOutOfRangeAreRefused(request: PairOptionsRequest) {
        let error = #expect(throws: FtvmError.self) {
            try request.options(epochMaximumMillisecondsDefault: 50)
        }
        #expect(error?.code == .invalidArgument)
    }

    @Test func everyChosenOptionIsTaken() throws {
        let request = PairOptionsRequest(
            epochMaximumMilliseconds: 20, pool: PoolName("huge"), numaNodes: [1],
            undoLogBytes: 1 << 20, secondaryHost: HostName("h3"))
        #expect(
            try request.options(epochMaximumMillisecondsDefault: 50)
                == PairOptions(
                    epochMaximumMilliseconds: 20, pool: PoolName("huge"), numaNodes: [1],
                    undoLogBytes: 1 << 20, secondaryHost: HostName("h3")))
    }

    @Test(arguments: ["demo", "my vm", "a/b", "..", "50%", "ü☃", "a?b#c&d=e+f", ""])
    func namesSurviveAPath(name: String) {
        let encoded = ControlRoute.encode(name)
        #expect(encoded.utf8.allSatisfy { $0 < 128 })
        #expect(!encoded.contains { "/?#&=+ ".contains($0) })
        #expect(ControlRoute.decode(parameter: encoded) == name)
    }

    @Test(arguments: ["%", "%4", "%zz", "a%C3"])
    func brokenPercentEncodingIsNoticed(text: String) {
        #expect(ControlRoute.decode(parameter: text) == nil)
    }

    @Test func anEventQueryIsChecked() throws {
        #expect(try EventQuery(after: nil, limit: nil, pair: nil) == EventQuery())
        #expect(
            try EventQuery(after: "6", limit: "1000", pair: "demo")
                == EventQuery(after: 6, limit: 1000, pair: PairName("demo")))
        for (after, limit) in [("x", nil), ("-1", nil), (nil, "0"), (nil, "1001"), (nil, "")]
            as [(String?, String?)]
        {
            let error = #expect(throws: FtvmError.self) {
                try EventQuery(after: after, limit: limit, pair: nil)
            }
            #expect(error?.code == .invalidArgument)
        }
    }

    @Test func aStatusStandsForACode() {
        for code in FtvmError.Code.allCases {
            #expect((400...599).contains(code.httpStatus))
        }
        #expect(FtvmError.Code(httpStatus: 404) == .notFound)
        #expect(FtvmError.Code(httpStatus: 409) == .conflict)
        #expect(FtvmError.Code(httpStatus: 418) == .invalidArgument)
        #expect(FtvmError.Code(httpStatus: 599) == .internalError)
        #expect(FtvmError.Code(httpStatus: 200) == .internalError)
    }

    @Test func aHostKnowsItsPairs() {
        #expect(Samples.hosts[0].primaries == [PairName("demo")])
        #expect(Samples.hosts[0].secondaries == [])
        #expect(Samples.hosts[1].secondaries == [PairName("demo")])
    }
}
