"""What a distillation leaves: a folder of tensors, a ledger that counts them, a card that says where they come from.

load: the folder, read and checked
write: its files from a codec, and updates of it
tensors: named tensors as bytes
readme: the README from the card
png: images as bytes
export: parquet, WebDataset, image folders, tensors
"""
