use std::{
    io,
    sync::{Arc, Mutex},
};

use proptest::prelude::{any, prop, proptest};
use vm_memory::GuestAddress;

use super::{Balloon, DEFLATE_ON_OOM, Options, REPORTING, Reclaim, STATISTICS};
use crate::virtio::{
    BalloonState, CommandError, DeviceAnswer, DeviceCommand, VirtioDevice, Wake,
    testing::{Buffer, FakeTime, Guest},
};

#[derive(Clone, Default)]
struct Discarded(Arc<Mutex<Vec<(u64, u64)>>>);

impl Reclaim for Discarded {
    fn discard(&self, address: GuestAddress, len: u64) -> io::Result<()> {
        if address.0 == FAILS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.lock().unwrap().push((address.0, len));
        Ok(())
    }
}

impl Discarded {
    fn take(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

const MIB: u64 = 1 << 20;
const FAILS: u64 = 7 * MIB;
const ALL: u64 = STATISTICS | DEFLATE_ON_OOM | REPORTING;

const OPTIONS: Options = Options { memory_bytes: 9 << 20, deflate_on_oom: true, free_page_reporting: true };

/// 8 MiB, and 1 MiB behind a hole.
fn balloon(features: u64) -> (Balloon<Discarded>, Guest, Discarded) {
    let (balloon, guest, discarded, _) = balloon_in_time(features);
    (balloon, guest, discarded)
}

fn balloon_in_time(features: u64) -> (Balloon<Discarded>, Guest, Discarded, FakeTime) {
    let (discarded, time) = (Discarded::default(), FakeTime::new());
    let mut balloon = Balloon::new(discarded.clone(), OPTIONS, time.clock()).unwrap();
    let sizes = balloon.identity().queue_sizes;
    let guest = Guest::with_memory(&sizes, &[(0, 8 << 20), (16 * MIB, 1 << 20)]);
    balloon.activate(features, guest.queues()).unwrap();
    (0..5).for_each(|queue| balloon.wake(Wake::Queue(queue)).unwrap());
    (balloon, guest, discarded, time)
}

fn ask(balloon: &mut Balloon<Discarded>, command: DeviceCommand) -> Result<BalloonState, CommandError> {
    match balloon.command(&command)? {
        DeviceAnswer::Balloon(state) => Ok(state),
        DeviceAnswer::Done => panic!("a state is due"),
    }
}

fn read(balloon: &mut Balloon<Discarded>) -> BalloonState {
    ask(balloon, DeviceCommand::ReadBalloon).unwrap()
}

fn numbers(pages: &[u32]) -> Vec<u8> {
    pages.iter().flat_map(|page| page.to_le_bytes()).collect()
}

fn metric(balloon: &Balloon<Discarded>, name: &str) -> u64 {
    balloon.metrics().into_iter().find(|(other, _)| *other == name).unwrap().1
}

#[test]
fn neighbours_are_discarded_together_and_nothing_but_memory() {
    let (mut balloon, mut guest, discarded) = balloon(ALL);
    let pages =
        guest.buffer(&numbers(&[0x203, 0x201, 0x202, 0x202, 0x400, 0x10ff, 0x1100, 0x7ff, 0x800, u32::MAX]));
    let head = guest.ring(0).add(&[pages]);
    balloon.wake(Wake::Queue(0)).unwrap();
    assert_eq!(guest.ring(0).used(), [(head, 0)]);
    let expected = [(0x20_1000, 0x3000), (0x40_0000, 0x1000), (0x7f_f000, 0x1000), (0x10f_f000, 0x1000)];
    assert_eq!(discarded.take(), expected);
    assert_eq!(metric(&balloon, "discarded_bytes"), 0x6000);
    assert_eq!(metric(&balloon, "refused"), 3, "half of two runs, and the last page number");
    let head = guest.ring(1).add(&[pages]);
    balloon.wake(Wake::Queue(1)).unwrap();
    assert_eq!(guest.ring(1).used(), [(head, 0)]);
    assert_eq!(metric(&balloon, "deflated_pages"), 10);
    assert_eq!(discarded.take(), []);
}

#[test]
fn free_pages_are_reported_in_the_queue_that_the_driver_uses() {
    for (features, queues) in [(ALL, vec![3, 4]), (REPORTING, vec![2, 3, 4])] {
        let (mut balloon, mut guest, discarded) = balloon(features);
        for queue in queues {
            let ranges = [
                Buffer::writable(2 * MIB, 2 << 20),
                Buffer::writable(5 * MIB - 1, 0x2001),
                Buffer::writable(6 * MIB + 1, 0x1000),
            ];
            let head = guest.ring(queue).add(&ranges);
            balloon.wake(Wake::Queue(u16::try_from(queue).unwrap())).unwrap();
            assert_eq!(guest.ring(queue).used(), [(head, 0)]);
            assert_eq!(discarded.take(), [(2 * MIB, 2 * MIB), (5 * MIB, 0x2000)]);
        }
    }
    let (mut balloon, mut guest, discarded) = balloon(STATISTICS);
    guest.ring(4).add(&[Buffer::writable(2 * MIB, 2 << 20)]);
    balloon.wake(Wake::Queue(4)).unwrap();
    assert_eq!(discarded.take(), [], "not negotiated");
}

#[test]
fn a_driver_that_gives_much_at_once_keeps_nobody_waiting() {
    let (mut balloon, mut guest, discarded) = balloon(ALL);
    let odd: Vec<u32> = (0..1024).map(|page| 2 * page + 1).collect();
    let pages = guest.buffer(&numbers(&odd));
    let head = guest.ring(0).add(&[pages]);
    (1..100).for_each(|_| guest.ring(0).make_available(head));
    // And as many ranges as descriptors.
    let ranges: Vec<_> = (0..100).map(|at| Buffer::writable(2 * MIB + at * 0x2000, 0x1000)).collect();
    let other = guest.ring(4).add(&ranges);
    (1..100).for_each(|_| guest.ring(4).make_available(other));
    let (mut chains, mut wakes) = (0, 0);
    for (wake, most) in [(Wake::Queue(0), 2048), (Wake::Queue(4), 1124)]
        .into_iter()
        .chain(std::iter::repeat_n((Wake::Source(0), 2048 + 1124), 200))
    {
        let is_called = wakes < 2 || balloon.again.is_called();
        if !is_called {
            break;
        }
        balloon.wake(wake).unwrap();
        let asked = discarded.take().len();
        assert!(asked <= most, "{asked} discards in a wake");
        chains += guest.ring(0).used().len() + guest.ring(4).used().len();
        wakes += 1;
    }
    assert_eq!(chains, 200, "all of it in the end");
    assert!(wakes > 50, "{wakes} wakes");
}

#[test]
fn a_host_that_cannot_is_counted() {
    let (mut balloon, mut guest, discarded) = balloon(ALL);
    guest.ring(4).add(&[Buffer::writable(FAILS, 0x1000), Buffer::writable(FAILS - 0x1000, 0x1000)]);
    balloon.wake(Wake::Queue(4)).unwrap();
    assert_eq!(discarded.take(), [(FAILS - 0x1000, 0x1000)]);
    assert_eq!(metric(&balloon, "errors"), 1);
}

#[test]
fn the_target_reaches_the_driver_and_outlives_it() {
    let (mut balloon, guest, _) = balloon(ALL);
    let target = |bytes| DeviceCommand::SetBalloonTarget { bytes };
    assert_eq!(ask(&mut balloon, target(3 * MIB + 5)).unwrap().target_bytes, 3 * MIB);
    assert_eq!(guest.interrupts.of_config(), 1);
    let config = balloon.identity().config;
    config.write(0, &[9, 9, 9, 9, 0, 2, 0, 0]);
    let state = read(&mut balloon);
    assert_eq!((state.target_bytes, state.actual_bytes), (3 * MIB, 2 * MIB), "the target is the host's");
    assert_eq!((metric(&balloon, "target_bytes"), metric(&balloon, "actual_bytes")), (3 * MIB, 2 * MIB));
    balloon.reset();
    let state = read(&mut balloon);
    assert_eq!((state.target_bytes, state.actual_bytes), (3 * MIB, 0));
    assert_eq!(ask(&mut balloon, target(9 * MIB)).unwrap().target_bytes, 9 * MIB);
    assert_eq!(guest.interrupts.of_config(), 1, "nobody there to interrupt");
    for wrong in [9 * MIB + 1, u64::MAX] {
        assert!(matches!(ask(&mut balloon, target(wrong)), Err(CommandError::Invalid(_))));
    }
    assert_eq!(read(&mut balloon).target_bytes, 9 * MIB);
    assert!(matches!(balloon.command(&DeviceCommand::Announce), Err(CommandError::Unsupported)));
}

#[test]
fn what_is_switched_off_is_not_offered() {
    let features = |deflate_on_oom, free_page_reporting| {
        let options = Options { deflate_on_oom, free_page_reporting, ..OPTIONS };
        Balloon::new(Discarded::default(), options, FakeTime::new().clock()).unwrap().identity().features
    };
    assert_eq!(features(true, true), ALL);
    assert_eq!(features(false, true), STATISTICS | REPORTING);
    assert_eq!(features(true, false), STATISTICS | DEFLATE_ON_OOM);
}

#[test]
fn statistics_come_when_asked_for() {
    let (mut balloon, mut guest, _, time) = balloon_in_time(ALL);
    assert_eq!(read(&mut balloon).statistics_age_ms, None);
    let mut bytes = Vec::new();
    for (tag, value) in [(4u16, 77u64), (5, 88), (999, 99)] {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([1, 2, 3]);
    let first = guest.buffer(&bytes);
    let head = guest.ring(2).add(&[first]);
    balloon.wake(Wake::Queue(2)).unwrap();
    time.pass_ns(1_500_000_000);
    let state = read(&mut balloon);
    assert_eq!(state.statistics, [("guest_free_bytes", 77), ("guest_total_bytes", 88)]);
    assert_eq!((state.statistics_count, state.statistics_age_ms), (1, Some(1500)));
    assert_eq!(guest.ring(2).used(), [], "held until the host asks");
    let state = ask(&mut balloon, DeviceCommand::RefreshBalloonStatistics).unwrap();
    assert_eq!(state.statistics_count, 1, "it does not wait for them");
    balloon.wake(Wake::Source(0)).unwrap();
    assert_eq!(guest.ring(2).used(), [(head, 0)]);
    assert_eq!(guest.interrupts.of_queue(2), 1);
    balloon.wake(Wake::Source(0)).unwrap();
    assert_eq!(guest.ring(2).used(), []);
    // Whoever reads the metrics is given fresh ones the next time.
    let head = guest.ring(2).add(&[first]);
    balloon.wake(Wake::Queue(2)).unwrap();
    let state = read(&mut balloon);
    assert_eq!((state.statistics_count, state.statistics_age_ms), (2, Some(0)));
    assert_eq!(metric(&balloon, "guest_free_bytes"), 77);
    balloon.wake(Wake::Source(0)).unwrap();
    assert_eq!(guest.ring(2).used(), [(head, 0)]);
    // More buffers than one: the older ones come back.
    let heads = [guest.ring(2).add(&[first]), guest.ring(2).add(&[Buffer::readable(u64::MAX - 3, 50)])];
    balloon.wake(Wake::Queue(2)).unwrap();
    assert_eq!(guest.ring(2).used(), [(heads[0], 0)]);
    balloon.reset();
    balloon.wake(Wake::Source(0)).unwrap();
    assert_eq!((read(&mut balloon).statistics, read(&mut balloon).statistics_count), (vec![], 0));
}

#[test]
fn a_driver_without_statistics_is_not_asked() {
    let (mut balloon, _, _) = balloon(REPORTING);
    let refused = ask(&mut balloon, DeviceCommand::RefreshBalloonStatistics);
    assert!(matches!(refused, Err(CommandError::Unsupported)));
    balloon.reset();
    assert!(ask(&mut balloon, DeviceCommand::RefreshBalloonStatistics).is_err());
}

#[test]
fn page_numbers_outside_of_memory_are_the_guests_fault() {
    for address in [8 * MIB - 2, u64::MAX - 2] {
        let (mut balloon, mut guest, discarded) = balloon(ALL);
        guest.ring(0).add(&[Buffer::readable(address, 8)]);
        balloon.wake(Wake::Queue(0)).unwrap_err();
        assert_eq!(discarded.take(), []);
    }
}

#[test]
fn a_chain_is_bounded() {
    let (mut balloon, mut guest, _) = balloon(ALL);
    guest.ring(0).add(&[Buffer::readable(0, 4 << 20), Buffer::readable(0, 4 << 20)]);
    balloon.wake(Wake::Queue(0)).unwrap();
    assert_eq!(metric(&balloon, "inflated_pages"), super::PAGES_MAX as u64);
}

proptest! {
    #[test]
    fn whatever_the_driver_adds_only_memory_is_discarded(
        chains in prop::collection::vec(
            (0usize..5, prop::collection::vec((0u64..18 << 20, any::<u32>(), any::<bool>()), 1..4)), 1..20),
        pages in prop::collection::vec(any::<u32>(), 64),
    ) {
        let (mut balloon, mut guest, discarded) = balloon(ALL);
        let numbers = guest.buffer(&numbers(&pages));
        guest.ring(0).add(&[numbers]);
        for (queue, chain) in chains {
            let buffer = |(address, len, writable)| Buffer { address, len: len >> (len % 32), writable };
            let buffers: Vec<_> = chain.into_iter().map(buffer).collect();
            guest.ring(queue).add(&buffers);
            ask(&mut balloon, DeviceCommand::RefreshBalloonStatistics).unwrap();
            // Faults are fine; the loop then waits for a reset.
            let _ = balloon.wake(Wake::Queue(u16::try_from(queue).unwrap()));
            let _ = balloon.wake(Wake::Source(0));
        }
        for (address, len) in discarded.take() {
            assert!(len > 0 && len % 4096 == 0 && address % 4096 == 0);
            let end = address + len;
            assert!(end <= 8 * MIB || (address >= 16 * MIB && end <= 17 * MIB), "{address:#x} {len:#x}");
        }
    }
}
