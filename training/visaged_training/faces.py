"""`faces`: aligned luminance of every face with what the identity encoder's teacher says of it, as one .npz."""

from .identity import faces_arguments as arguments
from .identity import prepare as run

__all__ = ["arguments", "run"]
