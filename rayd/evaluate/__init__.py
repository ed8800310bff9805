"""How a set of images is scored: recipes, batches, fresh networks trained and tested, coresets, DD-Ranking."""
