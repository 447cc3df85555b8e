"""The bundled language model (`tiny/`) and text (`wiki.jsonl.gz`); `tools/train_tiny.py` of a checkout makes both."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
WIKI = Path(__file__).parent / "wiki.jsonl.gz"
