"""Publishing a converted model: nothing is sent before the folder is known to be right, then it is one commit."""

from converter.publish.commit import Publication, publish
from converter.publish.folder import LocalFile, read_folder, weights_size

__all__ = ["LocalFile", "Publication", "publish", "read_folder", "weights_size"]
