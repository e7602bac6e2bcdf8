"""What a task calls its things, so that tables and pictures speak the reader's language."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What the reward and its unit, one site, and a design are called.

    `before_start_codon`: designs are nucleotides directly followed by a start codon.
    """

    reward: str = "reward"
    unit: str = ""
    site: str = "site"
    design: str = "design"
    before_start_codon: bool = False

    @property
    def reward_axis(self) -> str:
        """Label of a reward axis."""
        return f"{self.reward} ({self.unit})" if self.unit else self.reward


_KNOWN = {
    "utr": Words(
        reward="mean ribosome load",
        unit="ribosomes per mRNA",
        site="nucleotide",
        design="5′UTR",
        before_start_codon=True,
    )
}


def words_of(task: str) -> Words:
    """The words of a task by its name; general ones for a task that is not listed here."""
    return _KNOWN.get(task, Words())
