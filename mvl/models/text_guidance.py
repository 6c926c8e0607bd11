"""Text guidance: the task's words, looked up in the language model's own embedding, for the block
to see before the visual tokens."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from mvl.datasets.task import Task
from mvl.weights import families, sources
from mvl.weights.families import SourceError

MODALITIES = {
    "T1w": "T1-weighted MRI",
    "T2w": "T2-weighted MRI",
    "T2": "T2-weighted MRI",
    "US": "ultrasound",
}
"Words for channels and modalities of the registry that a language model would not write so."


def task_words(task: Task) -> str:
    """The task's words: what its registry row says under `prompt`, else structure and modality,
    e.g. `hippocampus, T1-weighted MRI`."""
    if task.prompt:
        return task.prompt
    structure = task.title.split(",")[0].lower()
    named = task.channels[0] if len(task.channels) == 1 else task.modality
    return f"{structure}, {MODALITIES.get(named, MODALITIES.get(task.modality, task.modality))}"


def word_rows(source: str, words: str) -> Float[Tensor, "N D"]:
    """The rows of the model's embedding for the tokens of `words`, scaled as the model scales them;
    no special tokens.

    Differs: learned positions, token types and the norm that BERT and BioGPT add before their layer
    0 are left out.

    Raises:
        SourceError: no words, or the source has no tokenizer or embedding.
    """
    ids = sources.load_tokenizer(source).encode(words, add_special_tokens=False).ids
    if not ids:
        raise SourceError(
            "token_block.text_guidance is on, but the task has no words; give its row in"
            " data/registry.toml a `prompt`"
        )
    return sources.load_rows(source, ids) * families.embedding_scale(sources.load_config(source))
