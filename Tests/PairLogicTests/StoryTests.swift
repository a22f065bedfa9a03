import Testing

/// The life of a pair in scenarios, played by the real decision code. To see what a changed
/// decision does, run the test: it shows what is played now.
@Suite struct StoryTests {
    @Test(arguments: Stories.all.keys.sorted())
    func plays(_ title: String) throws {
        let text = try #require(Stories.all[title])
        let played = Story.play(text)
        #expect(played == text)
        if played != text { print("\(title) is now:\n\(played)\n==") }
    }
}
