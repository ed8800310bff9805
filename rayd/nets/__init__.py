"""Networks as pure functions of one parameter vector: differentiable twice, mapped by vmap, compiled."""
