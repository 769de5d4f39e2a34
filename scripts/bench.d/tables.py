"""Figures as Markdown tables, so that they can go into docs/PERFORMANCE.md as they are."""

import statistics


def median(values):
    return statistics.median(values)


def spread(values):
    """How far the values lie from their median, as a share of it."""
    middle = median(values)
    return max(abs(value - middle) for value in values) / middle if middle else 0.0


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


def ratio(value, base):
    return f"{value / base:.2f}" if base else "-"
