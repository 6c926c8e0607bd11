"""What the papers claim and compare, in the words that a chapter prints."""

from __future__ import annotations

from mvl.evidence.arms import caveat
from mvl.evidence.chapter import Chapter
from mvl.evidence.reported import paper_value, paper_values

THEIRS = {
    "qualitative": "the paper shows single slices of ten tasks",
    "version_1": "the abstract's tasks are not stated and its grid is not known",
    "comparators": (
        "the paper averages ten tasks on a resized grid, and ours have other sizes and shorter"
        " training"
    ),
    "llm4seg": (
        "the paper averages its 2-D data sets, 256x256 pixels and 300 epochs, on a random 70/30"
        " split whose 30 % also chose the epoch"
    ),
    "label_noise": "the paper's data sets and rates of damage are not known",
}
"What the paper's number is, by topic, where it is not the average of version 3."


def _claim_version_1() -> str:
    without, block = (
        paper_value("average", s, paper="P1-v1") for s in ("ViT-Baseline", "ViT + LLM block")
    )
    return (
        f"Version 1's abstract reports a mean Dice of **{block:.2f}** with a frozen language layer,"
        f" hybrid attention and multi-scale fusion against **{without:.2f}** for the ViT alone; its"
        " tasks are not stated there, and neither part is reported alone."
    )


def _claim_controls() -> str:
    return (
        "MedVisionLlama v3 is reported better than two trained networks called parameter matched,"
        " ViT-Depth and ViT-MLP (from summaries; the numbers could not be recovered, and the"
        " released sizes are far from a match). Its code has no frozen block with random or"
        " shuffled weights, no hybrid without a block and none without the residual."
    )


def _claim_llm4seg() -> str:
    iou, f1 = (
        paper_value("average", "LLM4Seg (best)", m, "P2") for m in ("iou_percent", "f1_percent")
    )
    skin, thyroid, polyps = (
        paper_values(paper="P2", table="data sets", task=task)[0]
        for task in ("ISIC", "TNSCUI", "Kvasir")
    )
    return (
        f"LLM4Seg's best variant is reported at a mean IoU of **{iou:.1f}** and F1 of **{f1:.1f}**"
        " (percent) over its 2-D data sets, above 11 other networks (from a summary). Of single"
        f" data sets an IoU of {skin:.1f} on ISIC and {thyroid:.1f} on TNSCUI and an F1 of"
        f" {polyps:.1f} on Kvasir were recovered, and none of BUSI. Its released code can run the"
        " frozen random layer; no result of it was found."
    )


def _claim_comparators() -> str:
    peers = ("UNETR", "UNet++", "nnU-Net", "Swin-UNet")
    ours = paper_value("comparators", "MedVisionLlama")
    theirs = ", ".join(f"{paper_value('comparators', peer):.2f} ({peer})" for peer in peers)
    return (
        f"MedVisionLlama v3 reports a mean test Dice of **{ours:.2f}** against"
        f" {theirs}, over the ten Decathlon tasks."
        " How the other networks were trained is not stated."
    )


def _claim_label_noise() -> str:
    return (
        "A summary says that LLM4Seg loses less than its CNN when training labels are damaged; how"
        " they were damaged, the rates and the numbers could not be recovered. A frozen layer of"
        " random weights under the same damage is not reported."
    )


def _claim_qualitative() -> str:
    return (
        "MedVisionLlama v3 shows one slice of each task and one row of activation maps per arm, and"
        " is summarised as giving smoother masks and sharper maps. No number for either was found,"
        " nor how the slices were chosen."
    )


OTHER_CLAIMS = {
    "version_1": _claim_version_1,
    "controls": _claim_controls,
    "llm4seg": _claim_llm4seg,
    "comparators": _claim_comparators,
    "label_noise": _claim_label_noise,
    "qualitative": _claim_qualitative,
}


def claim(topic: str) -> str:
    """What the paper reports on the chapter's subject, numbers from `data/paper_reported.csv`."""
    vit, mvl = (paper_value("average", s) for s in ("ViT-Baseline", "MedVisionLlama"))
    if topic == "baseline":
        return (
            f"MedVisionLlama v3 reports a mean test Dice of **{vit:.2f}** for its ViT-Baseline,"
            " averaged over the ten Decathlon tasks."
        )
    if topic == "llm_hybrid":
        better, significant = (
            paper_value("comparisons", "MedVisionLlama", f"comparisons_{k}_of_60")
            for k in ("better", "p_below_0.05")
        )
        return (
            f"MedVisionLlama v3 reports a mean test Dice of **{mvl:.2f}** with a frozen Llama block"
            f" against **{vit:.2f}** for its ViT-Baseline, over the ten Decathlon tasks; better in"
            f" {better:.0f} of 60 comparisons, {significant:.0f} of them with p < 0.05. No frozen"
            " block with *random* weights is reported."
        )
    if topic == "few_shot":
        arms = ("ViT-Baseline", "MedVisionLlama")
        ten, thirty = (
            [paper_value(f"few-shot {share} %", arm, "val_dice") for arm in arms]
            for share in (10, 30)
        )
        return (
            "MedVisionLlama v3's few-shot figure ends, at epoch 100, at a validation Dice of"
            f" **{ten[1]:.2f}** against {ten[0]:.2f} (baseline) with 10 % of the data, and"
            f" **{thirty[1]:.2f}** against {thirty[0]:.2f} with 30 % (read from the figure's"
            " pixels; which tasks it averages is not stated)."
        )
    if topic in OTHER_CLAIMS:
        return OTHER_CLAIMS[topic]()
    return (
        "MedVisionLlama v3 says that LoRA mappers beat plain linear ones with fewer trainable"
        " parameters, and that rank 4 is the best trade-off. Its numbers for this ablation could"
        " not be recovered."
    )


def compare(chapter: Chapter) -> str:
    """The paper's number and ours in one table; words only where the study is a smoke study."""
    words = claim(chapter.topic)
    if chapter.smoke:
        return (
            f"{words}\n\n*The study shown here, `{chapter.study}`, is not set beside these numbers"
            f" ({caveat(chapter.tasks)}).*"
        )
    theirs = THEIRS.get(chapter.topic, "the paper averages ten tasks on a resized grid")
    return (
        f"{words}\n\n*Not the same quantity as below: {theirs}; this study has"
        f" {', '.join(chapter.tasks)} on the native grid.*"
    )
