"""A reader of named tensors in torch.distributed.checkpoint directories.

It works in one process, without a process group. Shards are put together, whatever the number of
ranks that wrote them. The index of such a checkpoint (`.metadata`) is a pickle. It is read by an
unpickler that knows only the few classes of an index, so that no file can run code.
"""

import pickle
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from worker.models.errors import ModelFormatError
from worker.models.reading import COPY_AGAIN, reading, reason_of, unusable

INDEX_FILE = ".metadata"

_INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath", "WindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath"},
}


class _IndexUnpickler(pickle.Unpickler):
    """An unpickler that loads no class but those of an index."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _INDEX_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no index needs")


class _Reader(FileSystemReader):
    """A reader whose index comes from `_IndexUnpickler`."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the index. Raise ModelFormatError where it is missing or cannot be read."""
        file = Path(self.path) / INDEX_FILE
        try:
            stream = file.open("rb")
        except FileNotFoundError:
            problem = f"{file.parent} has no {INDEX_FILE}: it was not saved to the end"
            raise ModelFormatError(f"{problem}; copy it again, or take an earlier epoch.") from None
        except OSError as error:
            raise unusable(file, error) from error

        with stream, reading(f"{file} is not the index of a checkpoint and"):
            index = _IndexUnpickler(stream).load()
        if not isinstance(index, Metadata):
            problem = f"{file} is not the index of a checkpoint: it holds a {type(index).__name__}"
            raise ModelFormatError(f"{problem}; {COPY_AGAIN}.")
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


def tensor_names(directory: Path) -> frozenset[str]:
    """Return the names of all tensors in the checkpoint, with nested keys joined by dots.

    Raise ModelFormatError where the index cannot be read.
    """
    index = _Reader(directory).read_metadata()
    names = set()
    for name, entry in index.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            names.add(name)
    return frozenset(names)


def read_named(directory: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Return the named tensors, whole, on the CPU, in the dtype in which they were saved.

    Nothing else is read. `names` must be among `tensor_names`. Raise ModelFormatError when a shard
    is missing or damaged.
    """
    reader = _Reader(directory)
    entries = reader.read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {}
    for name in names:
        entry = entries[name]
        assert isinstance(entry, TensorStorageMetadata)
        tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype)

    try:
        with warnings.catch_warnings(), reading(directory):
            # The lack of a process group is intended.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(tensors, storage_reader=reader, no_dist=True)
    # CheckpointException is no subclass of Exception, so `reading` does not turn it.
    except CheckpointException as error:
        causes = "; ".join(reason_of(cause) for cause, _ in error.failures.values())
        raise ModelFormatError(f"{directory} cannot be read: {causes}; {COPY_AGAIN}.") from error
    return tensors
