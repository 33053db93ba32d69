"""Policies that the engine tests sample from."""

from collections.abc import Iterator

import pytest
from transformers import PreTrainedTokenizerFast

from tests.engines.tiny_policy import ARCHITECTURES, make_model, make_tokenizer
from tests.engines.vllm_server.served_policy import ServedPolicy


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def policies(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Folder of one tiny policy for each architecture; `tied` is a Llama whose head is its embedding."""
    folders = {}
    for name in (*ARCHITECTURES, "tied"):
        folder = tmp_path_factory.mktemp(name)
        architecture = "llama" if name == "tied" else name
        make_model(architecture, len(tokenizer), tie=name == "tied").save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="session")
def served_llama(tmp_path_factory: pytest.TempPathFactory, policies: dict[str, str]) -> Iterator[ServedPolicy]:
    """A running vLLM server of the untied Llama; whoever kills it starts it again."""
    server = ServedPolicy(policies["llama"], tmp_path_factory.mktemp("served") / "server.log", offers_gloo=True)
    server.start()
    yield server
    server.kill()
