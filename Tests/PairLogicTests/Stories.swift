enum Stories {
    static let all: [String: String] = [
        "enable": """
        > hosts 3
        > start-domain h1
        > enable
        h1: startEnabling
        h1: reportEnabled
            enabled: demo commits its epochs on h1
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 1, primary h1, secondary h2
        """,
        "a host dies": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > kill h1
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2)
        h2: reportPromoted
            promoted: demo goes on on h2, generation 2
        h2: placeSecondary(on: h3)
        h3: createSecondary
        h3: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h3 is ready
        = protected, generation 2, primary h2, secondary h3
        > start h1
        = protected, generation 2, primary h2, secondary h3
        """,
        "both hosts die": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > kill h1 ...
        > kill h2
        h3: claimPromotion(2)
            promotion-started: h3 promotes demo, generation 2
        h3: createSecondary
        h3: promote(2)
        h3: reportPromoted
            promoted: demo goes on on h3, generation 2
        h3: noteReason("no host for the secondary: h1: dead; h2: dead")
        = need-secondary, generation 2, primary h3: no host for the secondary: h1: dead; h2: dead
        """,
        "the promoting host dies": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > kill h1 ...
        > steps 6
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2)
        = failing-over, generation 2, primary h1, secondary h2: h2 is being promoted
        > kill h2
        h3: claimPromotion(3)
            promotion-started: h3 promotes demo, generation 3
        h3: createSecondary
        h3: promote(3)
        h3: reportPromoted
            promoted: demo goes on on h3, generation 3
        h3: noteReason("no host for the secondary: h1: dead; h2: dead")
        = need-secondary, generation 3, primary h3: no host for the secondary: h1: dead; h2: dead
        """,
        "the secondary's host dies": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > kill h2
        h1: reportSecondaryLost(h2, reason: "h2 is dead", error: nil)
            secondary-lost: demo has lost its secondary on h2: h2 is dead
        h1: placeSecondary(on: h3)
        h3: createSecondary
        h3: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h3 is ready
        = protected, generation 1, primary h1, secondary h3
        > kill h3
        h1: reportSecondaryLost(h3, reason: "h3 is dead", error: nil)
            secondary-lost: demo has lost its secondary on h3: h3 is dead
        h1: noteReason("no host for the secondary: h2: dead; h3: dead")
        = need-secondary, generation 1, primary h1: no host for the secondary: h2: dead; h3: dead
        > start h2
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 1, primary h1, secondary h2
        """,
        "ftvmd of the primary's host dies": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > kill-ftvmd h1
        h2: waitForFence(of: [h1], reason: "its QEMU still holds the primary lock")
            waiting-for-fence: demo is waiting for a fence of h1 (its QEMU still holds the primary lock)
        = failing-over, generation 1, primary h1, secondary h2: waiting for a fence of h1 (its QEMU still holds the primary lock)
        > start-ftvmd h1
        h1: adoptPrimary
        h2: reportPrimaryRunning
            adopted: demo goes on under its primary on h1
        = protected, generation 1, primary h1, secondary h2
        """,
        "ftvmd of the secondary's host dies": """
        > protected 2
        = protected, generation 1, primary h1, secondary h2
        > kill-ftvmd h2
        h1: reportSecondaryLost(h2, reason: "h2 is dead", error: nil)
            secondary-lost: demo has lost its secondary on h2: h2 is dead
        h1: noteReason("no host for the secondary: h2: dead")
        = need-secondary, generation 1, primary h1: no host for the secondary: h2: dead
        > start-ftvmd h2
        h1: placeSecondary(on: h2)
        h2: cleanUpStale(reason: "its primary is on h1, generation 1")
        h2: createSecondary
        h2: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 1, primary h1, secondary h2
        """,
        "the primary's QEMU dies": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > kill-qemu h1
        h1: reportPrimaryLost(reason: "its QEMU on h1 has ended")
            primary-lost: demo has lost its primary on h1: its QEMU on h1 has ended
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2)
        h2: reportPromoted
            promoted: demo goes on on h2, generation 2
        h2: placeSecondary(on: h1)
        h1: createSecondary
        h1: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h1 is ready
        = protected, generation 2, primary h2, secondary h1
        """,
        "the secondary's QEMU dies": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > kill-qemu h2
        h2: reportSecondaryLost(h2, reason: "the waiting QEMU on h2 has ended", error: nil)
            secondary-lost: demo has lost its secondary on h2: the waiting QEMU on h2 has ended
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 1, primary h1, secondary h2
        """,
        "a host freezes and is thawed": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > freeze h1
        h2: waitForFence(of: [h1], reason: "its QEMU still holds the primary lock")
            waiting-for-fence: demo is waiting for a fence of h1 (its QEMU still holds the primary lock)
        = failing-over, generation 1, primary h1, secondary h2: waiting for a fence of h1 (its QEMU still holds the primary lock)
        > thaw h1
        h2: reportPrimaryRunning
            adopted: demo goes on under its primary on h1
        = protected, generation 1, primary h1, secondary h2
        """,
        "a frozen host is given up by hand": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > freeze h1
        h2: waitForFence(of: [h1], reason: "its QEMU still holds the primary lock")
            waiting-for-fence: demo is waiting for a fence of h1 (its QEMU still holds the primary lock)
        = failing-over, generation 1, primary h1, secondary h2: waiting for a fence of h1 (its QEMU still holds the primary lock)
        > promote
        h2: claimByHand(2)
            promotion-started: h2 promotes demo, generation 2
        h2: raiseSegmentGeneration(2)
        h2: waitForFence(of: [h1], reason: "its QEMU still holds the primary lock")
            waiting-for-fence: demo is waiting for a fence of h1 (its QEMU still holds the primary lock)
        = failing-over, generation 2, primary h1, secondary h2: waiting for a fence of h1 (its QEMU still holds the primary lock)
        > thaw h1
        h1: cleanUpStale(reason: "h2 has claimed the promotion")
        h2: claimPromotion(3)
            promotion-started: h2 promotes demo, generation 3
        h2: promote(3)
        h2: reportPromoted
            promoted: demo goes on on h2, generation 3
        h2: placeSecondary(on: h1)
        h1: createSecondary
        h1: reportSecondaryReady(3)
            protected: demo is protected: the secondary on h1 is ready
        = protected, generation 3, primary h2, secondary h1
        """,
        "a guest that cannot go on is given up": """
        > protected 2
        = protected, generation 1, primary h1, secondary h2
        > break h1
        = protected, generation 1, primary h1, secondary h2
        > break h2
        = protected, generation 1, primary h1, secondary h2
        > kill-qemu h2
        h2: reportSecondaryLost(h2, reason: "the waiting QEMU on h2 has ended", error: nil)
            secondary-lost: demo has lost its secondary on h2: the waiting QEMU on h2 has ended
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryLost(h2, reason: "no room for a waiting QEMU", error: Optional(no room for a waiting QEMU))
            secondary-lost: demo has lost its secondary on h2: no room for a waiting QEMU
        h1: placeSecondary(on: h2)
        h2: createSecondary
        = need-secondary, generation 1, primary h1, secondary h2: h2 makes the secondary
        > kill-qemu h1 ...
        > steps 12
        h1: reportPrimaryLost(reason: "its QEMU on h1 has ended")
            primary-lost: demo has lost its primary on h1: its QEMU on h1 has ended
        = failing-over, generation 1, primary h1, secondary h2: its QEMU on h1 has ended
        > discard
        h2: giveUp(2)
            unprotected: demo: what its guest had in memory is given up, as its user wished
        h2: finishDisable
        = no pair; the domain runs on []
        """,
        "a guest whose segment is lost with its host is given up when that is back": """
        > protected 2
        = protected, generation 1, primary h1, secondary h2
        > kill h1 ...
        > lose-segment
        h2: reportStuck(reason: "h2 does not see segment demo of pool ram0 (\\'ftvm disable demo --discard-state\\' ends the waiting, and what the guest had in memory)")
            failed: demo cannot go on: h2 does not see segment demo of pool ram0 ('ftvm disable demo --discard-state' ends the waiting, and what the guest had in memory)
        = failing-over, generation 1, primary h1, secondary h2: h2 does not see segment demo of pool ram0 ('ftvm disable demo --discard-state' ends the waiting, and what the guest had in memory)
        > discard
        h2: waitForFence(of: [h1], reason: "the primary lock cannot be asked for")
            waiting-for-fence: demo is waiting for a fence of h1 (the primary lock cannot be asked for)
        = failing-over, generation 1, primary h1, secondary h2: waiting for a fence of h1 (the primary lock cannot be asked for)
        > start h1
        h1: reportPrimaryLost(reason: "its QEMU on h1 has ended")
            primary-lost: demo has lost its primary on h1: its QEMU on h1 has ended
        h2: reportPrimaryRunning
            outdated
        h2: giveUp(2)
            unprotected: demo: what its guest had in memory is given up, as its user wished
        h2: cleanUpStale(reason: "it is being given back to libvirt")
        h2: finishDisable
        = no pair; the domain runs on []
        """,
        "a frozen host is killed": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > freeze h1
        h2: waitForFence(of: [h1], reason: "its QEMU still holds the primary lock")
            waiting-for-fence: demo is waiting for a fence of h1 (its QEMU still holds the primary lock)
        = failing-over, generation 1, primary h1, secondary h2: waiting for a fence of h1 (its QEMU still holds the primary lock)
        > kill h1
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2)
        h2: reportPromoted
            promoted: demo goes on on h2, generation 2
        h2: placeSecondary(on: h3)
        h3: createSecondary
        h3: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h3 is ready
        = protected, generation 2, primary h2, secondary h3
        """,
        "a switchover": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > switchover
        h2: awaitHandOver
        h1: handOver
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2) at once
        h2: reportPromoted
            switched-over: demo has moved from h1 to h2, generation 2
        h2: placeSecondary(on: h1)
        h1: createSecondary
        h1: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h1 is ready
        = protected, generation 2, primary h2, secondary h1
        """,
        "a switchover to a third host": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > switchover h3
        h1: replaceSecondary(h2, by: h3)
        h2: cleanUpStale(reason: "its primary is on h1, generation 1")
        h3: createSecondary
        h3: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h3 is ready
        h3: awaitHandOver
        h1: handOver
        h3: claimPromotion(2)
            promotion-started: h3 promotes demo, generation 2
        h3: promote(2) at once
        h3: reportPromoted
            switched-over: demo has moved from h1 to h3, generation 2
        h3: placeSecondary(on: h1)
        h1: createSecondary
        h1: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h1 is ready
        = protected, generation 2, primary h3, secondary h1
        """,
        "a switchover to a host that dies": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > switchover h3 ...
        > steps 3
        h1: replaceSecondary(h2, by: h3)
        h2: cleanUpStale(reason: "its primary is on h1, generation 1")
        h3: createSecondary
        = need-secondary, generation 1, primary h1, secondary h3: h3 makes the secondary, in the place of h2
        > kill h3
        h1: reportSecondaryLost(h3, reason: "h3 is dead", error: nil)
            secondary-lost: demo has lost its secondary on h3: h3 is dead
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 1, primary h1, secondary h2
        """,
        "the source dies in the middle of a switchover": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > switchover ...
        > steps 4
        h2: awaitHandOver
        = protected, generation 1, primary h1, secondary h2
        > kill h1
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2)
        h2: reportPromoted
            promoted: demo goes on on h2, generation 2
        h2: placeSecondary(on: h3)
        h3: createSecondary
        h3: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h3 is ready
        = protected, generation 2, primary h2, secondary h3
        """,
        "ftvmd of the source dies after the last commit": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > switchover ...
        > steps 5
        h2: awaitHandOver
        h1: handOver
        = protected, generation 1, primary h1, secondary h2
        > kill-ftvmd h1 ...
        > start-ftvmd h1
        h1: adoptPrimary
        h1: handOver
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2) at once
        h2: reportPromoted
            switched-over: demo has moved from h1 to h2, generation 2
        h2: placeSecondary(on: h1)
        h1: createSecondary
        h1: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h1 is ready
        = protected, generation 2, primary h2, secondary h1
        """,
        "the target dies once the source has ended": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > switchover ...
        > steps 8
        h2: awaitHandOver
        h1: handOver
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2) at once
        = failing-over, generation 2, primary h1, secondary h2: h2 is being promoted
        > kill h2
        h3: claimPromotion(3)
            promotion-started: h3 promotes demo, generation 3
        h3: createSecondary
        h3: promote(3)
        h3: reportPromoted
            promoted: demo goes on on h3, generation 3
        h3: placeSecondary(on: h1)
        h1: createSecondary
        h1: reportSecondaryReady(3)
            protected: demo is protected: the secondary on h1 is ready
        = protected, generation 3, primary h3, secondary h1
        """,
        "a switchover is cancelled": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > break h3
        = protected, generation 1, primary h1, secondary h2
        > switchover h3 ...
        > steps 2
        h1: replaceSecondary(h2, by: h3)
        = need-secondary, generation 1, primary h1, secondary h3: h3 makes the secondary, in the place of h2
        > cancel
        h2: cleanUpStale(reason: "its primary is on h1, generation 1")
        h3: createSecondary
        h3: reportSecondaryLost(h3, reason: "no room for a waiting QEMU", error: Optional(no room for a waiting QEMU))
            secondary-lost: demo has lost its secondary on h3: no room for a waiting QEMU
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 1, primary h1, secondary h2
        """,
        "a host is drained and put into service again": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > drain h1
        h1: drain: switch over to h2
        h2: awaitHandOver
        h1: handOver
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2) at once
        h2: reportPromoted
            switched-over: demo has moved from h1 to h2, generation 2
        h2: placeSecondary(on: h3)
        h3: createSecondary
        h3: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h3 is ready
        = protected, generation 2, primary h2, secondary h3
        > kill-qemu h2
        h2: reportPrimaryLost(reason: "its QEMU on h2 has ended")
            primary-lost: demo has lost its primary on h2: its QEMU on h2 has ended
        h3: claimPromotion(3)
            promotion-started: h3 promotes demo, generation 3
        h3: promote(3)
        h3: reportPromoted
            promoted: demo goes on on h3, generation 3
        h3: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryReady(3)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 3, primary h3, secondary h2
        > undrain h1
        = protected, generation 3, primary h3, secondary h2
        """,
        "a drained host without another": """
        > protected 2
        = protected, generation 1, primary h1, secondary h2
        > drain h1
        h1: drain: switch over to h2
        h2: awaitHandOver
        h1: handOver
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2) at once
        h2: reportPromoted
            switched-over: demo has moved from h1 to h2, generation 2
        h2: noteReason("no host for the secondary: h1: in maintenance")
        = need-secondary, generation 2, primary h2: no host for the secondary: h1: in maintenance
        > kill h2
        h1: claimPromotion(3)
            promotion-started: h1 promotes demo, generation 3
        h1: createSecondary
        h1: promote(3)
        h1: reportPromoted
            promoted: demo goes on on h1, generation 3
        h1: noteReason("no host for the secondary: h2: dead")
        = need-secondary, generation 3, primary h1: no host for the secondary: h2: dead
        """,
        "promote while the primary lives": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > promote
        h1: beginSwitchover(to: h2)
            switchover-requested: demo is to move to h2 (ftvm promote)
        h2: awaitHandOver
        h1: handOver
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2) at once
        h2: reportPromoted
            switched-over: demo has moved from h1 to h2, generation 2
        h2: placeSecondary(on: h1)
        h1: createSecondary
        h1: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h1 is ready
        = protected, generation 2, primary h2, secondary h1
        """,
        "a switchover without a secondary": """
        > protected 2
        = protected, generation 1, primary h1, secondary h2
        > kill h2
        h1: reportSecondaryLost(h2, reason: "h2 is dead", error: nil)
            secondary-lost: demo has lost its secondary on h2: h2 is dead
        h1: noteReason("no host for the secondary: h2: dead")
        = need-secondary, generation 1, primary h1: no host for the secondary: h2: dead
        > promote
        h1: declinePromotion(reason: "there is no secondary that is ready")
            refused: the promotion of demo by hand is refused: there is no secondary that is ready
        = need-secondary, generation 1, primary h1: no host for the secondary: h2: dead
        """,
        "disable": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > disable
        h1: beginDisable
        h2: cleanUpStale(reason: "it is being given back to libvirt")
        h1: startDisabling
        h2: reportSecondaryLost(h2, reason: "it is being given back to libvirt", error: nil)
        h1: finishDisable
        = no pair; the domain runs on [h1]
        """,
        "disable while the primary's host is dead": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > kill h1 ...
        > disable
        h2: claimPromotion(2)
            promotion-started: h2 promotes demo, generation 2
        h2: promote(2)
        h2: reportPromoted
            promoted: demo goes on on h2, generation 2
        h2: beginDisable
        h2: startDisabling
        h2: finishDisable
        = no pair; the domain runs on [h2]
        """,
        "the guest shuts down and starts again": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > shut-down
        h1: guestShutDown
            unprotected: demo is not protected: the guest shut down
        h2: cleanUpStale(reason: "its primary is on h1, generation 1")
        = unprotected, generation 1, primary h1: the guest shut down
        > start-domain h1
        h1: beginEnabling
        h1: startEnabling
        h1: reportEnabled
            enabled: demo commits its epochs on h1
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 2, primary h1, secondary h2
        """,
        "a domain that is shut off": """
        > hosts 3
        > define-domain h1
        > enable-on h1
        h1: reportUnprotected(reason: "the guest is shut off")
            unprotected: demo is not protected: the guest is shut off
        = unprotected, generation 1, primary h1: the guest is shut off
        > start-domain h1
        h1: beginEnabling
        h1: startEnabling
        h1: reportEnabled
            enabled: demo commits its epochs on h1
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 2, primary h1, secondary h2
        """,
        "ftvmd dies while it enables": """
        > hosts 3
        > start-domain h1
        > enable ...
        > steps 4
        h1: startEnabling
        = starting, generation 1, primary h1
        > kill-ftvmd h1
        h2: reportLostUnprotected
            unprotected: demo is not protected: h1 died before demo was protected
        = unprotected, generation 1, primary h1: h1 died before demo was protected
        > start-ftvmd h1
        h1: beginEnabling
        h1: startEnabling
        h1: reportEnabled
            enabled: demo commits its epochs on h1
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryReady(2)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 2, primary h1, secondary h2
        """,
        "a host on which no QEMU starts": """
        > protected 3
        = protected, generation 1, primary h1, secondary h2
        > break h2
        = protected, generation 1, primary h1, secondary h2
        > kill-qemu h2
        h2: reportSecondaryLost(h2, reason: "the waiting QEMU on h2 has ended", error: nil)
            secondary-lost: demo has lost its secondary on h2: the waiting QEMU on h2 has ended
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryLost(h2, reason: "no room for a waiting QEMU", error: Optional(no room for a waiting QEMU))
            secondary-lost: demo has lost its secondary on h2: no room for a waiting QEMU
        h1: placeSecondary(on: h3)
        h3: createSecondary
        h3: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h3 is ready
        = protected, generation 1, primary h1, secondary h3
        """,
        "the only other host is broken": """
        > protected 2
        = protected, generation 1, primary h1, secondary h2
        > break h2
        = protected, generation 1, primary h1, secondary h2
        > kill-qemu h2
        h2: reportSecondaryLost(h2, reason: "the waiting QEMU on h2 has ended", error: nil)
            secondary-lost: demo has lost its secondary on h2: the waiting QEMU on h2 has ended
        h1: placeSecondary(on: h2)
        h2: createSecondary
        h2: reportSecondaryLost(h2, reason: "no room for a waiting QEMU", error: Optional(no room for a waiting QEMU))
            secondary-lost: demo has lost its secondary on h2: no room for a waiting QEMU
        h1: placeSecondary(on: h2)
        h2: createSecondary
        = need-secondary, generation 1, primary h1, secondary h2: h2 makes the secondary
        > mend h2
        = need-secondary, generation 1, primary h1, secondary h2: h2 makes the secondary
        > wait
        h2: createSecondary
        h2: reportSecondaryReady(1)
            protected: demo is protected: the secondary on h2 is ready
        = protected, generation 1, primary h1, secondary h2
        """,
        "one host is left": """
        > protected 2
        = protected, generation 1, primary h1, secondary h2
        > kill h2
        h1: reportSecondaryLost(h2, reason: "h2 is dead", error: nil)
            secondary-lost: demo has lost its secondary on h2: h2 is dead
        h1: noteReason("no host for the secondary: h2: dead")
        = need-secondary, generation 1, primary h1: no host for the secondary: h2: dead
        > kill-qemu h1
        h1: reportPrimaryLost(reason: "its QEMU on h1 has ended")
            primary-lost: demo has lost its primary on h1: its QEMU on h1 has ended
        h1: claimPromotion(2)
            promotion-started: h1 promotes demo, generation 2
        h1: createSecondary
        h1: promote(2)
        h1: reportPromoted
            promoted: demo goes on on h1, generation 2
        h1: noteReason("no host for the secondary: h2: dead")
        = need-secondary, generation 2, primary h1: no host for the secondary: h2: dead
        """,
    ]
}
