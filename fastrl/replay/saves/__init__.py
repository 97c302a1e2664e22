"""A saved replay: one file, or a folder whose files of frames later saves share."""

from fastrl.replay.saves.save import Save

__all__ = ["Save"]
