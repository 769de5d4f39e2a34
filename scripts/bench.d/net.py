"""What an interface does: iperf3 and sockperf in the guest, their servers on the host's side of the tap, in a
network namespace of their own; one monitor's job after the other's."""

import re
import subprocess
import sys

from load import Guest, Tap
from tables import median, ratio, spread, table

IPERF = "iperf3 -J -t"
SOCKPERF = "sockperf ping-pong -m 64 -t"
# How each is asked for, and what it is measured in.
JOBS = {
    "TCP to the host, 1 stream": (IPERF, "", "MBit/s"),
    "TCP from the host, 1 stream": (IPERF, "-R", "MBit/s"),
    "TCP to the host, 8 streams": (IPERF, "-P 8", "MBit/s"),
    "TCP from the host, 8 streams": (IPERF, "-P 8 -R", "MBit/s"),
    "UDP of 64 bytes to the host": (IPERF, "-u -b 0 -l 64", "packets/s"),
    "UDP of 64 bytes from the host": (IPERF, "-u -b 0 -l 64 -R", "packets/s"),
    "TCP round trip of 64 bytes": (SOCKPERF, "--tcp", "round trips/s"),
    "UDP round trip of 64 bytes": (SOCKPERF, "", "round trips/s"),
}
TO = {IPERF: "-c", SOCKPERF: "-i"}
SOCKPERF_PORT = 11111


def run(monitors, kernel, initrd, rounds, seconds):
    taps = [Tap(number) for number in range(len(monitors))]
    servers = [["iperf3", "-s"], ["sockperf", "server", "--tcp", "-p", str(SOCKPERF_PORT)]]
    servers += [["sockperf", "server", "-i", tap.host, "-p", str(SOCKPERF_PORT)] for tap in taps]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    servers = [subprocess.Popen(server, **quiet) for server in servers]
    try:
        guests = [Guest(monitor, kernel, initrd, tap=tap) for monitor, tap in zip(monitors, taps)]
        results = {}
        for turn in range(rounds):
            for job, asked in JOBS.items():
                for guest in guests:
                    results.setdefault(job, {}).setdefault(guest.name, []).append(once(guest, seconds, *asked))
            print(f"bench: round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        for guest in guests:
            guest.end()
    finally:
        for server in servers:
            server.kill()
    report(results, seconds)


def once(guest, seconds, program, options, unit):
    """How much a second, and the monitor's CPU time for a unit of it, the guest's work included, ns."""
    # Of a flood to the guest, what its interface receives counts, and not what the program has read: its socket
    # drops what it has no time for, more of it the more arrives.
    flood = unit == "packets/s" and "-R" in options
    before = received(guest) if flood else 0
    said, cpu_ns = guest.measured(f"{program} {seconds} {TO[program]} {guest.tap.host} {options}")
    if program == SOCKPERF:
        seconds, count = re.search(r"Valid Duration\] RunTime=([\d.]+) sec; SentMessages=(\d+)", said).groups()
        return int(count) / float(seconds), cpu_ns / int(count)
    total = END.search(said).group(1)
    bits, seconds = (float(re.search(rf'"{name}":\s*([\d.e+]+)', total).group(1)) for name in ("bits_per_second", "seconds"))
    if unit == "MBit/s":
        return bits / 1e6, cpu_ns / (bits * seconds / 1e6)
    if flood:
        packets = received(guest) - before
        return packets / seconds, cpu_ns / packets
    packets, lost = (int(re.search(rf'"{name}":\s*(\d+)', total).group(1)) for name in ("packets", "lost_packets"))
    return (packets - lost) / seconds, cpu_ns / (packets - lost)


def received(guest):
    """Packets that the guest's interface has received so far."""
    return int(guest.run("cat /sys/class/net/eth0/statistics/rx_packets"))


# What arrived: `sum_received` of TCP; of UDP there is a sum alone, as the receiver told it.
END = re.compile(r'"end":.*"(?:sum_received|sum)":\s*(\{[^}]*\})', re.DOTALL)


def report(results, seconds):
    print(f"Medians of {seconds} s a job; ± is the largest distance of one from them.\n")
    rows = []
    for job, by_monitor in results.items():
        base = None
        for name, runs in by_monitor.items():
            rate, cpu = ([run[index] for run in runs] for index in (0, 1))
            here = (median(rate), median(cpu))
            base = base or here
            rows.append([f"{job}: {name}", f"{here[0]:,.0f} {JOBS[job][2]}", f"{spread(rate):.0%}", f"{here[1] / 1e3:.2f}"]
                        + [f"{spread(cpu):.0%}", ratio(base[0], here[0]), ratio(base[1], here[1])])
    head = ["job: monitor", "rate", "±", "CPU a MBit, packet or round trip, µs", "±"]
    table(head + ["ours to its, rate", "ours to its, CPU"], rows)
