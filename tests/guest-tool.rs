//! What the tests run inside guests: a static program, because it must run in any.
//!
//! ```text
//! guest-tool listen PORT          takes one vsock connection and sends back what comes
//! guest-tool connect PORT BYTES   sends BYTES to the host, and checks that they come back
//! guest-tool                      as init: writes records to /dev/vdb until it is killed
//! ```
#![allow(clippy::print_stdout, reason = "the console is what the tests read")]

use std::{
    env,
    error::Error,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    net::Shutdown,
    thread,
};

use rustix::mount::{MountFlags, mount};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockListener, VsockStream};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["listen", port] => listen(port.parse()?),
        ["connect", port, bytes] => connect(port.parse()?, bytes.parse()?),
        // An init is given the words of the kernel's command line that the kernel does not know.
        _ => write_records(),
    }
}

fn listen(port: u32) -> Result<(), Box<dyn Error>> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port)?;
    println!("listening");
    let (mut stream, _) = listener.accept()?;
    let count = io::copy(&mut stream.try_clone()?, &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    println!("sent back {count}");
    Ok(())
}

fn connect(port: u32, bytes: usize) -> Result<(), Box<dyn Error>> {
    let mut stream = VsockStream::connect_with_cid_port(VMADDR_CID_HOST, port)?;
    let sent: Vec<u8> = (0..=250u8).flat_map(|byte| [byte; 7]).cycle().take(bytes).collect();
    let mut writer = stream.try_clone()?;
    let came = thread::scope(|scope| {
        let written = scope.spawn(|| {
            writer.write_all(&sent)?;
            // The other direction goes on.
            writer.shutdown(Shutdown::Write)
        });
        let mut came = Vec::new();
        let read = stream.read_to_end(&mut came).map(|_| came);
        match written.join() {
            Ok(written) => written.and(read),
            Err(_) => Err(io::Error::other("the writing thread panicked")),
        }
    })?;
    if came != sent {
        return Err(format!("{} bytes came back of {bytes}, or others", came.len()).into());
    }
    println!("all came back");
    Ok(())
}

/// Announces each record once it must survive whatever happens. Beside it files come and go, so that the
/// file system's journal is never at rest.
fn write_records() -> Result<(), Box<dyn Error>> {
    mount("/dev/vdb", "/data", c"ext4", MountFlags::empty(), None)?;
    thread::spawn(|| {
        if let Err(error) = stir() {
            println!("stirring failed: {error}")
        }
    });
    let mut log = OpenOptions::new().append(true).create(true).open("/data/log")?;
    let first = log.metadata()?.len() / RECORD_BYTES as u64;
    for number in first.. {
        let mut record = number.to_le_bytes().repeat(RECORD_BYTES / 8);
        record.truncate(RECORD_BYTES);
        log.write_all(&record)?;
        log.sync_data()?;
        println!("synced {number}.");
    }
    Ok(())
}

fn stir() -> io::Result<()> {
    for round in 0usize.. {
        let name = format!("/data/stirred.{}", round % 16);
        let mut file = File::create(format!("{name}.new"))?;
        file.write_all(&vec![0xaa; 1000 + round % 13 * 5000])?;
        fs::rename(format!("{name}.new"), &name)?;
        if round % 3 == 0 {
            fs::remove_file(&name)?;
        }
    }
    Ok(())
}

/// Not a divisor of a block: records lie across blocks.
const RECORD_BYTES: usize = 1000;
