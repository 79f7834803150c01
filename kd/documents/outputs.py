"""The adapter between documents and the engine: what a DocViT gives by name, and what each teacher sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from docvit.data.dataset import DocumentBatch
from docvit.model.docvit import DocViT
from docvit.model.tokens import token_indices
from kd.documents.paired import PairedBatch
from kd.teacher import Teacher, TeacherCache

OF_PAGES = ("page_features", "page_logits")

UNNAMED = ("patches", *OF_PAGES)  # by the model


def document_outputs(model: nn.Module, batch: DocumentBatch, names: Sequence[str]) -> Mapping[str, Tensor]:
    """`kd.teacher.Outputs`: states of `DocViT.forward_intermediates`, and what follows from them.

    `patches` (T, D) are patch tokens after the last block, normalised; `page_features` (N, F) and `page_logits` (N, C)
    are of pages. A page's features are those of a document that consists of this page alone.
    """
    docvit = cast(DocViT, model)
    wanted = {"pages", "document", "logits", *names} - set(UNNAMED)
    last = f"blocks.{len(docvit.blocks) - 1}" if docvit.blocks else "embed"
    states = dict(docvit.forward_intermediates(batch.sequence, wanted | ({last} if "patches" in names else set())))
    if "patches" in names:
        indices = token_indices(batch.sequence, docvit.num_prefix_tokens).to(states[last].device)
        states["patches"] = docvit.norm(states[last].index_select(0, indices))
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
    """DocViTs, and with them the probabilities that batches bring, as members of one ensemble; and the maps they bring.

    Probabilities (`kd.documents.probabilities`) are of a document. As its label does, they count for each of its pages,
    among them those that were mixed in from another document of the class.

    Args:
        cache: is given the outputs that batches do not bring from it already.
    """

    def __init__(self, networks: Sequence[nn.Module], *, cache: TeacherCache | None = None) -> None:
        super().__init__(networks, document_outputs, view=teacher_view, known=lambda batch: batch.teacher_outputs)
        self.cache = cache

    def forward(self, batch: PairedBatch, names: Sequence[str]) -> Mapping[str, Tensor]:
        maps = {f"0.{name}": value for name, value in batch.given_maps.items() if name in names}
        found = dict(super().forward(batch, [name for name in names if name not in batch.given_maps]))
        if self.cache is not None and found and batch.teacher_outputs is None:
            self.cache.write(batch.key, found)
        for number, logits in enumerate(batch.given_logits, len(self.networks)):
            given = {"logits": logits, "page_logits": batch.of_pages(logits)}
            found |= {f"{number}.{name}": given[name] for name in names if name in given}
        return found | maps
