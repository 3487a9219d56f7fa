"""From scores to pairs: length control, best against worst, and the audit of what came out."""
