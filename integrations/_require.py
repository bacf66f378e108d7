"""Import an optional library, or say which extra installs it."""

from lstm_monitor.errors import require as require
