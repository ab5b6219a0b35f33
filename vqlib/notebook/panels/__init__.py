"""The interactive panels of notebooks 2, 5 and 8: make one, e.g. ``SamplingStudio()``, and show its ``widget``.

Each file holds what one panel computes and what it draws, as functions that need no front end, and then its controls.
"""

from vqlib.notebook.panels.caption_studio import CaptionStudio
from vqlib.notebook.panels.code_editor import CodeEditor
from vqlib.notebook.panels.completion import Completion
from vqlib.notebook.panels.quantizer_walk import QuantizerWalk
from vqlib.notebook.panels.sampling_studio import SamplingStudio
from vqlib.notebook.panels.token_by_token import TokenByToken

__all__ = ["CaptionStudio", "CodeEditor", "Completion", "QuantizerWalk", "SamplingStudio", "TokenByToken"]
