"""Networks of every make, the same on the host and on the device; and sequences for them."""

import copy

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.cuda.place import DEVICE, sized

FEATURES = 5
CELLS = sized(64, 6)
STEPS = sized(40, 12)


class Network(nn.Module):
    """A recurrent module and a linear one that reads its last output."""

    def __init__(self, rnn: nn.Module, packed: bool = False) -> None:
        super().__init__()
        self.rnn, self.packed = rnn, packed
        width = (1 + rnn.bidirectional) * (rnn.proj_size or rnn.hidden_size)
        self.head = nn.Linear(width, 3)

    def forward(self, x, lengths=None):
        if lengths is not None:
            x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        out = self.rnn(x)[0]
        if lengths is not None:
            out = pad_packed_sequence(out, batch_first=True)[0]
        return self.head(out[:, -1])


class Stepping(nn.Module):
    """A cell that is called once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRUCell(FEATURES, CELLS), nn.Linear(CELLS, 3)

    def forward(self, x):
        h = None
        for step in x.unbind(1):
            h = self.rnn(step, h)
        return self.head(h)


def _rnn(kind, **options):
    return lambda: Network(getattr(nn, kind)(FEATURES, CELLS, batch_first=True, **options))


MAKES = {
    "LSTM": _rnn("LSTM"),
    "GRU": _rnn("GRU"),
    "RNN, tanh": _rnn("RNN"),
    "RNN, relu": _rnn("RNN", nonlinearity="relu"),
    "LSTM, two layers": _rnn("LSTM", num_layers=2),
    "GRU, two layers, both directions": _rnn("GRU", num_layers=2, bidirectional=True),
    "LSTM, projection": _rnn("LSTM", proj_size=sized(24, 3)),
    "LSTM, no biases": _rnn("LSTM", bias=False),
    "GRU cell": Stepping,
}


def pair(make):
    """A network on the host, and the same one on the device."""
    torch.manual_seed(0)
    network = MAKES[make]() if isinstance(make, str) else make()
    return network, copy.deepcopy(network).to(DEVICE)


def sequences(seed=0, count=None):
    """``(count, STEPS, FEATURES)``, on the host."""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(count or sized(32, 6), STEPS, FEATURES, generator=made, device="cpu").cumsum(1) / 3


def lengths_of(x):
    """Of every sequence; some are whole."""
    return torch.arange(len(x)) % (x.shape[1] - 4) + 5
