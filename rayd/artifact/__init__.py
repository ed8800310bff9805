"""What a distillation leaves: a folder of tensors, a ledger that counts them, a card that says where they come from."""
