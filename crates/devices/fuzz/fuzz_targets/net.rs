//! virtio-net. The port is given frames of sane sizes in pieces that it can take, and is asked for so many
//! at most a wake, whatever it answers.

#![no_main]

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
};

use arbitrary::Arbitrary;
use ec2vmm_devices::virtio::{
    Buffers,
    net::{HEADER_LEN, Limiters, Net, Offloads, Options, PIECES_MAX, Port},
};
use ec2vmm_devices_fuzz::{
    driver::{Message, Subject, play, unlimited},
    memory::GuestMemory,
    script::Script,
};
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

thread_local! {
    static MEMORY: RefCell<GuestMemory> = RefCell::default();
    static CABLE: RefCell<Cable> = RefCell::default();
}

#[derive(Arbitrary, Debug)]
enum Frame {
    Whole(u8),
    Large(u16),
    Bytes(Vec<u8>),
}

impl Message for Frame {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Whole(len) => vec![0x11; 26 + usize::from(*len)],
            Self::Large(len) => vec![0x22; usize::from(*len)],
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Act {
    /// A frame has come; as long as this, header and all.
    Come(u16),
    /// A few of them.
    Burst {
        len: u8,
        count: u8,
    },
    /// How the port answers from now on.
    Sending(Answer),
    Receiving(Answer),
}

#[derive(Arbitrary, Clone, Copy, Debug, Default, PartialEq)]
enum Answer {
    #[default]
    Well,
    NotNow,
    Interrupted,
    Broken,
}

impl Answer {
    /// Interruptions come one at a time.
    fn give(&mut self) -> io::Result<()> {
        let answer = *self;
        if answer == Self::Interrupted {
            *self = Self::Well;
        }
        match answer {
            Self::Well => Ok(()),
            Self::NotNow => Err(io::ErrorKind::WouldBlock.into()),
            Self::Interrupted => Err(io::ErrorKind::Interrupted.into()),
            Self::Broken => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

#[derive(Default)]
struct Cable {
    coming: VecDeque<usize>,
    sending: Answer,
    receiving: Answer,
    /// Calls since the last wake.
    calls: usize,
}

struct Mock(EventFd);

impl Port for Mock {
    fn descriptor(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads { checksum: true, tso4: true, tso6: true, ecn: true, uso: true }
    }

    fn set_enabled(&mut self, _enabled: bool) -> io::Result<()> {
        Ok(())
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        assert!(
            offloads.checksum || offloads == Offloads::default(),
            "{offloads:?}: segments without checksums"
        );
        CABLE.with_borrow_mut(|cable| cable.sending.give())
    }

    fn receive(&mut self, buffers: &Buffers, spill: &mut [u8]) -> io::Result<usize> {
        assert!(buffers.segments() <= PIECES_MAX, "{} pieces", buffers.segments());
        CABLE.with_borrow_mut(|cable| {
            cable.calls += 1;
            cable.receiving.give()?;
            let len = cable.coming.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
            let frame = vec![0x33; len];
            let done = buffers.write_at(0, &frame);
            let rest = (len - done).min(spill.len());
            spill[..rest].fill(0x44);
            Ok(done + rest)
        })
    }

    fn send(&mut self, frame: &Buffers) -> io::Result<()> {
        assert!(frame.segments() <= PIECES_MAX, "{} pieces", frame.segments());
        assert!((HEADER_LEN + 14..=HEADER_LEN + 18 + 65_535).contains(&frame.len()), "{} bytes", frame.len());
        assert_eq!(frame.slices().map(|slice| slice.len() as u64).sum::<u64>(), frame.len());
        CABLE.with_borrow_mut(|cable| {
            cable.calls += 1;
            cable.sending.give()
        })
    }
}

struct World {
    net: Net<Mock>,
    event: EventFd,
}

impl Subject for World {
    type Device = Net<Mock>;
    type Act = Act;

    fn device(&mut self) -> &mut Self::Device {
        &mut self.net
    }

    fn act(&mut self, act: Act) {
        CABLE.with_borrow_mut(|cable| match act {
            Act::Come(len) => cable.come(len.into(), 1),
            Act::Burst { len, count } => cable.come(64 + usize::from(len) * 8, count.into()),
            Act::Sending(answer) => cable.sending = answer,
            Act::Receiving(answer) => cable.receiving = answer,
        });
        // A tap that has become ready.
        let _ = self.event.write(1);
    }

    fn after_wake(&mut self) {
        let calls = CABLE.with_borrow_mut(|cable| std::mem::take(&mut cable.calls));
        assert!(calls <= 2 * 256, "{calls} frames in one wake");
    }

    fn let_all_end(&mut self) {
        CABLE.with_borrow_mut(|cable| {
            (cable.sending, cable.receiving) = (Answer::Well, Answer::Well);
        });
        let _ = self.event.write(1);
    }
}

impl Cable {
    fn come(&mut self, len: usize, count: usize) {
        let room = 512_usize.saturating_sub(self.coming.len());
        self.coming.extend(std::iter::repeat_n(len, count.min(room)));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        CABLE.take();
    }
}

fn world() -> World {
    let event = EventFd::new(EFD_NONBLOCK).expect("an event");
    let port = Mock(event.try_clone().expect("a descriptor"));
    let limiters = Limiters { receive: unlimited(), transmit: unlimited() };
    let net = Net::new(vec![port], &Options { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1500) }, limiters);
    World { net: net.expect("a device"), event }
}

fuzz_target!(|script: Script<Frame, Act>| {
    CABLE.take();
    MEMORY.with_borrow_mut(|memory| play(memory, |_| world(), script));
});
