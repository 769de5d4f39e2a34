"""Snapshots of a guest that prints a byte again and again: how long one takes, how long until a machine that goes on
from it has printed, and until twenty have that were started at once. On any /dev/kvm."""

import os
import sys
import threading
import time

import working_set
from monitors import MEMORY_MIB, TINY_LINE, Process
from tables import median, ratio, table

CLONES = 20
WARM_UP = 1
# Memory that the guest has used, so that there is something to write and to map.
USED_MIB = 64


def run(monitors, folder, rounds):
    results = {monitor.name: [] for monitor in monitors}
    for turn in range(WARM_UP + rounds):
        for number, monitor in enumerate(monitors):
            files = [os.path.join(folder, f"{what}{number}") for what in ("state", "memory")]
            taken_ns, sizes = take(monitor, folder, files)
            one_ns, cpu_ns = restore(monitor, folder, files, 1)
            all_ns, _ = restore(monitor, folder, files, CLONES)
            if turn >= WARM_UP:
                results[monitor.name].append((taken_ns, one_ns, cpu_ns, all_ns, sizes))
        print(f"bench: round {turn} of {rounds}", file=sys.stderr, flush=True)
    report(results)
    # The others have no such thing, or need a second program for it.
    working_set.run(monitors[0], folder, rounds)


def take(monitor, folder, files):
    """Nanoseconds from the request to the answer, and the bytes on the disk."""
    machine = monitor.used(folder, USED_MIB)
    process = Process(machine.launch)
    process.forget_descriptors()
    process.wait_for(TINY_LINE)
    started = time.monotonic_ns()
    machine.snapshot(*files)
    taken = time.monotonic_ns() - started
    process.kill()
    return taken, sum(os.stat(file).st_blocks * 512 for file in files)


def restore(monitor, folder, files, count):
    """Nanoseconds from the first start until all of them have printed, and the CPU time of the last until then."""
    processes, told = [], []
    lock = threading.Lock()

    def one():
        machine = monitor.restored(folder, *files)
        process = Process(machine.launch)
        with lock:
            processes.append(process)
        machine.go_on()
        process.wait_for(TINY_LINE)
        told.append((time.monotonic_ns(), process.cpu_ns()))

    started = time.monotonic_ns()
    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.kill()
    assert len(told) == count
    last_ns, cpu_ns = max(told)
    return last_ns - started, cpu_ns


def report(results):
    print(f"A guest of {MEMORY_MIB} MiB that has used {USED_MIB}. Medians, and the least in brackets.\n")
    what = ["create, ms", "restore to a byte printed, ms", "its CPU, ms", f"{CLONES} at once until all have printed, ms"]
    rows, base = [], None
    for name, runs in results.items():
        columns = [[run[index] for run in runs] for index in range(len(what))]
        here = [median(column) for column in columns]
        base = base or here
        cells = [f"{mid / 1e6:.1f} ({min(column) / 1e6:.1f})" for mid, column in zip(here, columns)]
        rows.append([name, *cells, f"{runs[-1][4] / (1 << 20):.1f}", *(ratio(mid, ours) for mid, ours in zip(here, base))])
    table(["monitor", *what, "files, MiB", *(f"{column.split(',')[0]}, ratio" for column in what)], rows)
