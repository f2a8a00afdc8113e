"""Scores from pooled confusion counts, the region table, the band-ratio baseline, the picture of examples."""
