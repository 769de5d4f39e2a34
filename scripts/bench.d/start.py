"""From the start of the process to the first guest instruction, which is its last: the guest ends
the machine at once."""

from boot import timeline
from monitors import Process
from tables import median, ratio, table

WARM_UP = 3


def run(monitors, folder, rounds):
    results = {monitor.name: [] for monitor in monitors}
    launches = {monitor.name: monitor.tiny(folder) for monitor in monitors}
    for turn in range(WARM_UP + rounds):
        for name, launch in launches.items():
            result = Process(launch).end()
            if turn >= WARM_UP:
                results[name].append(result)
    rows, base = [], None
    for name, runs in results.items():
        wall, cpu, faults = ([run[what] for run in runs] for what in ("wall_ns", "cpu_ns", "faults"))
        base = base or (median(wall), median(cpu))
        rows.append(
            [name, f"{median(wall) / 1e6:.2f}", f"{min(wall) / 1e6:.2f}", f"{median(cpu) / 1e6:.2f}"]
            + [f"{min(cpu) / 1e6:.2f}", round(median(faults))]
            + [ratio(median(wall), base[0]), ratio(median(cpu), base[1])]
        )
    head = ["monitor", "wall, ms", "least", "CPU, ms", "least", "page faults", "wall, ratio", "CPU, ratio"]
    table(head, rows)
    for name, runs in results.items():
        if line := timeline(runs):
            table(["ms from start to", *line], [[name, *(f"{ms:.2f}" for ms in line.values())]])
