"""Why a model could not be loaded, in one sentence that names the right place."""

from patchscopes.model.failures import explain_failure
from patchscopes.model.sources import Source


def test_a_gguf_file_is_not_blamed_on_the_hub():
    source = Source(kind="gguf", place="/models/mine.gguf")
    said = explain_failure("mine.gguf", source, OSError(28, "No space left on device"))
    assert "/models/mine.gguf could not be unpacked" in said
    assert "No space left on device" in said
    assert "PATCHSCOPES_CACHE" in said
    assert "hub" not in said
