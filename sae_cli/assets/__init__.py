"""The bundled language model (`tiny/`), its text (`wiki.jsonl.gz`) and the script that makes both."""

from pathlib import Path

TINY = Path(__file__).parent / "tiny"
WIKI = Path(__file__).parent / "wiki.jsonl.gz"
