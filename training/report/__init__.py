"""What a training run shows: its page, and where it stands."""
