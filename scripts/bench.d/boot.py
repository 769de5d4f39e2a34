"""Boot to init: one kernel and one initrd under each monitor, in turn."""

import functools
import statistics
import sys

from monitors import LINE, Process
from tables import median, ratio, spread, table
from tracing import Trace, available

CMDLINE = "console=ttyS0 quiet panic=-1"
SECOND = 1e9


def run(monitors, kernels, initrd, rounds, counted):
    """`kernels` by name; a monitor that does not take a kernel has it named in `refuses`."""
    pairs = [
        (monitor, name, path)
        for name, path in kernels.items()
        for monitor in monitors
        if name not in monitor.refuses
    ]
    results = {}
    # The first round warms caches, and is traced.
    for turn in range(rounds + 1):
        for monitor, name, path in pairs:
            key = (monitor.name, name)
            cmdline = f"{CMDLINE} {monitor.end}".strip()
            launch = functools.partial(monitor.kernel, path, initrd, cmdline)
            if turn == 0:
                results[key] = {"runs": []}
                once(launch)
                if available():
                    with Trace() as trace:
                        once(launch)
                    results[key] |= {"exits": trace.exits, "guest_ns": trace.guest_ns}
            else:
                results[key]["runs"].append(once(launch))
            print(f"bench: round {turn} of {rounds}: {monitor.name}, {name}", file=sys.stderr, flush=True)
    report(results, counted)


def once(launch):
    """A start of what `launch` makes: some of them can be started once."""
    process = Process(launch())
    init_ns = process.wait_for(LINE)
    return {"init_ns": init_ns, "init_cpu_ns": process.cpu_ns()} | process.end()


def report(results, counted):
    # A clock that counts instructions leaps while a host waits: then only CPU times mean something.
    rows, base = [], None
    for (monitor, kernel), result in results.items():
        runs = result["runs"]
        init, cpu, elapsed = ([run[what] for run in runs] for what in ("init_cpu_ns", "cpu_ns", "init_ns"))
        guest = result.get("guest_ns", 0)
        here = (median(init), median(cpu), median(cpu) - guest)
        base = base or here
        rows.append(
            [f"{monitor}, {kernel}", f"{here[0] / SECOND:.3f}", f"{spread(init):.1%}", f"{here[1] / SECOND:.3f}"]
            + [f"{guest / SECOND:.3f}", f"{here[2] / SECOND:.3f}", sum(result.get("exits", {}).values())]
            + [ratio(mine, its) for mine, its in zip(here, base)]
            + ([] if counted else [f"{median(elapsed) / SECOND:.3f}"])
        )
    head = ["monitor, kernel", "CPU to init, s", "±", "CPU in all, s", "of it in the guest, s", "outside it, s"]
    head += ["exits", "to init, ratio", "in all, ratio", "outside, ratio"]
    table(head + ([] if counted else ["to init, elapsed, s"]), rows)

    reasons = sorted({reason for result in results.values() for reason in result.get("exits", {})})
    reasons.sort(key=lambda reason: -max(result["exits"].get(reason, 0) for result in results.values()))
    head = ["exits by reason", *(f"{monitor}, {kernel}" for monitor, kernel in results)]
    table(head, [[reason, *(result["exits"].get(reason, 0) for result in results.values())] for reason in reasons])

    timelines = [(key, timeline(result["runs"])) for key, result in results.items()]
    timelines = [(key, line) for key, line in timelines if line]
    if timelines:
        head = ["ms from start to", *timelines[0][1]]
        table(head, [[", ".join(key), *(f"{ms:.2f}" for ms in line.values())] for key, line in timelines])


def timeline(runs):
    """Median milliseconds from the start of the process to each of its events."""
    times = {}
    for run in runs:
        for event in run["events"]:
            times.setdefault(event["event"], []).append(event["us"] / 1000)
    return {name: statistics.median(values) for name, values in times.items()}
