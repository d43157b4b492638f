"""Reading checkpoints of any layout without executing anything in them."""

from converter.checkpoint.dtypes import DTYPES, DType
from converter.checkpoint.index import Checkpoint, TensorInfo

__all__ = ["DTYPES", "Checkpoint", "DType", "TensorInfo"]
