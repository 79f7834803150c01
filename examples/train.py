"""Train a small DocViT on a folder of your own: run `python examples/train.py [DATA [OUTPUT]]`.

DATA holds one sub folder a class, or is a CSV with `path,label`; OUTPUT gets the model, runs/model by default. Without
arguments a toy is trained for two epochs on the documents beside this script, far too few to learn from: it only shows
the steps, and is not kept.
"""

import csv
import sys
import tempfile
from pathlib import Path

import docvit
from docvit.data.labels import read_labelled
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe
from docvit.training.supervised import train_documents


def toy_data(folder: Path) -> Path:
    """A CSV over the example documents, each named after its class."""
    documents = sorted((Path(__file__).parent / "documents").resolve().glob("*.pdf"))
    rows = [(str(p), p.stem) for p in documents if p.stem != "broken"]
    with (folder / "toy.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return folder / "toy.csv"


with tempfile.TemporaryDirectory() as scratch:
    toy = len(sys.argv) < 2
    data = read_labelled(toy_data(Path(scratch)) if toy else sys.argv[1])
    output = Path(scratch) / "model" if toy else Path(sys.argv[2] if len(sys.argv) > 2 else "runs/model")
    settings = {"depth": 2, "page_size": 128, "scopes": "document"} if toy else {}
    recipe = Recipe(settings=settings, train=TrainSettings(epochs=2 if toy else 20))
    _, history = train_documents(data, output, recipe)
    print("loss:", " ".join(f"{record['loss']:.2f}" for record in history))
    classifier = docvit.DocumentClassifier.from_pretrained(output)
    print("classes:", ", ".join(classifier.classes))
