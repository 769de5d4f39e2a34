"""What a disk does: fio in the guest, on a raw file that lies in memory on the host, one monitor's job after the
other's."""

import sys

from load import Disk, Guest
from tables import median, ratio, spread, table

DISK_MIB = 128
JOBS = {
    "4k random read, 1 at once": "--rw=randread --bs=4k --iodepth=1",
    "4k random read, 32 at once": "--rw=randread --bs=4k --iodepth=32",
    "4k random write, 1 at once": "--rw=randwrite --bs=4k --iodepth=1",
    "4k random write, 32 at once": "--rw=randwrite --bs=4k --iodepth=32",
    "128k sequential read, 8 at once": "--rw=read --bs=128k --iodepth=8",
    "128k sequential write, 8 at once": "--rw=write --bs=128k --iodepth=8",
}
FIO = f"fio --name=job --filename=/dev/vda --ioengine=libaio --direct=1 --time_based --minimal --randrepeat=1"
# fio's terse output, version 3 (fio's HOWTO, "Terse output"): errors, then I/O in KiB and I/O per second of reads, of writes.
ERROR, READ_KIB, READ_IOPS, WRITE_KIB, WRITE_IOPS = 4, 5, 7, 46, 48


def run(monitors, kernel, initrd, folder, rounds, seconds):
    guests = [
        Guest(monitor, kernel, initrd, disk=Disk(folder, f"disk{number}", DISK_MIB))
        for number, monitor in enumerate(monitors)
    ]
    results = {}
    for turn in range(rounds):
        for job, options in JOBS.items():
            for guest in guests:
                results.setdefault(job, {}).setdefault(guest.name, []).append(once(guest, f"{options} --runtime={seconds}"))
        print(f"bench: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    for guest in guests:
        guest.end()
    report(results, seconds)


def once(guest, options):
    """I/O per second, and the monitor's CPU time for each, the guest's work included, ns."""
    said, cpu_ns = guest.measured(f"{FIO} {options}")
    fields = next(line for line in said.splitlines() if line.startswith("3;")).split(";")
    assert fields[ERROR] == "0", said
    iops = int(fields[READ_IOPS]) + int(fields[WRITE_IOPS])
    block_kib = 128 if "128k" in options else 4
    count = (int(fields[READ_KIB]) + int(fields[WRITE_KIB])) / block_kib
    return iops, cpu_ns / count


def report(results, seconds):
    print(f"Medians of {seconds} s a job; ± is the largest distance of one from them. The file is on a tmpfs.\n")
    rows = []
    for job, by_monitor in results.items():
        base = None
        for name, runs in by_monitor.items():
            iops, cpu = ([run[index] for run in runs] for index in (0, 1))
            here = (median(iops), median(cpu))
            base = base or here
            rows.append([f"{job}: {name}", f"{here[0]:,.0f}", f"{spread(iops):.0%}", f"{here[1] / 1e3:.1f}"]
                        + [f"{spread(cpu):.0%}", ratio(base[0], here[0]), ratio(base[1], here[1])])
    head = ["job: monitor", "I/O per second", "±", "CPU an I/O, µs", "±", "ours to its, I/O per second", "ours to its, CPU"]
    table(head, rows)
