"""Where datasets come from: finding them, listing them, decoding them into a cache."""
