"""What `make gpu` runs: is all of it right on a GPU, is the training untouched there, and how fast is it?

In a dry run what ``LSTM_MONITOR_WITHOUT`` names cannot be imported, and looks as if it were not installed.
"""

import os
import sys

sys.modules.update(dict.fromkeys(os.environ.get("LSTM_MONITOR_WITHOUT", "").split()))  # type: ignore[arg-type]
