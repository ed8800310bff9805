"""Images: found, decoded once, split, transformed, augmented.

config.py      DataConfig: which dataset, where it is, how it is split
load.py        load(config): its training, validation and test images, decoded into the cache folder
survey.py      what a dataset is made of, before it is decoded
remarks.py     what is wrong with it
images.py      Images and Pixels: labelled rows of mapped files; Spec, Splits, statistics
builder.py     the cache folder: one process builds an entry, the others wait
stream.py      blocks of a planned order, read ahead from disk
transform.py   Transform: from pixels to network space and back (normalise, zca, none)
augment.py     Augment: the siamese augmentations (DSA, IDC)
jpeg_files.py  baseline JPEG files: written from quantised coefficients, read back
jpeg_stream.py the coefficients of a whole set as one stream, shorter than files
jpeg_sets.py   a set of JPEG images as the tensors of one file
own.py         images of one's own: tensors, a folder, Datasets
prepare.py     a dataset decoded into shards that any number of machines read
sources/       where datasets come from: folders, tars, parquet, packages
"""
