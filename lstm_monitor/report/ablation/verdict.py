"""How far each ranking of an ablation study can be trusted in a layer, and the sentence that says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from lstm_monitor.report.ablation.records import Correlation, LayerStudy, Trial

Judged = Literal["score", "output"]
Verdict = Literal["trusted", "fair", "weak", "chance", "backwards", "unknown"]

TRUSTED, FAIR = 0.7, 0.4
"""The least lower end of rho's interval of a ranking to trust, and the least rho of a fair guide."""
NOISY = 0.5
"""Effects whose halves agree at a smaller rho are called mostly noise."""
HARMLESS = 1e-3
"""Cells whose removal changes the output by less (mean squared, over its variance) are called harmless."""

_NAN = float("nan")


def by_construction(trial: Trial, effects: Tensor) -> bool:
    """Whether a ranking's scores are these very effects ``(H,)``: then its rho with them is 1 and says nothing."""
    scores, effects = trial.ranking.scores.detach().cpu().double(), effects.cpu().double()
    measured = bool((~torch.isnan(effects)).any())
    return measured and torch.allclose(scores, effects, rtol=1e-4, atol=0, equal_nan=True)


def evidence(layer: LayerStudy, trial: Trial, of: Judged = "output") -> Correlation:
    """How a ranking agrees with the effects; for those effects themselves how their two halves agree."""
    effects, noise = layer.effects, layer.noise
    values, halves = (effects.output, noise.halves_output) if of == "output" else (effects.score, noise.halves_score)
    if by_construction(trial, values):
        return Correlation(halves, _NAN, _NAN)
    return trial.output if of == "output" else trial.score


def like_random(layer: LayerStudy, trial: Trial) -> bool:
    """Whether a ranking's two curves lie no further apart than those of two random orders."""
    return trial.gap <= layer.noise.order_gap


def verdict(layer: LayerStudy, trial: Trial) -> Verdict:
    """What a ranking is worth in this layer.

    "trusted": rho with the single-cell effects lies above 0.7 with its whole interval, "fair": rho is at least 0.4,
    both with curves further apart than those of random orders; "weak": rho lies above 0 at least; "chance": its
    interval holds 0; "backwards": it lies below 0; "unknown": rho is not defined. (This project's definition.)
    """
    found = evidence(layer, trial)
    low, high = found.low, found.high
    if by_construction(trial, layer.effects.output):
        low = high = found.rho
    if found.rho != found.rho or low != low:
        return "unknown"
    if low <= 0:
        return "backwards" if high < 0 else "chance"
    if found.rho < FAIR or like_random(layer, trial):
        return "weak"
    return "trusted" if low >= TRUSTED else "fair"


def trust_sentence(layer: LayerStudy) -> str:
    """Which ranking could be trusted in this layer and which not, in plain words, with what is known about noise."""
    return f"{layer.key}: {judgement(layer)}"


def judgement(layer: LayerStudy) -> str:
    """`trust_sentence` without the layer's name."""
    if not layer.trials:
        return "no ranking was on trial."
    if layer.hidden_size < 3:
        return "too few cells to judge a ranking."
    halves = layer.noise.halves_output
    if halves < NOISY:
        lead = f"the effects are mostly noise on these sequences (two halves of them agree at rho {halves:.2f})"
        return f"{lead}: take more. No ranking can be judged."
    return f"{'; '.join(_groups(layer))}.{_random_words(layer)}"


_AFTER: dict[Verdict, tuple[str, str]] = {
    "fair": ("is a fair guide", "are fair guides"),
    "weak": ("is a weak guide", "are weak guides"),
    "chance": ("is no better than chance here", "are no better than chance here"),
    "backwards": ("ranks the wrong way round here", "rank the wrong way round here"),
    "unknown": ("could not be judged", "could not be judged"),
}


def _groups(layer: LayerStudy) -> Iterator[str]:
    """The rankings by verdict, the best first; the first rho says with what."""
    best_first = sorted(layer.trials, key=lambda trial: -_or_zero(trial.output.rho))
    verdicts = [(verdict(layer, trial), trial) for trial in best_first]
    trusted = [trial for found, trial in verdicts if found == "trusted"]
    yield f"trust {_listed(layer, trusted, explained=True)}" if trusted else "no ranking can be fully trusted"
    explained = bool(trusted)
    for found, (one, many) in _AFTER.items():
        members = [trial for other, trial in verdicts if other == found]
        if members:
            yield f"{_listed(layer, members, not explained)} {one if len(members) == 1 else many}"
            explained = True


def _or_zero(value: float) -> float:
    return 0.0 if value != value else value


def _listed(layer: LayerStudy, trials: Sequence[Trial], explained: bool) -> str:
    words = [_rho_words(layer, trial, explained and k == 0) for k, trial in enumerate(trials)]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _rho_words(layer: LayerStudy, trial: Trial, explained: bool) -> str:
    """A ranking's name, with its rho and interval in brackets."""
    name = f"'{trial.ranking.name}'"
    if by_construction(trial, layer.effects.output):
        halves = layer.noise.halves_output
        agree = f"; two halves of the sequences agree at rho {halves:.2f}" if halves == halves else ""
        return f"{name} (these very effects: rho is 1 by construction{agree})"
    if trial.output.rho != trial.output.rho:
        return name
    ending = " with the effect of removing a cell" if explained else ""
    random = "; its curves are no better than random orders" if _alone_like_random(layer, trial) else ""
    return f"{name} (rho {interval(trial.output)}{ending}{random})"


def _alone_like_random(layer: LayerStudy, trial: Trial) -> bool:
    """Whether it fails against random orders where others do not, though its rho is good enough to expect more."""
    others = any(not like_random(layer, other) for other in layer.trials)
    return others and like_random(layer, trial) and trial.output.low > 0


def _random_words(layer: LayerStudy) -> str:
    if not all(like_random(layer, trial) for trial in layer.trials):
        return ""
    gap = max(trial.gap for trial in layer.trials)
    lead = "No ranking's order of removal beats random ones"
    return f" {lead} (best AUC gap {gap:.2f}; two random orders lie up to {layer.noise.order_gap:.2f} apart)."


def interval(found: Correlation) -> str:
    """``0.78 [0.65, 0.87]``; ``-`` where rho is not defined."""
    if found.rho != found.rho:
        return "-"
    ends = f" [{found.low:.2f}, {found.high:.2f}]" if found.low == found.low else ""
    return f"{found.rho:.2f}{ends}"


def harmless(layer: LayerStudy) -> Tensor:
    """Cells ``(H,)`` whose removal changes the output by under 0.001 of its variance; False where not measured."""
    return layer.effects.output < HARMLESS * layer.variance


def hardest(layer: LayerStudy) -> tuple[Judged, Tensor]:
    """By what cells are ordered, and the measured ones ``(<=H,)`` in that order, the most harmful to remove first.

    By the score's effect where one was measured, else by the output's.
    """
    by: Judged = "output" if bool(torch.isnan(layer.effects.score).all()) else "score"
    values = layer.effects.score if by == "score" else layer.effects.output
    order = (-values).argsort(stable=True)  # NaN last
    return by, order[: int((~torch.isnan(values)).sum())]


def with_ends(layer: LayerStudy, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of cells removed ``(K',)`` and performance kept ``(..., K')``: from none removed to all, 1 to 0."""
    counts, kept = layer.counts.double(), kept.double()
    if counts.numel() == 0 or counts[0] > 0:
        counts, kept = torch.cat([counts.new_zeros(1), counts]), _padded(kept, 1.0, first=True)
    if counts[-1] < layer.hidden_size:
        counts, kept = torch.cat([counts, counts.new_full((1,), layer.hidden_size)]), _padded(kept, 0.0, first=False)
    return counts / layer.hidden_size, kept


def _padded(kept: Tensor, value: float, first: bool) -> Tensor:
    """One more column; NaN in the rows that are NaN throughout."""
    empty = torch.isnan(kept).all(-1, keepdim=True) & torch.tensor(kept.shape[-1] > 0)
    column = torch.where(empty, torch.nan, torch.full_like(empty, value, dtype=kept.dtype))
    return torch.cat([column, kept] if first else [kept, column], dim=-1)


def random_band(layer: LayerStudy) -> Tensor:
    """p2.5, p50 and p97.5 of the random orders' curves ``(3, K')``, at the shares of `with_ends`; NaN without any."""
    shares, curves = with_ends(layer, layer.random)
    if len(curves) == 0:
        return curves.new_full((3, len(shares)), torch.nan)
    return curves.nanquantile(curves.new_tensor([0.025, 0.5, 0.975]), dim=0)
