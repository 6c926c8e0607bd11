"""Names and folders of a person taken out of a text before it is recorded or shown."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

from mvl.core.config import ROOT


def redact(text: str | Path) -> str:
    """A path or message without this machine's folders (relative to the clone, else to a variable,
    else the last part), name and tokens."""
    text = str(text)
    known = {
        str(ROOT): ".",
        os.environ.get("MVL_DATA", ""): "$MVL_DATA",
        str(Path.home()): "~",
        sys.prefix: "$VENV",
    }
    for folder in sorted(filter(lambda folder: len(folder) > 1, known), key=len, reverse=True):
        text = text.replace(folder, known[folder])
    for secret in (os.environ.get("HF_TOKEN", ""), os.environ.get("HUGGING_FACE_HUB_TOKEN", "")):
        text = text.replace(secret, "$HF_TOKEN") if len(secret) > 4 else text
    # one that is a plain word would take words out of sentences
    if re.search(r"[\d.-]", host := platform.node()) and len(host) > 3:
        text = re.sub(rf"\b{re.escape(host)}\b", "HOST", text)
    text = re.sub(r"\bhf_[A-Za-z0-9]{8,}", "$HF_TOKEN", text)
    if " " in text:  # a message: of each absolute path that is left, the last part
        text = re.sub(r"(?<![\w.:/~$])/(?:[\w.+@=-]+/)+", ".../", text)
    return f".../{Path(text).name}" if text.startswith("/") else text
