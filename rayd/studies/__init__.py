"""Questions asked with whole runs: what one will cost, which dials are best, memories, theory, and what is how fast."""
