"""What a distillation leaves: a folder of tensors, a ledger that counts them, a card that says where they come from.

load: the folder, read and checked
fields: what its JSON files hold, field by field
write: its files from a codec, and updates of it
card: the card sealed over the files, and the README from it
png: images as bytes
view: as text, and as HTML for a notebook
export: parquet, WebDataset, image folders, tensors
zoo: finished sets by name
"""
