"""From the start of the process to the first guest instruction, which prints a byte; and to the end of
a process whose guest ends the machine with its first instruction."""

from boot import timeline
from monitors import TINY_LINE, Process
from tables import median, ratio, table

WARM_UP = 3


def run(monitors, folder, rounds):
    results = {monitor.name: [] for monitor in monitors}
    for turn in range(WARM_UP + rounds):
        for monitor in monitors:
            first = Process(monitor.tiny(folder, ends=False))
            result = {"first_ns": first.wait_for(TINY_LINE), "first_cpu_ns": first.cpu_ns()}
            first.kill()
            result |= Process(monitor.tiny(folder, ends=True)).end()
            if turn >= WARM_UP:
                results[monitor.name].append(result)
    what = {
        "first instruction, wall ms": "first_ns",
        "first instruction, CPU ms": "first_cpu_ns",
        "end, wall ms": "wall_ns",
        "end, CPU ms": "cpu_ns",
    }
    rows, base = [], None
    for name, runs in results.items():
        columns = [[run[key] for run in runs] for key in what.values()]
        medians = [median(column) for column in columns]
        base = base or medians
        cells = [f"{mid / 1e6:.2f} ({min(column) / 1e6:.2f})" for mid, column in zip(medians, columns)]
        faults = round(median([run["faults"] for run in runs]))
        rows.append([name, *cells, faults, *(ratio(mid, ours) for mid, ours in zip(medians, base))])
    print("Medians, and the least in brackets.\n")
    table(["from start to", *what, "page faults", *(f"{key}, ratio" for key in what)], rows)
    for name, runs in results.items():
        if line := timeline(runs):
            table(["ms from start to", *line], [[name, *(f"{ms:.2f}" for ms in line.values())]])
