"""A student under its own moving average (mean teacher): `python examples/mean_teacher.py [DATA DOCUMENT ...]`.

DATA are labelled documents, a folder with a sub folder per class or a CSV with the columns path and label. The others
need no labels: on them the student has to agree with the average of its own weights, which sees the same pages changed
in another way. By default the eight sample documents are used as both.
"""

import sys

import docvit
import kd

data = docvit.read_labelled(sys.argv[1] if len(sys.argv) > 1 else "examples/documents/labels.csv")
unlabelled = sys.argv[2:] or data.paths

student = docvit.Recipe(
    model="docvit_compact_patch32",
    ema=0.998,  # the decay of the average
    train=docvit.TrainSettings(epochs=16 if len(sys.argv) > 1 else 2),
)
config = kd.DistillConfig(alpha=0.0, consistency=1.0, ramp_up=0.25)  # the average counts little at first
result = kd.distill_documents(student, "self", data, "runs/mean-teacher", config, unlabelled=unlabelled)
for record in result.history:
    print("  ".join(f"{name} {value:.3f}" for name, value in record.items()))
