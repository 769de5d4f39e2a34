"""What KVM did, from its tracepoints: how often guests were left and why, and how long they ran
(Linux, Documentation/trace/histogram.rst)."""

import os
import re

TRACING = "/sys/kernel/tracing"
ENTRY = f"{TRACING}/events/kvm/kvm_entry/trigger"
EXIT = f"{TRACING}/events/kvm/kvm_exit/trigger"
SPELL = f"{TRACING}/events/synthetic/bench_spell/trigger"

# Triggers in the order in which they are set; they are taken off in the opposite one.
TRIGGERS = [
    (EXIT, "hist:keys=exit_reason,isa"),
    (ENTRY, "hist:keys=common_pid:entered=common_timestamp"),
    (
        EXIT,
        "hist:keys=common_pid:spell=common_timestamp-$entered:"
        "onmatch(kvm.kvm_entry).trace(bench_spell,$spell)",
    ),
    (SPELL, "hist:keys=common_cpu:vals=spell"),
]

# Exit codes by field `isa`: 1 is VMX (Intel SDM 3D appendix C), 2 is SVM (AMD APM 2 appendix C).
NAMES = {
    1: {0: "exception", 1: "interrupt", 7: "interrupt window", 10: "CPUID", 12: "HLT", 18: "hypercall"}
    | {28: "control register", 30: "port", 31: "MSR", 32: "MSR", 40: "PAUSE", 48: "page fault"}
    | {49: "device memory", 52: "preemption timer", 54: "WBINVD", 55: "XSETBV"},
    2: {0x60: "interrupt", 0x61: "NMI", 0x64: "interrupt window", 0x72: "CPUID", 0x77: "PAUSE"}
    | {0x78: "HLT", 0x7B: "port", 0x7C: "MSR", 0x81: "hypercall", 0x89: "WBINVD", 0x8D: "XSETBV"}
    | {0x400: "page fault"},
}


def available():
    return os.path.exists(ENTRY)


class Trace:
    """KVM is traced within `with`; afterwards `exits` holds counts by reason, `guest_ns` a sum.
    It sees every guest of the host, so there should be one only."""

    def __enter__(self):
        put(f"{TRACING}/synthetic_events", "bench_spell u64 spell")
        for path, trigger in TRIGGERS:
            put(path, trigger)
        return self

    def __exit__(self, *_):
        self.exits, self.guest_ns = {}, 0
        with open(EXIT.replace("trigger", "hist")) as file:
            for reason, isa, count in EXIT_LINE.findall(file.read()):
                names = NAMES.get(int(isa), {})
                name = names.get(int(reason), f"{int(reason):#x}")
                self.exits[name] = self.exits.get(name, 0) + int(count)
        with open(SPELL.replace("trigger", "hist")) as file:
            self.guest_ns = sum(int(spell) for spell in SPELL_LINE.findall(file.read()))
        for path, trigger in reversed(TRIGGERS):
            put(path, "!" + trigger)
        put(f"{TRACING}/synthetic_events", "!bench_spell")


EXIT_LINE = re.compile(r"exit_reason: *(\d+), isa: *(\d+) *} hitcount: *(\d+)")
SPELL_LINE = re.compile(r"hitcount: *\d+ +spell: *(\d+)")


def put(path, text):
    # By hand: these files cannot be sought in, and each line must come in one write.
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)
