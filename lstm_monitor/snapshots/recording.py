"""What recurrent modules received: calls joined in time, batches joined into sequences."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_STEPS = 1024
LEAST_SEQUENCES = 4
HELD_OUT_STEPS = 1024


@dataclass(frozen=True, eq=False)
class Recording:
    """What one module received: ``inputs (N, T, I)``, ``mask (N, T)``, ``lengths (N,)`` if any differ or were packed.

    ``h0`` and ``c0`` are as the module takes them, ``(layers * directions, N, size)``, zero where none was given;
    None where none ever was. ``outputs (n, T, W)``: what a registered module put out for the first sequences.
    ``returned (N, T, W)``: what one of torch's own put out for all of them, where it was kept and can be relied on.
    """

    inputs: Tensor
    mask: Tensor
    lengths: Tensor | None
    h0: Tensor | None
    c0: Tensor | None
    outputs: Tensor | None = None
    returned: Tensor | None = None


@dataclass(eq=False)
class RecordedCall:
    """One call of a module, or several that carry their state on: pieces ``(N, t, I)``, of which `count` rows are used.

    `called` is the (N, T) that the module received; T is cut to 1,024 `steps`.
    """

    pieces: list[Tensor]
    steps: int
    lengths: Tensor | None
    state: tuple[Tensor, ...]
    final: tuple[Tensor, ...]
    count: int
    called: tuple[int, int]
    mask: Tensor | None = None
    outputs: list[Tensor] = field(default_factory=list)
    returned: list[Tensor] = field(default_factory=list)

    @property
    def inputs(self) -> Tensor:
        """``(N, T, I)`` of the sequences that are used."""
        return torch.cat([piece[: self.count] for piece in self.pieces], dim=1)


def copied(states: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """States of the first `count` sequences."""
    return tuple(state[:, :count].clone() for state in states)


def continues(before: RecordedCall, call: RecordedCall) -> bool:
    """Whether a call carries on the state of the one before."""
    if not call.state or before.lengths is not None or call.lengths is not None:
        return False
    count = before.count
    return all(
        now.shape[1] >= count and any(torch.equal(now[:, :count], then[:, :count]) for then in before.final)
        for now in call.state
    )


def append(before: RecordedCall, call: RecordedCall, max_steps: int) -> None:
    """Join a call that carries the state on; of a growing sequence fewer rows are kept."""
    piece = call.pieces[0][: before.count, : MAX_STEPS - before.steps].to(before.pieces[0], copy=True)
    before.pieces.append(piece)
    before.outputs += [part[:, : piece.shape[1]] for part in call.outputs]
    before.returned += [part[: before.count, : piece.shape[1]].clone() for part in call.returned]
    before.steps += piece.shape[1]
    before.final = copied(call.final, before.count)
    before.called = (before.called[0], before.called[1] + call.called[1])
    before.count = min(before.count, max(max_steps // before.steps, LEAST_SEQUENCES))


def masked(call: RecordedCall, mask: Tensor | None) -> RecordedCall:
    """The call with the steps of `mask` that count; ValueError where it is for another shape."""
    if mask is not None:
        if tuple(mask.shape) != call.called:
            raise ValueError(
                f"mask (from mask= or lengths=) has shape {tuple(mask.shape)}, but a layer received {call.called[0]} "
                f"sequences of {call.called[1]} steps, so it is unknown which of them are padding; select the layers "
                "that the mask is for with layers=, or give the model packed sequences"
            )
        call.mask = mask[: call.count, : call.steps].to(call.pieces[0].device, torch.bool)
    return call


def joined(calls: list[RecordedCall]) -> Recording:
    """Calls as one recording, padded to the same number of steps."""
    steps = max(call.steps for call in calls)
    ragged = any(call.lengths is not None or call.steps != steps for call in calls)
    lengths = torch.cat([_lengths(call) for call in calls])
    valid = torch.arange(steps, device=lengths.device) < lengths[:, None]
    masks = [_pad(valid.new_ones(call.count, call.steps) if call.mask is None else call.mask, steps) for call in calls]
    return Recording(
        inputs=torch.cat([_pad(call.inputs, steps) for call in calls]),
        mask=valid & torch.cat(masks),
        lengths=lengths if ragged else None,
        h0=_join_states(calls, 0),
        c0=_join_states(calls, 1),
        outputs=_first_outputs(calls[0]),
        returned=_all_returned(calls, steps),
    )


def _all_returned(calls: list[RecordedCall], steps: int) -> Tensor | None:
    """``(N, T, W)``: what the module returned for all that was kept of its calls; None where some is not known."""
    if any(len(call.returned) != len(call.pieces) for call in calls):
        return None
    whole = [torch.cat([piece[: call.count] for piece in call.returned], dim=1) for call in calls]
    return torch.cat([_pad(values, steps) for values in whole])


def _first_outputs(call: RecordedCall) -> Tensor | None:
    """What a registered module put out for the first sequences that were kept, if it did at every step."""
    if len(call.outputs) != len(call.pieces):
        return None
    rows = min(len(part) for part in call.outputs)
    return torch.cat([part[: min(rows, call.count)] for part in call.outputs], dim=1)


def _lengths(call: RecordedCall) -> Tensor:
    full = torch.full((call.count,), call.steps, device=call.pieces[0].device)
    return full if call.lengths is None else call.lengths[: call.count].clamp(max=call.steps).to(full)


def _pad(values: Tensor, steps: int) -> Tensor:
    missing = values.new_zeros(values.shape[0], steps - values.shape[1], *values.shape[2:])
    return torch.cat([values, missing], dim=1)


def _join_states(calls: list[RecordedCall], which: int) -> Tensor | None:
    given = next((call.state[which] for call in calls if len(call.state) > which), None)
    if given is None:
        return None
    states = [
        call.state[which][:, : call.count].to(given)
        if len(call.state) > which
        else given.new_zeros(given.shape[0], call.count, *given.shape[2:])
        for call in calls
    ]
    return torch.cat(states, dim=1)
