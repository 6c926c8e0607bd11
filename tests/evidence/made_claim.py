"""A claim as tests of the rules ask it: the hybrid is better than the ViT."""

from mvl.evidence.claims_evidence import Claim
from mvl.evidence.topics import HYBRID, VIT

CLAIM = Claim(
    id="a",
    paper="P1",
    place="somewhere",
    confidence="A",
    short="short",
    claim="claim",
    reported=(),
    chapter="02_llm_hybrid",
    studies=("hippocampus",),
    rule="gain",
    contrasts=((HYBRID, VIT),),
    support="support",
    takes="takes",
)
