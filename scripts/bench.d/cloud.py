"""The control daemon: how long its answers take and what it occupies, on the simulated host; and where the
time from a launch to a running machine goes, on a real one."""

import http.client
import json
import os
import socket
import subprocess
import tempfile
import threading
import time

from tables import median, table

SIZES = (10, 1_000, 10_000)
CLIENTS = 32
BATCH = 1_000  # instances by one launch: the most that it takes
PAGE = 1_000
DAEMON_READY_S = 60
SETTLED_S = 600


class Failed(Exception):
    """The daemon did not do what it was asked for."""


class Connection(http.client.HTTPConnection):
    """HTTP to a Unix socket, kept open from request to request."""

    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def ask(self, method, path, body=None):
        """The answer's document; its time in ms goes to `took_ms`."""
        started = time.perf_counter_ns()
        headers = {"Content-Type": "application/json"} if body is not None else {}
        self.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = self.getresponse()
        content = answer.read()
        self.took_ms = (time.perf_counter_ns() - started) / 1e6
        if answer.status >= 300:
            raise Failed(f"{method} {path}: {answer.status}: {content[:500].decode(errors='replace')}")
        return json.loads(content) if content else None


class Daemon:
    """An `ec2vmmd` with a state of its own, gone at the end."""

    def __init__(self, program, folder, *options):
        self.socket = os.path.join(folder, "run", "ec2vmmd.sock")
        self.log = os.path.join(folder, "log")
        command = [program, "--state-dir", os.path.join(folder, "state"), "--run-dir", os.path.join(folder, "run"), *options]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + DAEMON_READY_S
        while True:
            try:
                self.connect().ask("GET", "/readyz")
                return
            except (OSError, Failed) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"the daemon is not ready: {error}; its log: {open(self.log).read()[-2000:]}") from error
                time.sleep(0.02)

    def connect(self):
        return Connection(self.socket)

    def resident_kib(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            fields = dict(line.split(":", 1) for line in status)
        return int(fields["VmRSS"].split()[0])

    def wait_until_running(self, count):
        connection = self.connect()
        deadline = time.monotonic() + SETTLED_S
        while connection.ask("GET", "/v1/status")["instances"].get("running", 0) < count:
            if time.monotonic() > deadline:
                raise Failed(f"{count} instances do not run after {SETTLED_S} s")
            time.sleep(0.05)

    def end(self):
        self.process.terminate()
        self.process.wait()


def simulated(program, rounds):
    """Answers and memory, by the number of instances that there are."""
    with tempfile.TemporaryDirectory(prefix="ec2vmm-bench.") as folder:
        image = os.path.join(folder, "image.raw")
        with open(image, "wb") as file:
            file.truncate(1 << 20)
        daemon = Daemon(program, folder, "--host", "simulated", "--cpu-overcommit", "1000", "--memory-overcommit", "1000")
        try:
            connection = daemon.connect()
            connection.ask("POST", "/v1/images", {"name": "bench", "file": image, "format": "raw", "login_user": "root"})
            empty_kib, rows, there = daemon.resident_kib(), [], 0
            for size in SIZES:
                there = fill(daemon, connection, there, size)
                rows.append([f"{size:,}", *latencies(connection, rounds), f"{(daemon.resident_kib() - empty_kib) / size:.1f}"])
                there += rounds
            print(f"Medians of {rounds}, and the worst in brackets; a page holds {PAGE:,}. {empty_kib / 1024:.1f} MiB without instances.\n")
            table(["instances", "launch, ms", "describe one, ms", "describe a page, ms", "daemon, KiB an instance"], rows)
            throughput(daemon)
        finally:
            daemon.end()


def fill(daemon, connection, there, size):
    while there < size:
        count = min(BATCH, size - there)
        launch(connection, count)
        there += count
    daemon.wait_until_running(there)
    return there


def launch(connection, count):
    body = {"image": "bench", "instance_type": "t3.nano", "min_count": count, "max_count": count}
    return connection.ask("POST", "/v1/instances", body)["instances"][0]["instance_id"]


def latencies(connection, rounds):
    launches, ones, pages = [], [], []
    for _ in range(rounds):
        instance = launch(connection, 1)
        launches.append(connection.took_ms)
        connection.ask("GET", f"/v1/instances/{instance}")
        ones.append(connection.took_ms)
        connection.ask("GET", f"/v1/instances?max_results={PAGE}")
        pages.append(connection.took_ms)
    return [f"{median(times):.2f} ({max(times):.2f})" for times in (launches, ones, pages)]


def throughput(daemon):
    """Each client stops and starts, or describes, instances of its own, as fast as it can."""
    rows = []
    for what, work in (("describe one", describe_one), ("launch, describe, terminate", whole_life)):
        counts, barrier = [0] * CLIENTS, threading.Barrier(CLIENTS + 1)
        until = [0.0]

        def client(index, work=work, counts=counts, barrier=barrier, until=until):
            connection = daemon.connect()
            instance = launch(connection, 1)
            barrier.wait()
            while time.monotonic() < until[0]:
                counts[index] += work(connection, instance)

        threads = [threading.Thread(target=client, args=(index,)) for index in range(CLIENTS)]
        for thread in threads:
            thread.start()
        seconds = 5
        until[0] = time.monotonic() + 3600
        barrier.wait()
        until[0] = time.monotonic() + seconds
        for thread in threads:
            thread.join()
        rows.append([what, f"{sum(counts) / seconds:,.0f}"])
    print("The clients are threads of one Python process, which shares the processors with the daemon.\n")
    table([f"{CLIENTS} clients", "operations a second"], rows)


def describe_one(connection, instance):
    connection.ask("GET", f"/v1/instances/{instance}")
    return 1


def whole_life(connection, _):
    instance = launch(connection, 1)
    connection.ask("GET", f"/v1/instances/{instance}")
    connection.ask("POST", f"/v1/instances/{instance}/terminate")
    return 3


def real(program, image, rounds):
    """From the launch to the first instruction of a real machine, by steps."""
    with tempfile.TemporaryDirectory(prefix="ec2vmm-bench.") as folder:
        cgroup = os.path.join("/sys/fs/cgroup", os.path.basename(folder))
        daemon = Daemon(program, folder, "--host", "linux", "--cpu-overcommit", "16", "--cgroup", cgroup)
        try:
            connection = daemon.connect()
            connection.ask("POST", "/v1/images", {"name": "bench", "file": image, "format": "raw", "login_user": "root"})
            steps, totals = {}, []
            for _ in range(rounds):
                instance = launch(connection, 1)
                daemon.wait_until_running(1)
                timeline = connection.ask("GET", f"/v1/instances/{instance}/timeline")["steps"]
                for step in timeline:
                    steps.setdefault(step["name"], []).append(step["took_us"] / 1e3)
                totals.append(max(step["began_us"] + step["took_us"] for step in timeline) / 1e3)
                connection.ask("POST", f"/v1/instances/{instance}/terminate")
                while connection.ask("GET", f"/v1/instances/{instance}")["state"] != "terminated":
                    time.sleep(0.02)
            rows = [[name, f"{median(times):.1f} ({max(times):.1f})"] for name, times in steps.items()]
            rows.append(["from the request to running", f"{median(totals):.1f} ({max(totals):.1f})"])
            table([f"of {rounds} launches of `minimal` as t3.nano", "ms, median (worst)"], rows)
        finally:
            daemon.end()
            os.rmdir(cgroup)
