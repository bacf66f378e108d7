"""The scripts beside this file are run by `make test-trainers`, in environments of their own, and not by pytest."""

collect_ignore_glob = ["*.py"]
