"""Guests that load their devices: they do what they are told on the serial port (images/load), and how much CPU
time their monitor takes meanwhile is measured."""

import fcntl
import os
import struct
import subprocess
import sys

from monitors import Failed, Process

CMDLINE = "console=ttyS0 quiet panic=-1"
READY = b"load: ready"
ENDED = b"load: ended "
# /usr/include/linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


class Disk:
    """A file full of bytes that are not zero, so that every block of it is there."""

    def __init__(self, folder, name, mib):
        self.path = os.path.join(folder, name)
        with open(self.path, "wb") as file:
            for _ in range(mib):
                file.write(os.urandom(1 << 20))

    def open(self):
        return os.open(self.path, os.O_RDWR | os.O_CLOEXEC)


class Tap:
    """A tap `number` of this network namespace. The host is .1 of its subnet, the guest .2."""

    def __init__(self, number):
        self.name = f"bench{number}"
        self.mac = f"06:00:0a:09:{number:02x}:02"
        self.host, self.guest = f"10.9.{number}.1", f"10.9.{number}.2"
        ip("tuntap", "add", "dev", self.name, "mode", "tap", "vnet_hdr")
        ip("address", "add", f"{self.host}/24", "dev", self.name)
        ip("link", "set", self.name, "up")

    def open(self):
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        request = struct.pack("16sH22x", self.name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(fd, TUNSETIFF, request)
        return fd


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Guest:
    """A running guest of a monitor."""

    def __init__(self, monitor, kernel, initrd, disk=None, tap=None):
        print(f"bench: {monitor.name}: boots", file=sys.stderr, flush=True)
        self.name = monitor.name
        self.tap = tap
        launch = monitor.kernel(kernel, initrd, f"{CMDLINE} reboot=k", disk, tap)
        self.process = Process(launch)
        self.process.forget_descriptors()
        self.process.read_until(READY)
        if tap:
            self.run(f"ifconfig eth0 {tap.guest} up")

    def run(self, command):
        """What the command prints; it must end well."""
        self.process.say(command.encode())
        shown = self.process.read_until(ENDED)
        while b"\n" not in shown.split(ENDED, 1)[1]:
            shown += self.process.read_until(b"\n")
        said, status = shown.split(ENDED, 1)
        if int(status) != 0:
            raise Failed(f"{self.name}: {command}: status {int(status)}: {said.decode(errors='replace')}")
        return said.decode(errors="replace").replace("\r", "")

    def measured(self, command):
        """What the command has written to `/tmp/out`, and the monitor's CPU time while it ran, ns. Its output is
        fetched when the time is taken: the serial port is slow."""
        before = self.process.cpu_ns()
        self.run(f"{command} >/tmp/out 2>/tmp/err || {{ cat /tmp/out /tmp/err; false; }}")
        taken = self.process.cpu_ns() - before
        return self.run("cat /tmp/out"), taken

    def end(self):
        self.process.kill()
