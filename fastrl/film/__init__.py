"""Pictures of games: films, Q-value bars, windows."""
