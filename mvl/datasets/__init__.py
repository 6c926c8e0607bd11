"""Data: what the tasks are, how they are fetched and verified, how they are split, and how a network sees them."""
