"""The tables of docs/quantizing.md, from the results of ``python benchmarks/quantize.py``."""

from collections.abc import Callable

from table_of import Line, newest, table

__all__ = ["TABLES"]


def methods() -> str:
    """A row for each variant of the student."""
    rows = [
        [
            line["variant"],
            f"{line['perplexity']:.2f}",
            f"{100 * (line['perplexity_over_float32'] - 1):+.2f} %",
            f"{line['kl_from_float32_nats']:.4f}",
            "" if line["variant"] == "float32" else _difference(line, "nats_over_float32"),
            _difference(line, "nats_over_rtn"),
            _difference(line, "kl_over_rtn"),
        ]
        for line in newest("quantize", "methods")
    ]
    head = [
        "variant",
        "perplexity",
        "over float32",
        "KL from float32, nats",
        "nats over float32",
        "nats over rtn",
        "KL over rtn",
    ]
    return table(head, rows)


def parity() -> str:
    """A row for each scheme and file."""
    rows = [
        [
            line["scheme"],
            line["format"],
            f"{line['positions']:,}",
            f"{line['perplexity']:.3f}",
            f"{100 * (line['perplexity_over_pytorch'] - 1):+.4f} %",
            f"{line['agreement_with_pytorch']:.4f}",
        ]
        for line in newest("quantize", "parity")
    ]
    return table(["scheme", "file", "positions", "perplexity", "over PyTorch", "same likeliest token"], rows)


def speed() -> str:
    """A row for each file."""
    rows = [
        [
            line["model"],
            line["engine"],
            str(line["threads"]),
            f"{line['bytes'] / 1e6:.2f}",
            f"{line['prefill_tokens_per_s']:,.0f}",
            f"{line['decode_tokens_per_s']:,.0f}",
            f"{line['decode_over_teacher']:.1f}",
            f"{line['bytes_of_teacher_over_own']:.1f}",
        ]
        for line in newest("quantize", "speed")["models"]
    ]
    head = [
        "model",
        "engine",
        "threads",
        "MB",
        "prefill, tokens/s",
        "decode, tokens/s",
        "decode ratio",
        "size ratio",
    ]
    return table(head, rows)


def time() -> str:
    """One sentence."""
    line = newest("quantize", "time")
    rows, tokens = line["calibration"]
    return (
        f"GPTQ of the lesson's teacher (110 M parameters) on {rows} rows of {tokens} tokens: {line['seconds']:.0f} s, "
        f"{line['peak_bytes'] / 1e6:,.0f} MB."
    )


TABLES: dict[str, Callable[..., str]] = {"methods": methods, "parity": parity, "speed": speed, "time": time}


def _difference(line: Line, key: str) -> str:
    if key not in line:
        return ""
    low, high = line[f"{key}_interval_95"]
    return f"{line[key]:+.4f} ({low:+.4f} to {high:+.4f})"
