"""Names of systems and models are written in one way in the book's prose."""

from __future__ import annotations

import pytest

from mvl.publish.spelling import NAMES, misspelt


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("the Medvisionllama", "Medvisionllama should be MedVisionLlama"),
        ("a UNet", "UNet should be U-Net"),
        ("LLM4SEG", "LLM4SEG should be LLM4Seg"),
        ("CMU-NeXt", "CMU-NeXt should be CMUNeXt"),
        ("Swin unetr", "Swin unetr should be Swin UNETR"),
    ],
)
def test_another_spelling_is_named_with_the_right_one(words, fault):
    assert fault in list(misspelt([words]))


@pytest.mark.parametrize("words", [*NAMES, "as llm4seg_random; see mvl/models/unet.py"])
def test_a_right_name_or_an_identifier_of_the_project_is_no_fault(words):
    assert list(misspelt([words])) == []
