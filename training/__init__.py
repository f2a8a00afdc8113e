"""Training: recipe, losses, metrics, schedules, the run and its record."""
