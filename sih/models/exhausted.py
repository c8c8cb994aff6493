"""Whether an error means that memory ran out, whoever noticed it first."""

import errno

import torch

# What says so in words alone: the C library and Python's threads, C++, and oneDNN.
_WORDS = ("not enough memory", "allocate memory", "out of memory", "start new thread", "std::bad_alloc",
          "could not create a primitive")  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether something did not fit into memory: accelerators raise a class of torch's own, a CPU gives only words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return any(words in str(error).lower() for words in _WORDS)
