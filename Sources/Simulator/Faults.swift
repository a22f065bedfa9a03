import Model
import PairLogic

/// Something that goes wrong, and is repaired some time later.
enum Fault: CustomStringConvertible {
    case crash(Int)
    case pause(Int, UInt64)
    case pauseAll(UInt64)
    case killAgent(Int)
    case killQEMU(Int, Int)
    case endGuest(Int)
    case slow(Int)
    case cut(from: Int, to: Int)
    case isolate(Int)
    case split([Bool])
    case loss(Int)
    case delay(UInt64)
    case storeDown
    case storeSlow(UInt64)
    case storeCut(Int)
    case isolateAndStoreCut(Int)
    case poolLost(Int)
    case beatsLost(Int)
    case cutOff(Int)
    case device(Int, String)
    case confirmDead(Int)
    case wallJump(Int, Int64)
    case askForPromotion(Int)

    var description: String {
        switch self {
        case .crash(let host): "h\(host + 1) crashes"
        case .pause(let host, let time): "h\(host + 1) stands still for \(time / 1_000_000) ms"
        case .pauseAll(let time): "everything stands still for \(time / 1_000_000) ms"
        case .killAgent(let host): "ftvmd on h\(host + 1) is killed"
        case .killQEMU(let host, let pair): "the QEMU of pair \(pair + 1) on h\(host + 1) is killed"
        case .endGuest(let pair): "the guest of pair \(pair + 1) is shut down"
        case .slow(let host): "h\(host + 1) is slow"
        case .cut(let from, let to): "nothing from h\(from + 1) reaches h\(to + 1)"
        case .isolate(let host): "h\(host + 1) is cut off from the network"
        case .split(let side):
            "the network is split: "
                + side.indices.filter { side[$0] }.map { "h\($0 + 1)" }.joined(separator: " ")
        case .loss(let perMille): "\(perMille / 10) % of all packets are lost"
        case .delay(let time): "packets take up to \(time / 1_000_000) ms"
        case .storeDown: "the store is down"
        case .storeSlow(let time): "the store takes up to \(time / 1_000_000) ms"
        case .storeCut(let host): "h\(host + 1) does not reach the store"
        case .isolateAndStoreCut(let host): "h\(host + 1) is cut off from network and store"
        case .poolLost(let host): "h\(host + 1) loses the pool"
        case .beatsLost(let host): "beats of h\(host + 1) do not get into the pool"
        case .cutOff(let host): "h\(host + 1) is cut off from everything but its memory"
        case .device(let host, let mode): "the fence device of h\(host + 1) \(mode)"
        case .confirmDead(let host): "a person says that h\(host + 1) is off"
        case .wallJump(let host, let time):
            "the wall clock of h\(host + 1) jumps by \(time / 1_000_000_000) s"
        case .askForPromotion(let pair): "a promotion of pair \(pair + 1) is asked for"
        }
    }
}

extension World {
    /// Faults from now on for `shape.faultyNanoseconds`, all repaired by then.
    func scheduleFaults() {
        let end = now + shape.faultyNanoseconds
        var at = now
        while true {
            at += random.time(1, 2 * shape.meanFaultNanoseconds)
            guard at < end else { return }
            let longest: UInt64 =
                shape.focus == .users
                ? 300 : shape.focus == .cutOff || random.chance(300) ? 12_000 : 3_000
            let duration = min(random.time(ms(50), ms(longest)), end - at)
            let fault = randomFault(duration)
            queue.push(.fault(fault), at: at)
            queue.push(.repair(fault), at: at + duration)
            // Double failures: something else at nearly the same time.
            if random.chance(250) {
                let second = randomFault(duration)
                let later = min(at + random.time(0, ms(800)), end)
                queue.push(.fault(second), at: later)
                queue.push(.repair(second), at: max(later, at + duration))
            }
            // Flapping: the same again and again.
            if random.chance(80), duration > ms(400) {
                for flap in 1...4 {
                    let time = at + duration + UInt64(flap) * ms(300)
                    guard time + ms(200) < end else { break }
                    queue.push(.fault(fault), at: time)
                    queue.push(.repair(fault), at: time + ms(150))
                }
            }
        }
    }

    private func randomFault(_ duration: UInt64) -> Fault {
        let host = random.below(hosts.count)
        let other = (host + 1 + random.below(hosts.count - 1)) % hosts.count
        let pair = random.below(pairs.count)
        if let focus = shape.focus {
            switch focus {
            case .cutOff:
                switch random.below(8) {
                case 0..<3: return .cutOff(host)
                case 3..<5: return .isolateAndStoreCut(host)
                case 5: return .poolLost(other)
                case 6: return .storeDown
                default: return .device(host, DeviceMode.fails.rawValue)
                }
            case .pauses:
                switch random.below(4) {
                case 0: return .pause(host, duration)
                case 1: return .isolate(host)
                case 2: return .slow(host)
                default: return .pauseAll(duration)
                }
            case .lies:
                switch random.below(5) {
                case 0: return .cutOff(host)
                case 1: return .isolateAndStoreCut(host)
                case 2: return .pause(host, duration)
                default: return .device(host, DeviceMode.lies.rawValue)
                }
            case .users:
                switch random.below(8) {
                case 0..<4: return .endGuest(pair)
                case 4..<7: return .killQEMU(secondaryHost(pair) ?? host, pair)
                default: return .killAgent(host)
                }
            }
        }
        switch random.below(100) {
        case 0..<16: return .crash(host)
        case 16..<25: return .pause(host, duration)
        case 25..<26: return .pauseAll(duration)
        case 26..<34: return .killAgent(host)
        case 34..<40: return .killQEMU(primaryHost(pair) ?? host, pair)
        case 40..<44: return .slow(host)
        case 44..<48: return .cut(from: host, to: other)
        case 48..<52: return .isolate(host)
        case 52..<55: return .split(hosts.map { _ in random.chance(500) })
        case 55..<58: return .loss(100 + random.below(600))
        case 58..<61: return .delay(random.time(ms(10), ms(700)))
        case 61..<65: return .storeDown
        case 65..<68: return .storeSlow(random.time(ms(100), ms(3_000)))
        case 68..<72: return .storeCut(host)
        case 72..<75: return .isolateAndStoreCut(host)
        case 75..<78: return .poolLost(host)
        case 78..<80: return .beatsLost(host)
        case 80..<86: return .cutOff(host)
        case 86..<93:
            let modes: [DeviceMode] = [.fails, .hangs, .lies]
            return .device(host, modes[random.below(3)].rawValue)
        case 93..<94: return .confirmDead(host)
        case 94..<96: return .wallJump(host, Int64(random.below(7_200)) * 1_000_000_000)
        case 96..<98: return .endGuest(pair)
        default: return .askForPromotion(pair)
        }
    }

    private func primaryHost(_ pair: Int) -> Int? {
        pairs[pair].record.flatMap { hostIndex[$0.primary] }
    }

    private func secondaryHost(_ pair: Int) -> Int? {
        pairs[pair].record?.secondary.flatMap { hostIndex[$0] }
    }

    func begin(_ fault: Fault) {
        say(nil, "-- \(fault)")
        trouble(fault, +1)
        switch fault {
        case .crash(let host):
            killHost(host)
        case .pause(let host, let time):
            troubledUntil[host] = max(troubledUntil[host], now + time)
            if hosts[host].isUp {
                hosts[host].pausedUntil = max(hosts[host].pausedUntil, now + time)
            }
        case .pauseAll(let time):
            // The machine under all of them, say: nobody has missed anything of anybody.
            for host in hosts where host.isUp {
                host.pausedUntil = max(host.pausedUntil, now + time + random.time(0, ms(30)))
            }
        case .killAgent(let host):
            killAgent(host)
        case .killQEMU(let host, let pair): killQEMU(hosts[host], pair)
        case .endGuest(let pair): if let host = primaryHost(pair) { endGuest(hosts[host], pair) }
        case .slow(let host):
            hosts[host].slowness = 1 + UInt64(random.below(12))
        case .cut, .isolate, .split, .isolateAndStoreCut, .cutOff, .loss, .delay:
            networkFault(fault, +1)
        case .storeDown: isStoreUp = false
        case .storeSlow(let time): storeDelay = time
        case .storeCut(let host): storeCuts[host] += 1
        case .poolLost(let host): losePool(host)
        case .beatsLost(let host):
            hosts[host].beatsInPool = false
            poolTroubledUntil[host] = now
        case .device(let host, let mode): deviceModes[host] = DeviceMode(rawValue: mode) ?? .works
        case .confirmDead(let host): confirmDead(host)
        case .wallJump(let host, let time): hosts[host].wallOffset += time
        case .askForPromotion(let pair): ask(pair) { $0.promotionRequested = true }
        }
    }

    func repair(_ fault: Fault) {
        trouble(fault, -1)
        switch fault {
        case .crash(let host):
            startHost(host)
        case .killAgent(let host):
            startAgent(host)
        case .slow(let host):
            hosts[host].slowness = 1
        case .cut, .isolate, .split, .isolateAndStoreCut, .cutOff, .loss, .delay:
            networkFault(fault, -1)
        case .storeDown: isStoreUp = true
        case .storeSlow: storeDelay = 0
        case .storeCut(let host): storeCuts[host] = max(0, storeCuts[host] - 1)
        case .poolLost(let host):
            hosts[host].isPoolVisible = true
            poolTroubledUntil[host] = now
        case .beatsLost(let host):
            hosts[host].beatsInPool = true
            poolTroubledUntil[host] = now
        case .device(let host, _): deviceModes[host] = .works
        case .endGuest(let pair): if let host = primaryHost(pair) { startDomain(pair, on: host) }
        case .pause, .pauseAll, .killQEMU, .confirmDead, .wallJump, .askForPromotion: return
        }
        say(nil, "-- over: \(fault)")
    }

    /// Until it has settled again, nobody can be blamed for calling it dead.
    private func trouble(_ fault: Fault, _ change: Int) {
        switch fault {
        case .crash(let host), .killAgent(let host), .slow(let host), .poolLost(let host),
            .beatsLost(let host), .pause(let host, _):
            troubles[host] = max(0, troubles[host] + change)
            troubledUntil[host] = max(troubledUntil[host], now)
        case .cut, .isolate, .split, .isolateAndStoreCut, .cutOff, .loss, .delay:
            networkTroubles = max(0, networkTroubles + change)
            networkTroubledUntil = now
        default: break
        }
    }

    private func losePool(_ index: Int) {
        hosts[index].isPoolVisible = false
        poolTroubledUntil[index] = now
        // Its QEMUs stand on memory that is not there any more: SIGBUS.
        for pair in pairs.indices
        where hosts[index].qemus[pair].map({ $0.generation != nil || $0.mode == .waiting }) ?? false
        {
            killQEMU(hosts[index], pair)
        }
    }

    private func networkFault(_ fault: Fault, _ change: Int) {
        func cut(_ from: Int, _ to: Int) {
            let link = from * hosts.count + to
            cuts[link] = max(0, cuts[link] + change)
        }
        func isolate(_ host: Int) {
            for other in hosts.indices where other != host {
                cut(host, other)
                cut(other, host)
            }
        }
        switch fault {
        case .cut(let from, let to): cut(from, to)
        case .isolate(let host): isolate(host)
        case .isolateAndStoreCut(let host):
            isolate(host)
            storeCuts[host] = max(0, storeCuts[host] + change)
        case .cutOff(let host):
            // Network and store, and its beats do not get out; its guests go on.
            isolate(host)
            storeCuts[host] = max(0, storeCuts[host] + change)
            hosts[host].beatsInPool = change < 0
            poolTroubledUntil[host] = now
        case .split(let side):
            for from in hosts.indices {
                for to in hosts.indices where side[from] != side[to] { cut(from, to) }
            }
        case .loss(let perMille): lossPerMille = change > 0 ? perMille : 0
        case .delay(let time): extraDelay = change > 0 ? time : 0
        default: break
        }
    }

    /// Everything that can be repaired from outside is.
    func heal() {
        say(nil, "-- everything is repaired")
        for index in cuts.indices { cuts[index] = 0 }
        for index in hosts.indices {
            storeCuts[index] = 0
            deviceModes[index] = .works
            hosts[index].slowness = 1
            hosts[index].isPoolVisible = true
            hosts[index].beatsInPool = true
            (troubles[index], troubledUntil[index]) = (0, max(now, hosts[index].pausedUntil))
            startHost(index)
            startAgent(index)
        }
        (lossPerMille, extraDelay, storeDelay, isStoreUp) = (0, 0, 0, true)
        (networkTroubles, networkTroubledUntil) = (0, now)
    }
}
