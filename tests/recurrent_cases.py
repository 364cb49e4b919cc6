"""Models with recurrent layers and cells, for the table of cases."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Tagger(nn.Module):
    """Two recurrent layers in a stack; both their outputs and their last states are read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 3, padding=1)
        self.rnn = nn.LSTM(5, 4, num_layers=2, batch_first=True)
        self.tags, self.whole = nn.Linear(4, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (hidden, cells) = self.rnn(self.conv(x).relu().transpose(1, 2))
        return self.tags(y), self.whole(torch.cat((hidden[-1], cells[0].tanh()), 1))


class BothDirections(nn.Module):
    """A stack that runs in both directions, without biases, behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 5)
        self.rnn = nn.GRU(5, 4, num_layers=2, bidirectional=True, bias=False, batch_first=True)
        self.norm, self.again = nn.BatchNorm1d(8), nn.RNN(8, 3)
        self.head = nn.Linear(3, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.rnn(self.embedding(tokens))
        y = self.norm(y.transpose(1, 2)).permute(2, 0, 1)
        return self.head(self.again(y)[1].squeeze(0))


class Projected(nn.Module):
    """An LSTM whose outputs are projected; its width is that of the projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 5)
        self.rnn = nn.LSTM(5, 20, num_layers=2, proj_size=3, bidirectional=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.stem(x).transpose(0, 1))
        return self.head(y).transpose(0, 1)


class Steps(nn.Module):
    """Cells in a loop, whose states are fed back and begin as zeros of the cells' own sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden_size = nn.Linear(3, 5), 4
        self.lstm, self.gru, self.plain = nn.LSTMCell(5, 4), nn.GRUCell(4, 6), nn.RNNCell(6, 5)
        self.head = nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype)
        state = hidden, torch.zeros_like(hidden)
        second = x.new_zeros(x.shape[0], self.gru.hidden_size)
        third, outputs = None, []
        for step in range(x.shape[1]):
            state = self.lstm(self.stem(x[:, step]), state)
            second = self.gru(state[0], second)
            third = self.plain(second, third)
            outputs.append(self.head(torch.cat((second, third), 1)))
        return torch.stack(outputs, 1)


class Translator(nn.Module):
    """The states of one LSTM are the first of another, which grows along."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(11, 5), nn.Embedding(11, 3)
        self.encoder, self.decoder = nn.LSTM(5, 4), nn.LSTM(3, 4)
        self.head = nn.Linear(4, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        _, states = self.encoder(self.source(tokens.T))
        y, _ = self.decoder(self.target(tokens.flip(1).T), hx=states)
        return self.head(y.transpose(0, 1))


class OfSeveralLengths(nn.Module):
    """Sequences of several lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 5)
        self.first = nn.GRU(5, 4, batch_first=True, bidirectional=True)
        self.second, self.head = nn.LSTM(8, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        lengths = [2 + n % 4 for n in range(x.shape[0])]
        packed = pack_padded_sequence(self.stem(x), lengths, True, enforce_sorted=False)
        packed, _ = self.second(self.first(packed)[0])
        y, _ = pad_packed_sequence(packed, batch_first=True, total_length=x.shape[1])
        return self.head(y).tanh()
