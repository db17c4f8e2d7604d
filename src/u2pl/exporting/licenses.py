"""Under which licence the weights are that an encoder began with, as timm states it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import timm

from u2pl.config import ModelSettings

Verdict = Literal["none", "free", "non-commercial", "own terms", "unknown"]

_FREE = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}

NON_COMMERCIAL = {
    "cc-by-nc-4.0",
    "seer-license",
    "apple-amlr",
    "fair-noncommercial-research-license",
}
"""Licences, by timm's identifiers, that allow no commercial use."""


class EncoderLicense(NamedTuple):
    """What is known of the weights that training began with.

    Attributes:
        name: timm's identifier of the licence, or a few words where there is none.
        verdict: ``none`` where no weights of others are in it; ``own terms`` is a licence that
            has to be read.
        source: where that is said.
    """

    name: str
    verdict: Verdict
    source: str

    @property
    def is_non_commercial(self) -> bool:
        """Whether commercial use is ruled out."""
        return self.verdict == "non-commercial"


def encoder_license(settings: ModelSettings) -> EncoderLicense:
    """The licence of the weights that a run's encoder began with.

    A run that began with a local file says nothing of its origin, so nothing is concluded.

    Args:
        settings: of the run's network.
    """
    if not settings.pretrained or settings.encoder == "small":
        return EncoderLicense("trained from scratch", "none", "the run's settings")
    if settings.weights is not None:
        return EncoderLicense("weights from a local file", "unknown", "the run's settings")
    description = timm.get_pretrained_cfg(settings.encoder, allow_unregistered=True)
    name = getattr(description, "license", None) or "unknown"
    hub = getattr(description, "hf_hub_id", None)
    # timm writes "timm/" where the model's full name follows
    page = f"{hub}{settings.encoder}" if hub and hub.endswith("/") else hub
    source = f"timm {timm.__version__}" + (f", https://huggingface.co/{page}" if page else "")
    if name == "unknown":
        return EncoderLicense(name, "unknown", source)
    if name in _FREE:
        return EncoderLicense(name, "free", source)
    if name in NON_COMMERCIAL:
        return EncoderLicense(name, "non-commercial", source)
    return EncoderLicense(name, "own terms", source)


def license_sentence(license: EncoderLicense) -> str:
    """What a user should know of it, in a sentence."""
    if license.verdict == "none":
        return "The encoder was trained from scratch: no weights of others are in it."
    if license.verdict == "unknown":
        return (
            f"The licence of the encoder's first weights is not known ({license.name}); find it "
            "out before you pass the model on."
        )
    if license.verdict == "free":
        return f"The encoder's first weights are under {license.name} ({license.source})."
    if license.verdict == "own terms":
        return (
            f"The encoder's first weights have terms of their own, {license.name} "
            f"({license.source}); read them before you pass the model on."
        )
    return (
        f"NON-COMMERCIAL: the encoder's first weights are under {license.name} "
        f"({license.source}), which allows no commercial use of what is made from them."
    )
