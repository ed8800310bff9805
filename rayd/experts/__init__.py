"""Networks trained on the real images, and the sharded buffer that keeps their parameters at the end of each epoch."""
