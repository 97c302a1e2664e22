"""Games and environments as one Step record."""
