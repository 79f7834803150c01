"""Train on documents of your own: `python examples/train.py [DATA [OUTPUT]]`.

DATA is a folder with a sub folder per class, or a CSV with the columns path and label. By default the eight sample
documents are seen twice: far too few to learn from, but enough to show the steps.
"""

import sys

import docvit

data = docvit.read_labelled(sys.argv[1] if len(sys.argv) > 1 else "examples/documents/labels.csv")
output = sys.argv[2] if len(sys.argv) > 2 else "runs/trained"

recipe = docvit.Recipe(
    model="docvit_compact_patch32",
    train=docvit.TrainSettings(epochs=16 if len(sys.argv) > 1 else 2),
)
model, history = docvit.train_documents(data, output, recipe)
print("loss per epoch:", " ".join(f"{record['loss']:.2f}" for record in history))

classifier = docvit.DocumentClassifier.from_pretrained(output)  # or DocumentClassifier(model)
print(classifier(data.paths[0]).scores)
