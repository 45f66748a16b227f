"""The tables of docs/distilling.md, from the results of ``python benchmarks/distill.py``."""

import statistics
from collections.abc import Callable

from table_of import interval_over_seeds, mean_of, newest, table

__all__ = ["TABLES"]


def curve(recipe: str) -> str:
    """A row for each way: bytes, floor, angle, and the student's loss over that of full distillation, over seeds."""
    lines = newest("distill", f"curve-{recipe}")
    seeds = sorted({line["seed"] for line in lines})
    nats = {(line["way"], line["seed"]): line["test_nats"] for line in lines}
    ways = list(dict.fromkeys(line["way"] for line in lines))
    rows = []
    for way in ways:
        of_way = [line for line in lines if line["way"] == way]
        over = [nats[way, seed] - nats["online", seed] for seed in seeds if (way, seed) in nats]
        rows.append(
            [
                way,
                mean_of(of_way, "bytes_per_token", ".1f"),
                mean_of(of_way, "ids_alone_bytes_per_token", ".1f"),
                mean_of(of_way, "floor_bytes_per_token", ".1f"),
                mean_of(of_way, "angle_degrees", ".1f"),
                f"{statistics.mean(line['test_nats'] for line in of_way):.3f}",
                "0" if way == "online" else interval_over_seeds(over),
                f"{statistics.mean(line['test_agreement'] for line in of_way):.3f}",
                str(len(of_way)),
            ]
        )
    head = [
        "labels",
        "bytes/token",
        "DistillKit's ids",
        "floor",
        "angle",
        "test nats",
        "over online",
        "agreement",
        "seeds",
    ]
    return table(head, rows)


def steps() -> str:
    """A row for each vocabulary: what a step costs."""
    rows = [
        [
            f"{line['vocabulary']:,}",
            f"{line['student_parameters'] / 1e6:.1f} M",
            *(f"{line['seconds'][way]:.2f}" for way in ("cross-entropy", "cached", "online")),
            f"{line['decoding_s']:.3f}",
            f"{line['cached_over_cross_entropy']:.3f}",
            f"{line['one_epoch_over_cross_entropy']:.3f}",
            f"{line['peak_cached_over_cross_entropy']:.3f}",
            f"{line['online_over_cached']:.2f}",
        ]
        for line in newest("distill", "steps")
    ]
    head = [
        "vocabulary",
        "student",
        "cross-entropy, s",
        "cached, s",
        "online, s",
        "decoding, s",
        "cached / cross-entropy",
        "the same, one epoch",
        "peak memory",
        "online / cached",
    ]
    return table(head, rows)


def store_bytes(recipe: str) -> str:
    """A row for each number of draws: a store of the teacher's whole text against its floor."""
    rows = [
        [
            str(line["draws"]),
            f"{line['tokens']:,}",
            f"{line['bytes_per_token']:.1f}",
            f"{line['floor_bytes_per_token']:.1f}",
            f"{line['over_floor']:.2f}",
            f"{line['angle_degrees']:.1f}",
        ]
        for line in newest("distill", f"bytes-{recipe}")
    ]
    return table(["draws", "tokens", "bytes/token", "floor", "bytes / floor", "angle"], rows)


def grid(recipe: str) -> str:
    """A row for each cell."""
    rows = [
        [
            f"{line['budget'] / 1e6:.2f} M",
            f"{line['tokens']:,}",
            f"{line['test_nats']['student']:.3f}",
            f"{min(nats for name, nats in line['test_nats'].items() if name != 'student'):.3f}",
            f"{line['difference_nats']:+.3f} ({line['interval_95'][0]:+.3f} to {line['interval_95'][1]:+.3f})",
            f"{line['equal_time']['epochs']}",
            f"{line['teacher_check']['teacher_nats']:.3f}",
            f"{line['teacher_check']['plain_nats']:.3f}",
            "warned" if line["teacher_check"]["teacher_nats"] >= line["teacher_check"]["plain_nats"] else "",
        ]
        for line in newest("distill", f"grid-{recipe}")
    ]
    head = [
        "student",
        "tokens",
        "distilled",
        "plain, best",
        "distilled minus plain at equal time",
        "plain epochs",
        "teacher",
        "twin",
        "check",
    ]
    return table(head, rows)


def trl(recipe: str) -> str:
    """A row for each of the two, means over seeds."""
    lines = newest("distill", f"trl-{recipe}")
    rows = [
        [
            who,
            f"{statistics.mean(line[who]['seconds'] for line in lines):.1f}",
            f"{statistics.mean(line[who]['tokens_per_s'] for line in lines):,.0f}",
            f"{statistics.mean(line[who]['test_nats'] for line in lines):.3f}",
            f"{statistics.mean(line[who]['test_agreement'] for line in lines):.3f}",
        ]
        for who in ("potstill", "trl")
    ]
    ratio = statistics.mean(line["speed_over_trl"] for line in lines)
    step = statistics.mean(line["step_speed_over_trl"] for line in lines)
    said = f"\n\npotstill is {ratio:.2f} times as fast with capturing the labels counted, {step:.2f} times without."
    return table(["", "seconds", "tokens/s", "test nats", "agreement"], rows) + said


TABLES: dict[str, Callable[..., str]] = {"curve": curve, "bytes": store_bytes, "steps": steps, "grid": grid, "trl": trl}
