"""Cells that are no nn.LSTM, nn.GRU or nn.RNN: registered by their class, then watched like torch's own."""
