"""Where datasets come from.

formats.py     the layouts by dataset name, where each is looked for, how it is obtained
listing.py     Source, Contents, Listing: a dataset before it is decoded
places.py      a local folder, or one behind s3:// or gs://
tars.py        WebDataset tars
parquet.py     parquet files in the Hugging Face layout
saved.py       what `datasets` saved to disk
table.py       pictures beside a CSV or parquet of their labels
tensors.py     .npz, .npy and .safetensors
prepared.py    shards that jobs.prepare wrote
bundled.py     scikit-learn's digits, torchvision's downloads, generated images
decode.py      picture files to uint8 arrays, in threads
"""
