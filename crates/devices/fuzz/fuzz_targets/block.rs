//! virtio-block. The backend is asked for nothing but whole sectors of the disk, each request has a token
//! of its own, and it may end in any order and any way.

#![no_main]

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    os::fd::{AsRawFd, RawFd},
};

use arbitrary::Arbitrary;
use ec2vmm_devices::virtio::block::{Backend, Block, Completion, Operation, Options, Request};
use ec2vmm_devices_fuzz::{
    driver::{Message, Subject, play, unlimited},
    memory::GuestMemory,
    script::Script,
};
use libfuzzer_sys::fuzz_target;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

thread_local! {
    static MEMORY: RefCell<GuestMemory> = RefCell::default();
    static DISK: RefCell<Disk> = RefCell::default();
}

/// A request as a driver writes it.
#[derive(Arbitrary, Debug)]
struct Asked {
    kind: Kind,
    sector: Sector,
    data: Data,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    Flush,
    Serial,
    Discard,
    WriteZeroes,
    Other(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Sector {
    Near(u8),
    End(i8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Data {
    None,
    Sectors(u8),
    Range { sector: Sector, sectors: u32, flags: u32 },
    Few(u32, bool),
    Bytes(Vec<u8>),
}

impl Sector {
    fn number(self) -> u64 {
        match self {
            Self::Near(sector) => sector.into(),
            Self::End(by) => (CAPACITY / 512).wrapping_add_signed(by.into()),
            Self::Any(sector) => sector,
        }
    }
}

impl Message for Asked {
    fn bytes(&self) -> Vec<u8> {
        let kind: u32 = match self.kind {
            Kind::Read => 0,
            Kind::Write => 1,
            Kind::Flush => 4,
            Kind::Serial => 8,
            Kind::Discard => 11,
            Kind::WriteZeroes => 13,
            Kind::Other(kind) => kind,
        };
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(self.sector.number().to_le_bytes());
        match &self.data {
            Data::None => {}
            Data::Sectors(count) => bytes.resize(16 + usize::from(count % 8) * 512, 0xa5),
            Data::Range { sector, sectors, flags } => {
                bytes.extend(sector.number().to_le_bytes());
                bytes.extend(sectors.to_le_bytes());
                bytes.extend(flags.to_le_bytes());
            }
            Data::Few(sectors, unmap) => {
                bytes.extend(self.sector.number().to_le_bytes());
                bytes.extend((sectors % 300).to_le_bytes());
                bytes.extend(u32::from(*unmap).to_le_bytes());
            }
            Data::Bytes(data) => bytes.extend(data),
        }
        bytes
    }
}

#[derive(Arbitrary, Debug)]
enum Act {
    /// One of the requests under way ends.
    End { which: u8, how: How },
    /// Requests end by themselves from now on, as they are submitted.
    Hurry(bool),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum How {
    Well,
    Badly,
    Unsupported,
}

#[derive(Default)]
struct Disk {
    staged: Vec<Request>,
    under_way: Vec<Request>,
    ended: VecDeque<Completion>,
    hurry: bool,
    asked: usize,
}

impl Disk {
    fn end(&mut self, which: usize, how: How) {
        if self.under_way.is_empty() {
            return;
        }
        let request = self.under_way.remove(which % self.under_way.len());
        let result = match how {
            How::Well => Ok(()),
            How::Badly => Err(io::ErrorKind::StorageFull.into()),
            How::Unsupported => Err(io::ErrorKind::Unsupported.into()),
        };
        if let (Operation::Read { buffers, .. }, Ok(())) = (&request.operation, &result) {
            let data = vec![0xdb; buffers.len().min(1 << 20) as usize];
            buffers.write_at(0, &data);
        }
        self.ended.push_back(Completion { request, result });
    }

    fn end_all(&mut self) {
        self.under_way.append(&mut self.staged);
        while !self.under_way.is_empty() {
            self.end(0, How::Well);
        }
    }
}

struct Mock(EventFd);

impl Backend for Mock {
    fn capacity(&self) -> u64 {
        CAPACITY + 100
    }

    fn grow(&mut self, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn discard_granularity(&self) -> Option<u32> {
        Some(4096)
    }

    fn event(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn enqueue(&mut self, request: Request) {
        match &request.operation {
            Operation::Read { offset, buffers } | Operation::Write { offset, buffers } => {
                within(*offset, buffers.len());
                assert!(buffers.segments() <= 254);
                assert_eq!(buffers.slices().map(|slice| slice.len() as u64).sum::<u64>(), buffers.len());
            }
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                within(*offset, *len);
            }
            Operation::Flush => {}
        }
        DISK.with_borrow_mut(|disk| {
            let mut others = disk.staged.iter().chain(&disk.under_way);
            assert!(others.all(|other| other.token != request.token), "a token is used twice");
            disk.asked += 1;
            disk.staged.push(request);
        });
    }

    fn submit(&mut self) {
        DISK.with_borrow_mut(|disk| {
            let Disk { staged, under_way, .. } = disk;
            under_way.append(staged);
            if disk.hurry && !disk.under_way.is_empty() {
                disk.end_all();
                let _ = self.0.write(1);
            }
        });
    }

    fn completed(&mut self) -> Option<Completion> {
        DISK.with_borrow_mut(|disk| disk.ended.pop_front())
    }

    fn wait_idle(&mut self) {
        DISK.with_borrow_mut(Disk::end_all);
    }
}

fn within(offset: u64, len: u64) {
    assert!(len > 0 && offset % 512 == 0 && len % 512 == 0, "{len} bytes at {offset} are no sectors");
    assert!(offset.checked_add(len).is_some_and(|end| end <= CAPACITY), "{len} bytes at {offset}");
}

struct World {
    block: Block<Mock>,
    event: EventFd,
}

impl Subject for World {
    type Device = Block<Mock>;
    type Act = Act;

    fn device(&mut self) -> &mut Self::Device {
        &mut self.block
    }

    fn act(&mut self, act: Act) {
        DISK.with_borrow_mut(|disk| match act {
            Act::End { which, how } => disk.end(which.into(), how),
            Act::Hurry(hurry) => disk.hurry = hurry,
        });
        let _ = self.event.write(1);
    }

    fn after_wake(&mut self) {
        DISK.with_borrow_mut(|disk| {
            let asked = std::mem::take(&mut disk.asked);
            assert!(asked <= 2 * 512 + 2 * 512, "{asked} requests in one wake");
            assert!(disk.under_way.len() <= 512, "{} requests under way", disk.under_way.len());
        });
    }

    fn let_all_end(&mut self) {
        DISK.with_borrow_mut(|disk| {
            disk.end_all();
            disk.hurry = true;
        });
        let _ = self.event.write(1);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        DISK.take();
    }
}

fn world(read_only: bool) -> World {
    let event = EventFd::new(EFD_NONBLOCK).expect("an event");
    let other = event.try_clone().expect("a descriptor");
    let options = Options { serial: "vol-0123456789abcdef".into(), read_only, queues: 2 };
    World { block: Block::new(Mock(other), &options, unlimited()).expect("a device"), event }
}

const CAPACITY: u64 = 1 << 20;

fuzz_target!(|input: (Script<Asked, Act>, bool)| {
    let (script, read_only) = input;
    DISK.set(Disk::default());
    MEMORY.with_borrow_mut(|memory| play(memory, |_| world(read_only), script));
});
