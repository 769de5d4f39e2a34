"""The machine monitors that are compared: how each is started on a kernel, and on a tiny guest."""

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from dataclasses import dataclass, field

MEMORY_MIB = 256
LINE = b"bench: user space reached"
TINY_LINE = b"!"
WORKED_LINE = b"?"
# Between two bytes of a guest that prints again and again.
PAUSE_STEPS = 512
SOCKET_THERE_S = 10
# So long no job and no boot is silent, on a counted lab either; a guest that has panicked is.
SILENT_S = 180
NUMBERS = itertools.count()
# Every descriptor beyond the standard ones that a machine process is given lies here or above.
FIRST_FD = 10
USERFAULTFD = "/dev/userfaultfd"
# User and group of our machine processes.
MACHINE_ID = 1_879_048_192


class Failed(Exception):
    """A monitor that did not do what it was started for."""


@dataclass
class Launch:
    """A command line, and what the process inherits."""

    argv: list
    stdin: bytes = b""
    # Number in the process -> path of a file that is opened for it, or a descriptor that is open here.
    files: dict = field(default_factory=dict)
    # Numbers in the process of its end of the console; 1 is standard output.
    console: tuple = (1,)
    # Number in the process of its end of the stream of events, if it has one.
    events: int = 0
    # Exit status of a good end.
    status: int = 0
    # It is the first process of a pid namespace.
    apart: bool = False


class Process:
    """A started monitor. Console and events are sockets, so that nobody waits for a disk."""

    def __init__(self, launch):
        self.launch = launch
        self.console, inside = socket.socketpair()
        stdin = memory_file(launch.stdin)
        self.stderr = memory_file(b"")
        actions = [
            (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_DUP2, self.stderr, 1),
            (os.POSIX_SPAWN_DUP2, self.stderr, 2),
            *((os.POSIX_SPAWN_DUP2, inside.fileno(), number) for number in launch.console),
        ]
        opened = [stdin]
        self.events = None
        if launch.events:
            self.events, events_inside = socket.socketpair()
            actions.append((os.POSIX_SPAWN_DUP2, events_inside.fileno(), launch.events))
        for number, file in launch.files.items():
            if isinstance(file, str):
                flags = os.O_RDWR if file in ("/dev/kvm", USERFAULTFD) else os.O_RDONLY
                opened.append(os.open(file, flags | os.O_CLOEXEC))
                file = opened[-1]
            actions.append((os.POSIX_SPAWN_DUP2, file, number))
        # The descriptors here must not be overwritten while they are being handed over.
        assert max(opened + [inside.fileno(), self.stderr]) < FIRST_FD + 90
        self.started = time.monotonic_ns()
        with born_apart() if launch.apart else contextlib.nullcontext():
            self.pid = os.posix_spawn(launch.argv[0], launch.argv, os.environ, file_actions=actions)
        inside.close()
        if self.events:
            events_inside.close()
        for fd in opened:
            os.close(fd)

    def forget_descriptors(self):
        """Closes here what was open here and was handed over."""
        for file in self.launch.files.values():
            if isinstance(file, int):
                os.close(file)

    def wait_for(self, line):
        """Nanoseconds from the start until the console has shown the line."""
        self.read_until(line)
        return time.monotonic_ns() - self.started

    def read_until(self, line):
        """What the console shows until it has shown the line."""
        shown = b""
        self.console.settimeout(SILENT_S)
        while line not in shown:
            try:
                piece = self.console.recv(65536)
            except TimeoutError:
                raise Failed(f"{self.launch.argv[0]} was silent for {SILENT_S} s: {self.words(shown)}") from None
            if not piece:
                raise Failed(f"{self.launch.argv[0]} ended early: {self.words(shown)}")
            shown += piece
        self.console.settimeout(None)
        return shown

    def say(self, line):
        """Types a line on the console."""
        self.console.sendall(line + b"\n")

    def cpu_ns(self):
        """CPU time of all its threads so far, by its own clock (clock_getcpuclockid(3))."""
        return time.clock_gettime_ns(~self.pid << 3 | 2)

    def end(self):
        """Waits for the end. Nanoseconds from start to end, and the CPU time in between."""
        rest = b""
        while piece := self.console.recv(65536):
            rest += piece
        _, status, usage = os.wait4(self.pid, 0)
        elapsed = time.monotonic_ns() - self.started
        self.pid = None
        told = read_all(self.events) if self.events else b""
        if os.waitstatus_to_exitcode(status) != self.launch.status:
            raise Failed(f"{self.launch.argv[0]} ended with {status:#x}: {self.words(rest)}")
        self.close()
        return {
            "wall_ns": elapsed,
            "cpu_ns": round((usage.ru_utime + usage.ru_stime) * 1e9),
            "faults": usage.ru_minflt,
            "events": [json.loads(line) for line in told.splitlines()],
        }

    def kill(self):
        os.kill(self.pid, 9)
        os.wait4(self.pid, 0)
        self.close()

    def words(self, shown):
        os.lseek(self.stderr, 0, os.SEEK_SET)
        return (shown + os.read(self.stderr, 4096)).decode(errors="replace")[-2000:]

    def close(self):
        self.console.close()
        os.close(self.stderr)
        if self.events:
            self.events.close()


def system(name, *arguments):
    if ctypes.CDLL(None, use_errno=True)[name](*arguments) != 0:
        raise Failed(f"{name}: {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def born_apart():
    """Processes that are started meanwhile are in a pid namespace of their own, of which the first is the first."""
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        system("unshare", CLONE_NEWPID)
        yield
    finally:
        system("setns", ours, CLONE_NEWPID)
        os.close(ours)


def empty_network():
    """A path to a network namespace with nothing in it, as the daemon has one for all machines."""
    opened = []

    def make():
        system("unshare", CLONE_NEWNET)
        opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if not opened:
        raise Failed("no network namespace can be made: are you root?")
    return f"/proc/self/fd/{opened[0]}"


CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000


class Ec2vmm:
    """Ours: the machine process itself, as the daemon starts it; in weaker sandboxes to compare with."""

    name = "ec2vmm"
    refuses = ()
    end = ""

    def __init__(self, binary, sandbox="full"):
        self.binary = binary
        self.sandbox = sandbox
        self.network = empty_network() if sandbox == "full" else None
        if sandbox != "full":
            self.name = f"ec2vmm, {sandbox}"

    def kernel(self, kernel, initrd, cmdline, disk=None, tap=None):
        boot = {"from": "files", "kernel": FIRST_FD + 101, "initrd": FIRST_FD + 102, "cmdline": cmdline}
        files = {FIRST_FD + 101: kernel, FIRST_FD + 102: initrd}
        disks, nets = [], []
        if disk:
            files[FIRST_FD + 103] = disk.open()
            layer = {"fd": FIRST_FD + 103, "format": "raw"}
            disks.append({"layers": [layer], "read_only": False, "serial": "bench"})
        if tap:
            files[FIRST_FD + 104] = tap.open()
            nets.append({"taps": [FIRST_FD + 104], "mac": list(bytes.fromhex(tap.mac.replace(":", "")))})
        return self.machine(boot, files, disks, nets)

    def disk(self, image):
        """Booted from a raw disk image, which is only read."""
        layer = {"fd": FIRST_FD + 101, "format": "raw"}
        disk = {"layers": [layer], "read_only": True, "serial": "bench"}
        return self.machine({"from": "disk", "append": "ro"}, {FIRST_FD + 101: image}, [disk])

    def tiny(self, folder, ends):
        guest = write(folder, f"ec2vmm.elf.{ends}", elf(tiny_guest(0x600, 0x34, ends)))
        boot = {"from": "files", "kernel": FIRST_FD + 101, "initrd": None, "cmdline": ""}
        return self.machine(boot, {FIRST_FD + 101: guest})

    def used(self, folder, mib):
        """A machine with a tiny guest that has used some memory, of which snapshots are taken."""
        guest = write(folder, "ec2vmm.elf.used", elf(used_guest(mib)))
        return self.asked(folder, guest)

    def asked(self, folder, guest):
        """A machine with this tiny guest, and a control socket."""
        boot = {"from": "files", "kernel": FIRST_FD + 101, "initrd": None, "cmdline": ""}
        address, control = self.listener(folder)
        launch = self.machine(boot, {FIRST_FD + 101: guest, **control}, control=next(iter(control)))
        return Asked(launch, address, self.snapshot, None)

    def listener(self, folder):
        """A control socket: its address, and the descriptor for the machine process."""
        address = os.path.join(folder, f"control.{next(NUMBERS)}")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            return address, {FIRST_FD + 106: os.dup(listener.fileno())}

    def snapshot(self, address, state, memory, **request):
        files = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600) for path in (state, memory)]
        ask(address, "POST", "/machine/snapshot", request, files)
        for fd in files:
            os.close(fd)

    def restored(self, folder, state, *memory, userfaultfd=False, prefetch=None, record=None, control=False):
        """A machine that goes on from a snapshot; `record`: a descriptor to write its working set by."""
        guest = os.path.join(folder, "ec2vmm.elf.used")
        boot = {"from": "files", "kernel": FIRST_FD + 101, "initrd": None, "cmdline": ""}
        memory = {FIRST_FD + 120 + number: path for number, path in enumerate(memory)}
        files = {FIRST_FD + 101: guest, FIRST_FD + 102: state, **memory}
        restore = {"state": FIRST_FD + 102, "memory": list(memory)}
        if userfaultfd:
            given = {FIRST_FD + 113: USERFAULTFD, FIRST_FD + 114: prefetch, FIRST_FD + 115: record}
            given = {number: file for number, file in given.items() if file is not None}
            files |= given
            names = zip(("device", "prefetch", "record"), range(FIRST_FD + 113, FIRST_FD + 116))
            backend = {name: number if number in given else None for name, number in names}
            restore["backend"] = {"kind": "userfaultfd", **backend}
        address, listener = None, {}
        if control:
            address, listener = self.listener(folder)
        launch = self.machine(boot, {**files, **listener}, control=next(iter(listener), None), restore=restore)
        return Asked(launch, address, None, None)

    def machine(self, boot, files, disks=(), nets=(), control=None, restore=None):
        kvm, console, events, network = FIRST_FD + 100, FIRST_FD + 110, FIRST_FD + 111, FIRST_FD + 112
        sandbox = {"kind": self.sandbox.removesuffix(" with a network of its own")}
        if sandbox["kind"] == "full":
            sandbox |= {"uid": MACHINE_ID, "gid": MACHINE_ID, "network": network if self.network else None}
        if self.network:
            files = {**files, network: self.network}
        identity = {
            "uuid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
            "manufacturer": "ec2vmm",
            "product": "bench",
            "asset_tag": None,
        }
        config = {
            "version": 1,
            "kvm": kvm,
            "sandbox": sandbox,
            "identity": identity,
            "cpus": 1,
            "memory_mib": MEMORY_MIB,
            "boot": boot,
            "disks": list(disks),
            "nets": list(nets),
            "vsock": None,
            "console": console,
            "control": control,
            **({"restore": restore} if restore else {}),
            "events": events,
            "lifeline": None,
        }
        return Launch([self.binary], json.dumps(config).encode(), {kvm: "/dev/kvm", **files}, (console,), events,
                      apart=sandbox["kind"] == "full")


class QemuMicrovm:
    """QEMU's machine for this purpose, with everything off that can be."""

    name = "QEMU microvm"
    refuses = ()
    end = ""
    machine = "microvm,accel=kvm,x-option-roms=off,auto-kernel-cmdline=off,pit=off,pic=off,rtc=off"
    tap_options = ""

    def __init__(self, binary):
        self.binary = binary

    def kernel(self, kernel, initrd, cmdline, disk=None, tap=None):
        boot = ["-kernel", kernel, "-initrd", initrd, "-append", cmdline]
        if not disk and not tap:
            return Launch(self.argv(*boot))
        devices, files = [], {}
        if disk:
            # As its documentation advises: a thread of its own for the device.
            devices += ["-object", "iothread,id=io", "-drive", f"if=none,id=disk,format=raw,aio=io_uring,file={disk.path}"]
            devices += ["-device", "virtio-blk-pci,drive=disk,iothread=io"]
        if tap:
            files[FIRST_FD + 104] = tap.open()
            devices += ["-netdev", f"tap,id=net,fd={FIRST_FD + 104}{self.tap_options}"]
            devices += ["-device", f"virtio-net-pci,netdev=net,mac={tap.mac},romfile="]
        return Launch(self.argv(*boot, *devices, machine=self.machine + ",pcie=on"), files=files, console=(0, 1))

    def tiny(self, folder, ends):
        # Its first instruction is the firmware's: the tiny guest takes the firmware's place.
        reset_vector = tiny_guest(0x501, 0, ends, bits=16)
        rom = bytes(0xFFF0) + reset_vector + bytes(16 - len(reset_vector))
        path = write(folder, f"qemu.rom.{ends}", rom)
        device = ["-device", "isa-debug-exit,iobase=0x501,iosize=1"]
        return Launch(self.argv("-bios", path, *device), status=1)

    def argv(self, *more, machine=None):
        common = ["-M", machine or self.machine, "-cpu", "host,arch-capabilities=off", "-smp", "1", "-m", str(MEMORY_MIB), "-nodefaults"]
        quiet = ["-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]
        return [self.binary, *common, *quiet, *more]


class QemuVhost(QemuMicrovm):
    """The same, with its interface served by the host's kernel."""

    name = "QEMU microvm, vhost"
    tap_options = ",vhost=on"


class Firecracker:
    """Firecracker, configured by a file. It has no power-off: its guests ask for a reset."""

    name = "Firecracker"
    refuses = ("bzImage",)
    end = "reboot=k -- reset"

    def __init__(self, binary):
        self.binary = binary

    def kernel(self, kernel, initrd, cmdline, disk=None, tap=None):
        boot = {"kernel_image_path": kernel, "initrd_path": initrd, "boot_args": cmdline}
        if not disk and not tap:
            return self.machine(boot)
        config = self.config(boot)
        if disk:
            drive = {"drive_id": "disk", "path_on_host": disk.path, "is_root_device": False, "is_read_only": False}
            config["drives"].append(drive | {"io_engine": "Async"})
        if tap:
            config["network-interfaces"] = [{"iface_id": "net", "host_dev_name": tap.name, "guest_mac": tap.mac}]
        # Standard input is the console: the configuration comes by another way.
        file = memory_file(json.dumps(config).encode())
        argv = [*self.argv(f"/proc/self/fd/{FIRST_FD + 105}"), "--enable-pci"]
        return Launch(argv, files={FIRST_FD + 105: file}, console=(0, 1))

    def tiny(self, folder, ends):
        guest = write(folder, f"firecracker.elf.{ends}", elf(tiny_guest(0x64, 0xFE, ends)))
        return self.machine({"kernel_image_path": guest, "boot_args": ""})

    def machine(self, boot):
        return Launch(self.argv("/dev/stdin"), json.dumps(self.config(boot)).encode())

    def config(self, boot):
        return {"boot-source": boot, "machine-config": {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB}, "drives": []}

    def used(self, folder, mib):
        guest = write(folder, "firecracker.elf.used", elf(used_guest(mib)))
        address = os.path.join(folder, f"api.{next(NUMBERS)}")
        config = self.config({"kernel_image_path": guest, "boot_args": ""})
        argv = [self.binary, "--api-sock", address, "--level", "Error", "--config-file", "/dev/stdin"]
        return Asked(Launch(argv, json.dumps(config).encode()), address, self.snapshot, None)

    def snapshot(self, address, state, memory):
        ask(address, "PATCH", "/vm", {"state": "Paused"})
        files = {"snapshot_type": "Full", "snapshot_path": state, "mem_file_path": memory}
        ask(address, "PUT", "/snapshot/create", files)

    def restored(self, folder, state, memory):
        address = os.path.join(folder, f"api.{next(NUMBERS)}")
        launch = Launch([self.binary, "--api-sock", address, "--level", "Error"])
        backend = {"backend_type": "File", "backend_path": memory}
        load = {"snapshot_path": state, "mem_backend": backend, "resume_vm": True}
        return Asked(launch, address, None, load)

    def argv(self, config):
        return [self.binary, "--no-api", "--level", "Error", "--config-file", config]


class JailedFirecracker(Firecracker):
    """The same, shut in by its jailer: a root, a user, a mount and an empty network namespace of its own. Built for
    another C library than its filters of system calls are, it has none of these."""

    name = "Firecracker, jailed"

    def __init__(self, binary, jailer):
        super().__init__(binary)
        self.jailer = jailer
        self.network = empty_network()
        # Its devices are made in there, which not every file system allows.
        self.base = tempfile.mkdtemp(prefix="ec2vmm-bench-jail.")
        system("mount", b"tmpfs", self.base.encode(), b"tmpfs", 0, None)
        atexit.register(self.remove)

    def remove(self):
        system("umount2", self.base.encode(), 0)
        os.rmdir(self.base)

    def machine(self, boot):
        name = f"bench-{next(NUMBERS)}"
        root = os.path.join(self.base, os.path.basename(self.binary), name, "root")
        os.makedirs(root)
        inside = {}
        for key, value in boot.items():
            inside[key] = self.link(value, root) if key.endswith("_path") else value
        write(root, "config.json", json.dumps(self.config(inside)).encode())
        network = self.network.replace("self", str(os.getpid()), 1)
        words = ["--id", name, "--exec-file", self.binary, "--uid", str(MACHINE_ID), "--gid", str(MACHINE_ID)]
        words += ["--cgroup-version", "2", "--chroot-base-dir", self.base, "--netns", network]
        return Launch([self.jailer, *words, "--", *self.argv("/config.json")[1:]])

    def link(self, path, root):
        """The file as the jail has it: it is copied to where all jails are once."""
        name = os.path.basename(path)
        copy = os.path.join(self.base, name)
        if not os.path.exists(copy):
            shutil.copyfile(path, copy)
        os.link(copy, os.path.join(root, name))
        return f"/{name}"


class Asked:
    """A machine to be started that is asked for things by a socket."""

    def __init__(self, launch, address, take, load):
        self.launch, self.address, self.take, self.load = launch, address, take, load

    def snapshot(self, state, memory, **request):
        self.take(self.address, state, memory, **request)

    def record(self):
        """Has it write its working set down."""
        ask(self.address, "PUT", "/machine/working-set", None)

    def go_on(self):
        if self.load:
            ask(self.address, "PUT", "/snapshot/load", self.load)


def ask(address, method, path, body, descriptors=()):
    """A request by HTTP to a Unix socket, which may be there in a moment only; it must be granted."""
    deadline = time.monotonic() + SOCKET_THERE_S
    with socket.socket(socket.AF_UNIX) as stream:
        while True:
            try:
                stream.connect(address)
                break
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if time.monotonic() > deadline:
                    raise Failed(f"{address}: {error}") from error
                time.sleep(0.0005)
        body = "" if body is None else json.dumps(body)
        head = f"{method} {path} HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        socket.send_fds(stream, [(head + body).encode()], list(descriptors))
        answer = stream.recv(65536).decode()
    if not answer.startswith("HTTP/1.1 2"):
        raise Failed(f"{method} {path}: {answer}")


def used_guest(mib):
    """Writes to each page of `mib` MiB from 2 MiB on, then prints TINY_LINE again and again, with a pause."""
    code = b"\xbf" + struct.pack("<I", 2 << 20) + b"\xb9" + struct.pack("<I", mib << 8)
    # 1: mov [rdi], edi; add edi, 4096; dec ecx; jnz 1
    code += b"\x89\x3f\x81\xc7\x00\x10\x00\x00\xff\xc9\x75\xf4"
    # mov dx, 0x3f8; 2: mov al, byte; out dx, al; mov ecx, PAUSE; 3: dec ecx; jnz 3; jmp 2
    code += b"\x66\xba\xf8\x03" + b"\xb0" + TINY_LINE + b"\xee\xb9" + struct.pack("<I", PAUSE_STEPS) + b"\xff\xc9\x75\xfc\xeb\xf2"
    return code


def working_guest(mib, pages, apart):
    """For the first byte that it reads, writes to each page of `mib` MiB from 2 MiB on, and prints TINY_LINE. For each
    one more prints TINY_LINE, reads one of every `apart` pages there, so many, and prints WORKED_LINE."""
    # 1: mov dx, 0x3fd; 2: in al, dx; test al, 1; jz 1; mov dx, 0x3f8; in al, dx
    wait = b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7\x66\xba\xf8\x03\xec"
    # mov edi, 2 MiB; mov ecx, N; 3: mov [rdi], edi; add edi, 4096; dec ecx; jnz 3; mov al, byte; out dx, al
    fill = b"\xbf" + struct.pack("<I", 2 << 20) + b"\xb9" + struct.pack("<I", mib << 8)
    fill += b"\x89\x3f\x81\xc7\x00\x10\x00\x00\xff\xc9\x75\xf4" + b"\xb0" + TINY_LINE + b"\xee"
    # mov al, byte; out dx, al; mov edi, 2 MiB; mov ecx, N; 4: add eax, [rdi]; add edi, N; dec ecx; jnz 4; ...
    work = b"\xb0" + TINY_LINE + b"\xee" + b"\xbf" + struct.pack("<I", 2 << 20) + b"\xb9" + struct.pack("<I", pages)
    work += b"\x03\x07\x81\xc7" + struct.pack("<I", apart << 12) + b"\xff\xc9\x75\xf4" + b"\xb0" + WORKED_LINE + b"\xee"
    # jmp to the second wait
    back = len(wait) + len(work) + 2
    return wait + fill + wait + work + b"\xeb" + struct.pack("<b", -back)


def tiny_guest(port, value, ends, bits=64):
    """One `out` and `hlt` for ever: it ends the machine by writing `value` to `port`, or, if it is not
    to end it, prints TINY_LINE."""
    if not ends:
        port, value = 0x3F8, TINY_LINE[0]
    prefix = b"" if bits == 16 else b"\x66"
    return prefix + b"\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee\xf4\xeb\xfd"


def elf(code, address=0x100000):
    """A 64-bit ELF file that loads `code` at 1 MiB and begins there."""
    headers = 64 + 56
    file = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, 62, 1)
    file += struct.pack("<QQQIHHHHHH", address, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    file += struct.pack("<IIQQQQQQ", 1, 5, headers, address, address, len(code), len(code), 0x1000)
    return file + code


def memory_file(content):
    fd = os.memfd_create("bench")
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read_all(stream):
    told = b""
    while piece := stream.recv(65536):
        told += piece
    return told


def write(folder, name, content):
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(content)
    return path
