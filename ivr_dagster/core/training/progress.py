"""Progress of a training as log lines."""

from collections.abc import Mapping


def describe_progress(entry: Mapping[str, float], bytes_per_token: float | None) -> str:
    """A log line for what :func:`~ivr_dagster.core.training.sft.fine_tune` passes to `on_log`.

    Args:
        entry: figures by name.
        bytes_per_token: UTF-8 bytes per token of the text; None if unknown.
    """
    place = f"step {entry['step']:.0f} of {entry['max_steps']:.0f}"
    if "bits_per_byte" in entry:
        return f"{place}: validation {entry['bits_per_byte']:.4f} bits per byte"
    if "micro_batch" in entry:
        return (
            f"out of memory; {place}: continuing with micro-batches of {entry['micro_batch']:.0f} blocks, "
            f"{entry['accumulated']:.0f} per step. The batch, and the losses up to rounding, stay the same"
        )
    tokens = entry["tokens_per_second"]
    figures = [f"loss {entry['loss']:.4f} nats/token", f"{tokens:,.0f} tokens/s"]
    figures += [f"{tokens * bytes_per_token:,.0f} bytes/s"] if bytes_per_token else []
    figures += [f"{entry['flops_per_second'] / 1e9:,.1f} GFLOP/s"]
    figures += [f"MFU {entry['mfu']:.1%}"] if "mfu" in entry else []
    return f"{place}: {', '.join(figures)}, {entry['seconds_left']:,.0f} s left"
