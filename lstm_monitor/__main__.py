"""``python -m lstm_monitor`` is the command ``lstm-monitor``."""

from lstm_monitor.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
