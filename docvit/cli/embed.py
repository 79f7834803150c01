"""`docvit embed`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docvit.cli import defaults, options
from docvit.cli.app import app
from docvit.cli.output import check_new_file, check_suffix, print_passed_over

if TYPE_CHECKING:
    from docvit.inference.prediction import Embedding

SUFFIXES = (".parquet", ".npy", ".csv")


@app.command()
def embed(
    context: typer.Context,
    paths: options.Paths,
    output: Annotated[Path, typer.Option(metavar="FILE", help=f"File to write: {', '.join(SUFFIXES)}.")],
    model: options.Model = None,
    max_pages: options.MaxPages = 64,
    no_words: options.NoWords = False,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.OCR_PAGES,
    password: options.Password = None,
    timeout: options.Timeout = 60.0,
    workers: options.Workers = 2,
    device: options.Device = None,
) -> None:
    """Write one vector per document.

    Rows are in the order of the files: path, error (empty if the file could be read) and embedding, the model's feature
    of the document. In a .csv the embedding fills the columns 0, 1, ...; a .npy holds embeddings alone, of NaN for a
    file that could not be read.

    Exit status: 0 all files were read, 1 some were not, 2 wrong usage.
    """
    words = options.words_options(context, no_words=no_words, ocr=ocr, ocr_pages=ocr_pages)
    check_suffix(output, SUFFIXES)
    check_new_file(output, "embeddings.csv")
    from tqdm import tqdm

    from docvit.documents.finding import find_documents, find_passed_over
    from docvit.inference.classify import DocumentClassifier

    classifier = DocumentClassifier.from_pretrained(model, device=device)
    found = find_documents(paths)
    reading: dict[str, Any] = {"max_pages": max_pages, "password": password, "timeout": timeout, "workers": workers}
    rows = list(tqdm(classifier.embeddings(found, **reading, **words), total=len(found), unit="doc", disable=None))
    write_embeddings(output, rows, classifier.model.num_features)
    print_passed_over(find_passed_over(paths))
    failed = [row.error for row in rows if row.error is not None]
    for error in failed:
        typer.echo(f"{error.kind}: {error}", err=True)
    typer.echo(f"{output}: {len(rows)} documents, {len(failed)} without a vector")
    if failed:
        raise typer.Exit(1)


def write_embeddings(file: Path, rows: Sequence[Embedding], width: int) -> None:
    """Writes rows as the suffix of `file` says, in one step."""
    import numpy as np

    from docvit.files import replaced

    errors = [None if row.error is None else f"{row.error.kind}: {row.error.message}" for row in rows]
    with replaced(file) as partial:
        if file.suffix.lower() == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            vectors = pa.array([row.vector for row in rows], pa.list_(pa.float32()))
            paths = [row.path.encode(errors="backslashreplace").decode() for row in rows]  # a string of Arrow is UTF-8
            table = {"path": pa.array(paths, pa.string()), "error": pa.array(errors, pa.string())}
            pq.write_table(pa.table(table | {"embedding": vectors}), partial)
        elif file.suffix.lower() == ".npy":
            nothing = np.full(width, np.nan, np.float32)
            stacked = np.stack([nothing if row.vector is None else row.vector for row in rows])
            with partial.open("wb") as opened:
                np.save(opened, stacked)
        else:
            with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
                writer = csv.writer(opened)
                writer.writerow(["path", "error", *range(width)])
                for row, error in zip(rows, errors, strict=True):
                    writer.writerow([row.path, error or "", *([] if row.vector is None else row.vector.tolist())])
