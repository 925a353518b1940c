"""The sections of a report."""

from __future__ import annotations

from bnbench.records import TrainingSummary


def training_facts(training: TrainingSummary) -> list[tuple[str, str]]:
    """How an adapter was trained, as labels and texts; what was not measured is left out."""
    recipe, memory, gain = training.recipe, training.peak_memory_bytes, training.gain
    preferences = ""
    if gain:
        ends = f"{gain['margin']:+.2f} nats (95 % {gain['low']:+.2f} to {gain['high']:+.2f})".replace("-", "−")
        preferences = f"the chosen reply gained {ends} on the rejected one, mean over {gain['pairs']} held-out pairs"
    shown = {
        "Recipe": f"{recipe.get('name')}: {recipe.get('description')}",
        "Adapter": f"{recipe.get('tuner')}, r {recipe.get('r')}, α {recipe.get('alpha')}, "
        f"dropout {recipe.get('dropout')}, on {', '.join(recipe.get('targets') or [])}",
        "Precision": f"weights {training.precision.get('quantisation')}, {training.precision.get('reason')}",
        "Schedule": f"learning rate {recipe.get('learning_rate')}, {recipe.get('schedule')}, "
        f"warm-up {recipe.get('warmup')}, {recipe.get('optimizer')}, seed {recipe.get('seed')}",
        "Length": f"{training.rows:,} rows, epochs {recipe.get('epochs')}, {training.steps:,} steps, "
        f"{training.seconds / 60:,.1f} min on {training.device}",
        "Loss": f"{training.loss_at_start:.3f} → {training.loss_at_end:.3f} "
        "(means of the first and last tenth of the steps)",
        "Preferences": preferences,
        "Peak memory": "" if memory is None else f"{memory / 2**30:.2f} GiB",
    }
    return [(label, text) for label, text in shown.items() if text]
