"""Direct preference optimization with the trainer of TRL, and the checkpoint that comes out."""
