"""Distil a large DocViT into a small one and compare the two: `python examples/distil.py [DATA [OUTPUT]]`.

DATA is a folder with a sub folder per class, or a CSV with the columns path and label. By default the eight sample
documents are seen twice: far too few to learn from, but enough to show the steps.
"""

import sys

import docvit
import kd

data = docvit.read_labelled(sys.argv[1] if len(sys.argv) > 1 else "examples/documents/labels.csv")
output = sys.argv[2] if len(sys.argv) > 2 else "runs/distilled"
loop = docvit.TrainSettings(epochs=16 if len(sys.argv) > 1 else 2)

# a large model, from scratch; the folder of one that is already trained does as well
teacher, _ = docvit.train_documents(data, f"{output}/teacher", docvit.Recipe(model="docvit_wide_patch32", train=loop))

# student and teacher see the same views of the same pages; the labels count half, the soft targets the other half
student = docvit.Recipe(model="docvit_compact_patch32", train=loop)
result = kd.distill_documents(student, teacher, data, f"{output}/student", kd.DistillConfig(alpha=0.5, temperature=4.0))
print("loss per epoch:", " ".join(f"{record['loss']:.2f}" for record in result.history))

# here on the documents of the training; give documents of other sources for numbers that mean something
print(docvit.compare({"teacher": teacher, "student": result.student}, data).markdown())
