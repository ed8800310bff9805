"""A folder behind a URI, with three promises: a name appears whole, transient errors are waited out, one writer.

folder.py      Store: files by name, written whole; claim(name, plan)
files.py       the file systems themselves: local disks and NFS, s3:// and gs:// by pyarrow
patience.py    StoreConfig; which errors are transient, and how long they are waited out
arrays.py      npy, map_npy, npz, npz_names: arrays out of files that others wrote
lock.py        locked(path): one process of a machine at a time
lease.py       Lease: the one writer of a folder, with a heartbeat
"""

from rayd.store.files import beside, within
from rayd.store.folder import Store, differing
from rayd.store.lease import Lease
from rayd.store.patience import StoreConfig, configure

__all__ = ["Lease", "Store", "StoreConfig", "beside", "configure", "differing", "within"]
