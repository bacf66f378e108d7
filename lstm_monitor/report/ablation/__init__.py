"""What an ablation study found: its records, and how they look."""
