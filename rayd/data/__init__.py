"""Images: found in any layout, decoded once into a cache, split by plan, transformed into network space, augmented."""
