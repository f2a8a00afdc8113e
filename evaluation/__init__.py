"""Scores from pooled confusion counts, the region table, the band-ratio baseline and the picture of examples."""
