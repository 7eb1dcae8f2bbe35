"""Data sets: lists of images, image files, augmentation and batches.

* `lists`: the records of a data set; fingerprints, splits, replacing list files.
* `readers`: formats of data sets that are read as they are.
* `converters`: formats that are converted to lists.
* `images`: which files are decoded, and how; pre-processing; the cache of decoded images.
* `augment`: training augmentation.
* `samplers`: which images form a batch.
* `loading`: batches, decoded ahead by threads or processes.
* `findings`: what is wrong with a data set.
"""
