"""What every method stands on: contract, budget and ledger, exact unrolled gradient, shared frames, the loop."""
