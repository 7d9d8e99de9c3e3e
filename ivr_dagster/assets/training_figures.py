"""Figures of a training in asset metadata."""

from typing import TYPE_CHECKING

import dagster as dg

from ivr_dagster.assets.display import curves, inline_png

if TYPE_CHECKING:
    from ivr_dagster.core.training.sft import SftResult


def speed(result: "SftResult", bytes_per_token: float | None) -> dict[str, float]:
    """Tokens, bytes and FLOPs per second, and MFU (model FLOPs utilization) if known; empty if no step was left."""
    tokens = result.tokens_per_second
    if not tokens:
        return {}
    return {
        "tokens_per_second": round(tokens, 1),
        **({"bytes_per_second": round(tokens * bytes_per_token)} if bytes_per_token else {}),
        "flops_per_second": round(result.flops_per_second),
        **({} if result.mfu is None else {"mfu": round(result.mfu, 4)}),
    }


def figures(result: "SftResult") -> dict[str, dg.MetadataValue | float | int | str]:
    """Key figures of a training, and a plot of its loss."""
    steps, losses = zip(*result.loss_history, strict=True) if result.loss_history else ((), ())
    validation = dict(result.validation)
    plot = curves(steps, {"loss": losses}, x="step", y="loss, nats per token")
    return {
        **({"validation_bits_per_byte": validation[result.best_step]} if result.best_step in validation else {}),
        "train_loss": result.train_loss,
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 2),
        "resumed_from_step": result.resumed_from or 0,
        "best_step": result.best_step,
        "micro_batch": result.micro_batch,
        "gradient_accumulation_steps": result.accumulated,
        "training loss": inline_png(plot, "training loss"),
    }
