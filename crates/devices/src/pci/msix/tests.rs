use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{MsiMessage, MsixTable, fire};

/// KVM: reads eventfds that are attached, and looks at the counter when it attaches one.
#[derive(Clone)]
struct Kvm {
    eventfds: Arc<[EventFd]>,
    state: Arc<Mutex<Wires>>,
}

/// What is attached to each vector, and what was delivered.
type Wires = (Vec<Option<MsiMessage>>, Vec<MsiMessage>);

impl Kvm {
    fn new(vectors: usize) -> (Self, MsixTable) {
        let eventfds: Arc<[_]> = (0..vectors).map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect();
        let state = Arc::new(Mutex::new((vec![None; vectors], Vec::new())));
        (Self { eventfds: Arc::clone(&eventfds), state }, MsixTable::new(eventfds))
    }

    fn route(&self, vector: u16, message: Option<MsiMessage>) -> io::Result<()> {
        self.poll();
        let attached = &mut self.state.lock().unwrap().0[usize::from(vector)];
        assert_ne!(attached.is_some(), message.is_some(), "attached twice, or detached twice");
        *attached = message;
        Ok(())
    }

    fn poll(&self) {
        let mut state = self.state.lock().unwrap();
        let (attached, delivered) = &mut *state;
        for (eventfd, message) in self.eventfds.iter().zip(attached) {
            if let Some(message) = message
                && eventfd.read().is_ok()
            {
                delivered.push(*message);
            }
        }
    }

    fn delivered(&self) -> Vec<u32> {
        self.poll();
        std::mem::take(&mut self.state.lock().unwrap().1).into_iter().map(|message| message.data).collect()
    }

    fn apply(&self, table: &mut MsixTable) {
        table.apply(|vector, message| self.route(vector, message)).unwrap();
    }

    fn mask(&self, table: &mut MsixTable, vector: u64, masked: bool) {
        table.write(vector * 16 + 12, &u32::from(masked).to_le_bytes());
        self.apply(table);
    }
}

fn pending(table: &MsixTable) -> u64 {
    let mut bytes = [0; 8];
    table.read_pending(0, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// Three vectors that send their number, on and unmasked.
fn ready() -> (Kvm, MsixTable) {
    let (kvm, mut table) = Kvm::new(3);
    for vector in 0..3u32 {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&0xfee0_0000u64.to_le_bytes());
        entry[8..12].copy_from_slice(&vector.to_le_bytes());
        table.write(u64::from(vector) * 16, &entry);
    }
    kvm.apply(&mut table);
    assert_eq!(kvm.state.lock().unwrap().0, [None; 3], "not enabled");
    table.set_control(0x8000);
    kvm.apply(&mut table);
    (kvm, table)
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let (kvm, mut table) = ready();
    fire(&kvm.eventfds[1]);
    assert_eq!(kvm.delivered(), [1]);
    kvm.mask(&mut table, 1, true);
    fire(&kvm.eventfds[1]);
    fire(&kvm.eventfds[1]);
    fire(&kvm.eventfds[2]);
    assert_eq!((kvm.delivered(), pending(&table)), (vec![2], 0b010));
    assert_eq!(pending(&table), 0b010, "reading changes nothing");
    // A new message, then unmasked: what was pending goes where it goes now.
    table.write(16 + 8, &77u32.to_le_bytes());
    kvm.mask(&mut table, 1, false);
    assert_eq!((kvm.delivered(), pending(&table)), (vec![77], 0));
    kvm.mask(&mut table, 1, true);
    kvm.mask(&mut table, 1, false);
    assert_eq!(kvm.delivered(), [0; 0], "once");
}

#[test]
fn a_message_changes_while_it_is_unmasked() {
    let (kvm, mut table) = ready();
    table.write(8, &88u32.to_le_bytes());
    fire(&kvm.eventfds[0]);
    kvm.apply(&mut table);
    fire(&kvm.eventfds[0]);
    assert_eq!(kvm.delivered(), [0, 88]);
}

#[test]
fn the_whole_function_can_be_masked_and_turned_off() {
    let (kvm, mut table) = ready();
    for control in [0xc000, 0x0000] {
        table.set_control(control);
        kvm.apply(&mut table);
        fire(&kvm.eventfds[0]);
        assert_eq!((kvm.delivered(), pending(&table)), (vec![], 1));
        table.set_control(0x8000);
        kvm.apply(&mut table);
        assert_eq!((kvm.delivered(), pending(&table)), (vec![0], 0));
    }
}

#[test]
fn a_reset_forgets_everything() {
    let (kvm, mut table) = ready();
    kvm.mask(&mut table, 0, true);
    fire(&kvm.eventfds[0]);
    table.reset(|vector, message| kvm.route(vector, message)).unwrap();
    assert_eq!(kvm.state.lock().unwrap().0, [None; 3]);
    let mut bytes = [0; 16];
    table.read(16, &mut bytes);
    assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!((pending(&table), table.enabled()), (0, false));
    assert!(kvm.eventfds[0].read().is_err());
}

#[test]
fn accesses_of_any_width_stay_inside() {
    let (_, mut table) = ready();
    table.write(47, &[0xff; 64]);
    table.write(u64::MAX, &[0xff; 8]);
    table.write(44, &[0xff; 8]);
    let mut bytes = [0xee; 8];
    table.read(44, &mut bytes);
    assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0], "only the mask bit is writable");
    table.write(0, &[0xff]);
    table.read(0, &mut bytes);
    assert_eq!(bytes[0], 0xfc, "addresses are multiples of four");
    table.read(u64::MAX, &mut bytes);
    table.read_pending(u64::MAX, &mut bytes);
    assert_eq!(bytes, [0; 8]);
}

#[test]
fn a_route_that_fails_is_tried_again() {
    let (kvm, mut table) = ready();
    kvm.mask(&mut table, 0, true);
    fire(&kvm.eventfds[0]);
    table.write(12, &[0]);
    table.apply(|_, _| Err(io::ErrorKind::OutOfMemory.into())).unwrap_err();
    assert_eq!(pending(&table), 1, "still kept");
    kvm.apply(&mut table);
    assert_eq!(kvm.delivered(), [0]);
}

/// One thread fires and waits for the delivery, while others mask and unmask and deliver as KVM does.
#[test]
fn nothing_is_lost_while_a_vector_is_masked_and_unmasked() {
    let (kvm, mut table) = ready();
    let (done, delivered) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                delivered.fetch_add(kvm.delivered().len() as u64, Ordering::AcqRel);
                thread::yield_now();
            }
        });
        scope.spawn(|| {
            let mut masked = false;
            while !done.load(Ordering::Acquire) {
                masked = !masked;
                kvm.mask(&mut table, 0, masked);
                pending(&table);
                thread::yield_now();
            }
            kvm.mask(&mut table, 0, false);
        });
        let end = Instant::now() + Duration::from_secs(60);
        let lost = (0..300).find(|_| {
            let before = delivered.load(Ordering::Acquire);
            fire(&kvm.eventfds[0]);
            while delivered.load(Ordering::Acquire) == before {
                if Instant::now() > end {
                    return true;
                }
                thread::yield_now();
            }
            false
        });
        done.store(true, Ordering::Release);
        assert_eq!(lost, None);
    });
}
