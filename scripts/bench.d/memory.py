"""Memory beyond the guest's: private pages of the machine process, but for those of the guest's RAM,
while a guest is up and rests, and the most while its disk is busy (Linux, Documentation/filesystems/proc.rst,
"smaps")."""

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from block import DISK_MIB, FIO
from load import Disk, Guest
from monitors import LINE, MEMORY_MIB, Failed, Process
from tables import ratio, table

CMDLINE = "console=ttyS0 quiet panic=-1"
READY = b"minimal ready"
LOAD = "--rw=randrw --bs=64k --iodepth=32 --runtime=3"
SAMPLE_S = 0.2


def run(monitors, kernel, initrd, image, load, folder):
    """`load` is the initrd of guests that load their devices, `folder` a place for their disks."""
    results = {}
    for monitor in monitors:
        cmdline = f"{CMDLINE} {monitor.end or '--'} stay".replace(" reset ", " ")
        results[monitor.name] = once(monitor.kernel(kernel, initrd, cmdline), LINE)
    if image:
        results[f"{monitors[0].name}, booted from a disk"] = once(monitors[0].disk(image), READY)
    for number, monitor in enumerate(monitors):
        disk = Disk(folder, f"disk{number}", DISK_MIB)
        try:
            results[f"{monitor.name}, its disk busy"] = busy(monitor, kernel, load, disk)
        except Failed as failure:
            # The others are worth knowing all the same.
            print(f"bench: no figure of a busy disk: {failure}", file=sys.stderr, flush=True)
    rows, base = [], None
    for name, (beyond, dirty, shared, guest, largest) in results.items():
        base = base or beyond
        top = ", ".join(f"{what} {size >> 10} KiB" for what, size in largest)
        rows.append([name, mib(beyond), mib(dirty), mib(shared), mib(guest), ratio(beyond, base), top])
    head = ["monitor", "private, not guest's, MiB", "of it dirty", "shared (files), MiB", "guest's RAM in use, MiB", "ratio"]
    table([*head, "largest"], rows)


def mib(size):
    return f"{size / (1 << 20):.2f}"


def once(launch, line):
    print(f"bench: {launch.argv[0]}", file=sys.stderr, flush=True)
    process = Process(launch)
    try:
        process.wait_for(line)
        settle(process.pid)
        return account(process.pid)
    finally:
        process.kill()


def busy(monitor, kernel, initrd, disk):
    """The most that there was at one time. The work must end well: else the disk was not busy."""
    guest = Guest(monitor, kernel, initrd, disk=disk)
    with ThreadPoolExecutor(max_workers=1) as threads:
        work = threads.submit(guest.run, f"{FIO} {LOAD} >/tmp/out")
        most = account(guest.process.pid)
        while not work.done():
            most = max(most, account(guest.process.pid), key=lambda now: now[0])
            time.sleep(SAMPLE_S)
        guest.end()
        work.result()
    return most


def settle(pid):
    """Until the process rests: what it does after its guest is up counts too."""
    before = None
    while (now := cpu_ticks(pid)) != before:
        before = now
        time.sleep(0.5)


def cpu_ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(") ", 1)[1].split()[11:13]


def account(pid):
    """Bytes: private beyond the guest's; those of them that are dirty (clean ones are pages of files that
    nobody else happens to map; pages of a tmpfs are always dirty); shared; the guest's; and the largest private mappings."""
    with open(f"/proc/{pid}/smaps") as file:
        mappings = MAPPING.split(file.read())[1:]
    private = {}
    dirty = shared = guest = 0
    for head, body in zip(mappings[::2], mappings[1::2]):
        sizes = {name: int(size) << 10 for name, size in SIZE.findall(body)}
        own = sizes["Private_Clean"] + sizes["Private_Dirty"]
        name = head.split(maxsplit=5)[5:] or ["anonymous"]
        # Guest memory is one mapping, not of a file, at least as large as was asked for.
        if sizes["Size"] >= MEMORY_MIB << 20 and not name[0].startswith("/usr"):
            guest += own
            continue
        private[name[0]] = private.get(name[0], 0) + own
        dirty += sizes["Private_Dirty"]
        shared += sizes["Rss"] - own
    largest = sorted(private.items(), key=lambda item: -item[1])[:4]
    return sum(private.values()), dirty, shared, guest, [(name.rsplit("/")[-1], size) for name, size in largest]


MAPPING = re.compile(r"^([0-9a-f]+-[0-9a-f]+ .*)$", re.MULTILINE)
SIZE = re.compile(r"^(\w+): +(\d+) kB$", re.MULTILINE)
