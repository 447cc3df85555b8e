import pytest

from sae_cli.config.schema import CacheConfig, Config, ModelConfig, SourceConfig, TextConfig
from sae_cli.sources.language_model import LanguageModel

HOOK = "blocks.0.hook_out"
LAST = "blocks.1.hook_out"


def config_of(dtype="bfloat16", hooks=(), text_changes=None, **changes):
    settings = {"name": "tiny", "path": "bundled:tiny", "hook": HOOK, "context": 32, "batch": 4} | changes
    return Config(
        model=ModelConfig(**settings),
        source=SourceConfig(kind="language_model"),
        text=TextConfig(name="wiki", path="bundled:wiki", max_documents=25, **(text_changes or {})),
        cache=CacheConfig(dtype=dtype, hooks=list(hooks)),
    )


@pytest.fixture(scope="package")
def tiny():
    return LanguageModel(config_of().model, "cpu")
