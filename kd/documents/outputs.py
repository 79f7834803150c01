"""The adapter between documents and the engine: what a DocViT gives by name, and what each teacher sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from docvit.data.dataset import DocumentBatch
from docvit.model.docvit import DocViT
from kd.documents.paired import PairedBatch
from kd.teacher import Known, Teacher

OF_PAGES = ("page_features", "page_logits")  # which the model does not name


def document_outputs(model: nn.Module, batch: DocumentBatch, names: Sequence[str]) -> Mapping[str, Tensor]:
    """`kd.teacher.Outputs`: states of `DocViT.forward_intermediates`, and `page_features` and `page_logits` (N, C).

    A page's features are those of a document that consists of this page alone.
    """
    docvit = cast(DocViT, model)
    wanted = {"pages", "document", "logits", *names} - set(OF_PAGES)
    states = dict(docvit.forward_intermediates(batch.sequence, wanted))
    if set(OF_PAGES) & set(names):
        words = None if docvit.words is None else docvit.words.directly(batch.sequence)
        states["page_features"] = docvit.alone(states["pages"], None if words is None else words[1])
        states["page_logits"] = docvit.head(states["page_features"])
    return states


def teacher_view(batch: PairedBatch, number: int) -> PairedBatch:
    """The batch as the teacher of this number sees it."""
    seen = batch.of_teachers[number]
    return batch if seen is None else replace(batch, sequence=seen)


class DocumentTeacher(Teacher):
    """DocViTs, and with them the probabilities that batches bring, as members of one ensemble.

    Probabilities (`kd.documents.probabilities`) are of a document. As its label does, they count for each of its pages,
    among them those that were mixed in from another document of the class.
    """

    def __init__(self, networks: Sequence[nn.Module], *, known: Known | None = None) -> None:
        super().__init__(networks, document_outputs, view=teacher_view, known=known)

    def forward(self, batch: PairedBatch, names: Sequence[str]) -> Mapping[str, Tensor]:
        found = dict(super().forward(batch, names))
        for number, logits in enumerate(batch.given_logits, len(self.networks)):
            given = {"logits": logits, "page_logits": batch.of_pages(logits)}
            found |= {f"{number}.{name}": given[name] for name in names if name in given}
        return found
