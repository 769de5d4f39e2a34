//! virtio-vsock, against programs of the host at real sockets.

#![no_main]

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::Shutdown,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::{AtomicU64, Ordering},
};

use arbitrary::Arbitrary;
use ec2vmm_devices::virtio::vsock::Vsock;
use ec2vmm_devices_fuzz::{
    driver::{Message, Subject, play},
    memory::GuestMemory,
    script::Script,
};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static MEMORY: RefCell<GuestMemory> = RefCell::default();
}

/// A packet of the guest.
#[derive(Arbitrary, Debug)]
struct Packet {
    op: Op,
    src_port: Port,
    dst_port: Port,
    flags: u8,
    buf_alloc: u32,
    fwd_cnt: u32,
    data: Vec<u8>,
    /// As long as this instead.
    fill: Option<u16>,
    wrong: Wrong,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    Other(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Port {
    Known(u8),
    /// One of those that the device chooses.
    Chosen(u8),
    Any(u32),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Wrong {
    Nothing,
    Nothing2,
    Nothing3,
    Nothing4,
    Nothing5,
    Length(u32),
    Source(u64),
    Destination(u64),
    Kind(u16),
}

impl Port {
    fn number(self) -> u32 {
        match self {
            Self::Known(port) => u32::from(port % 4),
            Self::Chosen(by) => (1 << 30) + u32::from(by % 16),
            Self::Any(port) => port,
        }
    }
}

impl Message for Packet {
    fn bytes(&self) -> Vec<u8> {
        let op: u16 = match self.op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Data => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Other(op) => op,
        };
        let data = self.fill.map_or_else(|| self.data.clone(), |len| vec![0x77; len.into()]);
        let (mut source, mut destination, mut kind, mut len) = (CID, 2_u64, 1_u16, data.len() as u32);
        match self.wrong {
            Wrong::Length(other) => len = other,
            Wrong::Source(other) => source = other,
            Wrong::Destination(other) => destination = other,
            Wrong::Kind(other) => kind = other,
            _ => {}
        }
        let mut bytes = source.to_le_bytes().to_vec();
        bytes.extend(destination.to_le_bytes());
        bytes.extend(self.src_port.number().to_le_bytes());
        bytes.extend(self.dst_port.number().to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(op.to_le_bytes());
        bytes.extend(u32::from(self.flags).to_le_bytes());
        bytes.extend(self.buf_alloc.to_le_bytes());
        bytes.extend(self.fwd_cnt.to_le_bytes());
        bytes.extend(data);
        bytes
    }
}

#[derive(Arbitrary, Debug)]
enum Act {
    Connect(u8),
    Listen(u8),
    Greet(Vec<u8>),
    Write { which: u8, len: u16 },
    Read { which: u8, len: u16 },
    Shut { which: u8, read: bool },
    Leave(u8),
}

struct World {
    vsock: Vsock,
    address: SocketAddr,
    programs: Vec<UnixStream>,
}

impl World {
    fn program(&mut self, line: &[u8]) {
        if self.programs.len() >= 32 {
            return;
        }
        let mut stream = UnixStream::connect_addr(&self.address).expect("the device listens");
        stream.set_nonblocking(true).expect("a socket");
        // Fails where the device has closed.
        let _ = stream.write(line);
        self.programs.push(stream);
    }

    fn of(&mut self, which: u8) -> Option<&mut UnixStream> {
        let count = self.programs.len().max(1);
        self.programs.get_mut(usize::from(which) % count)
    }
}

impl Subject for World {
    type Device = Vsock;
    type Act = Act;

    fn device(&mut self) -> &mut Self::Device {
        &mut self.vsock
    }

    /// What a program does may fail: the device has closed, or is full.
    fn act(&mut self, act: Act) {
        match act {
            Act::Connect(port) => self.program(format!("CONNECT {}\n", port % 4).as_bytes()),
            Act::Listen(port) => self.program(format!("LISTEN {}\n", port % 4).as_bytes()),
            Act::Greet(line) => self.program(&line),
            Act::Write { which, len } => {
                if let Some(program) = self.of(which) {
                    let _ = program.write(&vec![0x66; len.into()]);
                }
            }
            Act::Read { which, len } => {
                if let Some(program) = self.of(which) {
                    let _ = program.read(&mut vec![0; len.into()]);
                }
            }
            Act::Shut { which, read } => {
                if let Some(program) = self.of(which) {
                    let _ = program.shutdown(if read { Shutdown::Read } else { Shutdown::Write });
                }
            }
            Act::Leave(which) => {
                if !self.programs.is_empty() {
                    let which = usize::from(which) % self.programs.len();
                    self.programs.swap_remove(which);
                }
            }
        }
    }

    fn after_wake(&mut self) {}

    fn let_all_end(&mut self) {
        self.programs.clear();
    }
}

fn world() -> World {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("ec2vmm-fuzz-{}-{count}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    let listener = UnixListener::bind_addr(&address).expect("a name of its own");
    let vsock = Vsock::new(CID as u32, listener).expect("a device");
    World { vsock, address, programs: Vec::new() }
}

const CID: u64 = 3;

fuzz_target!(|script: Script<Packet, Act>| {
    MEMORY.with_borrow_mut(|memory| play(memory, |_| world(), script));
});
