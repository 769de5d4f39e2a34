"""Ways of a snapshot's memory into a machine: mapped, by userfaultfd, and with a working set ahead; out of a full snapshot,
and out of a difference; with the files in the page cache, and not. How long until a tiny guest has printed a byte, and
until it has touched its working set."""

import os
import sys
import tempfile
import time

from monitors import TINY_LINE, WORKED_LINE, Process, elf, working_guest, write
from tables import median, ratio, table

USED_MIB = 64
# Of the pages that the guest has used it touches so many again, one of every few.
PAGES = 4096
APART = 4
WAYS = ("mapped", "userfaultfd", "userfaultfd, prefetch")
WARM_UP = 1


def run(monitor, folder, rounds):
    # A tmpfs is nothing but page cache.
    with tempfile.TemporaryDirectory(prefix="ec2vmm-bench.", dir="/var/tmp") as disk:
        chains = take(monitor, disk)
        results = {}
        for turn in range(WARM_UP + rounds):
            for what, files in chains.items():
                for cache in ("warm", "cold"):
                    for way in WAYS:
                        took = restore(monitor, disk, files, way, cache == "cold")
                        if turn >= WARM_UP:
                            results.setdefault((what, cache), {}).setdefault(way, []).append(took)
            print(f"bench: working set, round {turn} of {rounds}", file=sys.stderr, flush=True)
    report(results)


def take(monitor, folder):
    """Snapshots and working sets: names of files by what they are."""
    guest = write(folder, "ec2vmm.elf.used", elf(working_guest(USED_MIB, PAGES, APART)))
    names = {name: os.path.join(folder, name) for name in ("empty", "difference", "full")}
    files = {name: (f"{path}.state", f"{path}.memory") for name, path in names.items()}
    machine = monitor.asked(folder, guest)
    process = Process(machine.launch)
    process.forget_descriptors()
    machine.snapshot(*files["empty"], track=True)
    process.say(b"")
    process.wait_for(TINY_LINE)
    machine.snapshot(*files["difference"], kind="difference")
    machine.snapshot(*files["full"])
    process.kill()
    chains = {
        "a full snapshot": (files["full"][0], files["full"][1]),
        "a full one and a difference": (files["difference"][0], files["empty"][1], files["difference"][1]),
    }
    for number, (what, chain) in enumerate(chains.items()):
        record = os.path.join(folder, f"working-set{number}")
        with open(record, "wb", buffering=0) as file:
            fd = os.dup(file.fileno())
            machine = monitor.restored(folder, *chain, userfaultfd=True, record=fd, control=True)
            process = Process(machine.launch)
            process.forget_descriptors()
            process.say(b"")
            process.wait_for(WORKED_LINE)
            machine.record()
            process.kill()
        chains[what] = (chain, record)
    os.sync()
    return chains


def restore(monitor, folder, files, way, cold):
    """Nanoseconds from the start to the byte, to the whole working set, and the CPU time to there."""
    chain, record = files
    for path in (*chain, record):
        with open(path, "rb") as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while file.read(1 << 20):
                    pass
    prefetch = record if "prefetch" in way else None
    machine = monitor.restored(folder, *chain, userfaultfd=way != "mapped", prefetch=prefetch)
    process = Process(machine.launch)
    process.say(b"")
    shown = process.read_until(TINY_LINE)
    at_byte = time.monotonic_ns()
    # It may have come with the other.
    if WORKED_LINE not in shown:
        process.read_until(WORKED_LINE)
    at_all, cpu = time.monotonic_ns(), process.cpu_ns()
    process.kill()
    return at_byte - process.started, at_all - process.started, cpu


def report(results):
    print(f"A guest that has used {USED_MIB} MiB and touches {PAGES} pages of them again, one of every {APART}. Medians, and the least in brackets.\n")
    what = ["to a byte printed, ms", "to the working set touched, ms", "CPU to there, ms"]
    rows = []
    for (chain, cache), ways in results.items():
        base = None
        for way, runs in ways.items():
            columns = list(zip(*runs))
            here = [median(column) for column in columns]
            base = base or here
            cells = [f"{mid / 1e6:.1f} ({min(column) / 1e6:.1f})" for mid, column in zip(here, columns)]
            rows.append([f"{chain}, {cache}: {way}", *cells, *(ratio(mid, mapped) for mid, mapped in zip(here, base))])
    table(["from, page cache: way", *what, *(f"{column.split(',')[0]}, to mapped" for column in what)], rows)
