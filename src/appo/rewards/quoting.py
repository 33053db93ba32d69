"""What a policy writes, put into a prompt for another model such that it stays what it is."""

from __future__ import annotations

import json
import re
import unicodedata

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_TAG = re.compile(r"([<\N{FULLWIDTH LESS-THAN SIGN}])(?=[|\N{FULLWIDTH VERTICAL LINE}/A-Za-z_])|(\[)(?=/?[A-Z_]+\])")
"""What begins a special token of some family of models: ``<|im_end|>``, ``</s>``, ``<start_of_turn>``, ``[INST]``."""

_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"


def quoted(text: str) -> str:
    """A text as a JSON string, in one line, whatever it holds.

    Special tokens of the reader's are parted by a space, as many servers take them out of any text; control characters,
    invisible ones and halves of surrogate pairs are left out.

    Args:
        text: of whom one does not trust.
    """
    lines = _LINE_ENDS.sub("\n", text)
    visible = "".join(filter(_is_kept, lines))
    return json.dumps(_TAG.sub(r"\1\2 ", visible), ensure_ascii=False)


def _is_kept(character: str) -> bool:
    return character in "\n\t" or character in _JOINERS or not unicodedata.category(character).startswith("C")
