"""A run: its options, its plan, its steps in order, its progress."""
